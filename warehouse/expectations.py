"""Verdicts on a night's delta: the rules run through great-expectations on pandas batches, one suite per batch.

The library decides which rows fail; this file hands it the batches and turns its answer into verdicts. A rule that
cannot be evaluated is a failed verdict that blocks, never a pass.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from warehouse.row_checks import CheckContext, coverage, latest
from warehouse.rules import BLOCK, FLAG, QUARANTINE, RULES, TABLES, CheckRule, holds

logger = logging.getLogger(__name__)

MAX_KEYS, KEYS_IN_MESSAGE = 100, 3
EFFECTS = {
    BLOCK: "Nothing of the night is accepted",
    QUARANTINE: "These rows wait in quarantine",
    FLAG: "The night goes on with a flag",
}
_library = threading.Lock()  # its context is one per process


@dataclass(frozen=True, eq=False)
class Verdict:
    """What one rule found in its batch: ``rows`` are the positions that fail, ``keys`` the first hundred of them."""

    rule: CheckRule
    passed: bool
    rows_checked: int
    rows: np.ndarray
    keys: tuple[dict[str, str], ...] = ()
    problem: str = ""

    @property
    def policy(self) -> str:
        """The rule's policy; a rule that could not be evaluated blocks."""
        return BLOCK if self.problem else self.rule.policy

    @property
    def blocks(self) -> bool:
        """True when the night must stop."""
        return not self.passed and self.policy == BLOCK

    @property
    def message(self) -> str:
        """One sentence on what was found, and when it failed one on what happens and what to do."""
        if self.problem:
            return f"could not be evaluated ({self.problem}). {EFFECTS[BLOCK]}; this is a fault of the rule: report it"
        if not len(self.rows):
            return f"{self.rows_checked} rows checked, all pass"
        some = ", ".join(" ".join(key.values()) for key in self.keys[:KEYS_IN_MESSAGE])
        more = ", …" if len(self.rows) > KEYS_IN_MESSAGE else ""
        found = f"{len(self.rows)} of {self.rows_checked} rows: {self.rule.says} ({some}{more})"
        return f"{found}; tolerated" if self.passed else f"{found}. {EFFECTS[self.policy]}; {self.rule.advice}"


@dataclass(frozen=True, eq=False)
class Inspection:
    """All verdicts of a night; per table and row of its delta, the rules that took it out or flagged it."""

    verdicts: tuple[Verdict, ...]

    @property
    def blocking(self) -> tuple[Verdict, ...]:
        """The verdicts that stop the night."""
        return tuple(verdict for verdict in self.verdicts if verdict.blocks)

    def failing(self, table: str, policy: str) -> dict[int, list[CheckRule]]:
        """Row of the table's delta → the rules of that policy that it fails, in the rules' order; rows ascending."""
        found: dict[int, list[CheckRule]] = {}
        for verdict in self.verdicts:
            if verdict.rule.reads == table and verdict.policy == policy:
                for row in verdict.rows.tolist():
                    found.setdefault(row, []).append(verdict.rule)
        return dict(sorted(found.items()))


def inspect_delta(
    delta: Mapping[str, pd.DataFrame],
    evidence: CheckContext,
    max_quarantined_fraction: float,
    rules: Sequence[CheckRule] = RULES,
) -> Inspection:
    """The verdicts on a night's delta, a frame per table with ``ts`` in UTC without a zone.

    First the rows are judged, then what is left of them: whether expected bars are missing, and whether so much went to
    quarantine that the pull itself is in doubt.
    """
    judged = judge({table: delta[table] for table in TABLES}, rules, evidence)
    refused = {table: list(Inspection(judged).failing(table, QUARANTINE)) for table in TABLES}
    kept = delta["bars"].drop(index=refused["bars"])
    covered = coverage(evidence, pd.concat([evidence.bars[["symbol", "ts"]], kept[["symbol", "ts"]]]))
    batches = {"coverage": covered, "latest": latest(evidence, covered)}
    shares = []
    for table in TABLES:
        rule, batch = _share(table, delta[table], refused[table], max_quarantined_fraction)
        shares.append(rule)
        batches[rule.reads] = batch
    return Inspection(judged + judge(batches, [*rules, *shares], evidence))


def judge(
    batches: Mapping[str, pd.DataFrame], rules: Sequence[CheckRule], evidence: CheckContext
) -> tuple[Verdict, ...]:
    """The verdicts of those rules whose batch is given, in the rules' order."""
    verdicts: dict[int, Verdict] = {}
    for name, frame in batches.items():
        suite = {k: rule for k, rule in enumerate(rules) if rule.reads == name}
        found = _run_suite(name, frame.reset_index(drop=True), list(suite.values()), evidence)
        verdicts |= dict(zip(suite, found, strict=True))
    return tuple(verdicts[k] for k in sorted(verdicts))


def _run_suite(name: str, frame: pd.DataFrame, rules: list[CheckRule], evidence: CheckContext) -> list[Verdict]:
    if frame.empty:
        return [Verdict(rule, True, 0, np.zeros(0, dtype=np.int64)) for rule in rules]
    problems: dict[str, str] = {}
    columns: dict[str, np.ndarray] = {}
    for rule in rules:
        if rule.measure is not None:
            try:
                columns[rule.name] = rule.measure(frame, evidence)
            except Exception as exc:  # whatever a rule stumbles over must stop the night, not the other rules
                logger.exception("rule %s of %s could not be measured", rule.name, name)
                problems[rule.name] = f"{type(exc).__name__}: {exc}"
    ready = [rule for rule in rules if rule.name not in problems]
    results = _validate(name, frame.assign(**columns), ready)
    return [_verdict(rule, frame, results.get(rule.name, []), problems.get(rule.name, "")) for rule in rules]


def _validate(name: str, frame: pd.DataFrame, rules: list[CheckRule]) -> dict[str, list[Any]]:
    """The library's results by rule; it names failing rows by the frame's index, which is their position."""
    with _library:
        gx, context = _context()
        suite = gx.ExpectationSuite(name=name)
        for rule in rules:
            for kind, arguments in rule.expectations:
                expectation = getattr(gx.expectations, kind)
                suite.add_expectation(expectation(**arguments, mostly=rule.mostly, meta={"rule": rule.name}))
        source = context.data_sources.add_or_update_pandas(name)
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        report = batch.get_batch({"dataframe": frame}).validate(suite, result_format="COMPLETE")
        context.data_sources.delete(name)  # or it would keep the frame
    found: dict[str, list[Any]] = {}
    for result in report.results:
        found.setdefault(result.expectation_config.meta["rule"], []).append(result)
    return found


@lru_cache(maxsize=1)
def _context() -> tuple[Any, Any]:
    """The library and an empty context of it, without files, telemetry or progress bars; its import takes seconds."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is first imported
    library = logging.getLogger("great_expectations")
    library.setLevel(logging.WARNING)  # at INFO it tells of each function and store
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig
    library.getChild("data_context.types.base").setLevel(logging.WARNING)  # this one sets its own level to INFO
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return gx, context


def _verdict(rule: CheckRule, frame: pd.DataFrame, results: list[Any], problem: str) -> Verdict:
    rows = np.zeros(0, dtype=np.int64)
    broken = [r for r in results if "unexpected_index_list" not in r.result]
    if not problem and (broken or len(results) != len(rule.expectations)):
        problem = _exception(broken[0]) if broken else "the library returned no result for it"
    if not problem:
        failing = [np.asarray(r.result["unexpected_index_list"], dtype=np.int64) for r in results]
        rows = np.unique(np.concatenate(failing))
    passed = not problem and all(r.success for r in results)
    return Verdict(rule, passed, len(frame), rows, _keys(frame, rows), problem)


def _exception(result: Any) -> str:
    info = result.exception_info
    nested = [info] if "exception_message" in info else list(info.values())
    return "; ".join(sorted({str(part["exception_message"]) for part in nested})) or "no message"


def _keys(frame: pd.DataFrame, rows: np.ndarray) -> tuple[dict[str, str], ...]:
    some = frame.iloc[rows].sort_values(["symbol", "ts"]).head(MAX_KEYS)
    stamps = np.datetime_as_string(some["ts"].to_numpy().astype("datetime64[s]"), timezone="UTC")
    return tuple({"symbol": s, "ts": str(t)} for s, t in zip(some["symbol"], stamps, strict=True))


def _share(table: str, frame: pd.DataFrame, refused: list[int], limit: float) -> tuple[CheckRule, pd.DataFrame]:
    """The rule that quarantine takes at most ``limit`` of the rows, and its batch; one bad symbol is never fatal."""
    kept = np.ones(len(frame), dtype=bool)
    kept[refused] = False
    one = frame.loc[~kept, "symbol"].nunique() <= 1
    says = f"row is kept out by other rules, and at most {limit:.0%} of the rows may be"
    advice = "read this night's other verdicts: the pull itself is in doubt"
    rule = CheckRule(
        "quarantined_share",
        table,
        BLOCK,
        says,
        advice,
        (holds("kept"),),
        mostly=0.0 if one else 1 - limit,
        batch=f"{table} kept",
    )
    return rule, frame[["symbol", "ts"]].assign(kept=kept)
