"""Verdicts on a night's delta: the rules run through great-expectations on pandas batches, one suite per batch.

The library decides which rows fail; this file passes it the batches and converts its results to verdicts. A rule that
cannot be evaluated gives a failed verdict that blocks the night.
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
from warehouse.rules import BLOCK, FLAG, QUARANTINE, RULES, TABLES, CheckRule, is_true

logger = logging.getLogger(__name__)

MAX_KEYS = 100
KEYS_IN_MESSAGE = 3
EFFECTS = {
    BLOCK: "Nothing of the night is accepted",
    QUARANTINE: "These rows wait in quarantine",
    FLAG: "The night goes on with a flag",
}
_library_lock = threading.Lock()  # the library has one context per process


@dataclass(frozen=True, eq=False)
class Verdict:
    """The result of one rule on its batch: ``rows`` are the failing positions, ``keys`` the keys of the first hundred.

    ``problem`` states why the rule could not be evaluated; it is empty when it was.
    """

    rule: CheckRule
    passed: bool
    rows_checked: int
    rows: np.ndarray
    keys: tuple[dict[str, str], ...] = ()
    problem: str = ""

    @property
    def policy(self) -> str:
        """The rule's policy; ``block`` for a rule that could not be evaluated."""
        return BLOCK if self.problem else self.rule.policy

    @property
    def blocks(self) -> bool:
        """True when the night must stop."""
        return not self.passed and self.policy == BLOCK

    @property
    def message(self) -> str:
        """One sentence on the result; for a failed rule, one more on what happens and what to do."""
        if self.problem:
            return f"could not be evaluated ({self.problem}). {EFFECTS[BLOCK]}; this is a fault of the rule: report it"
        if not len(self.rows):
            return f"{self.rows_checked} rows checked, all pass"
        some = ", ".join(" ".join(key.values()) for key in self.keys[:KEYS_IN_MESSAGE])
        more = ", …" if len(self.rows) > KEYS_IN_MESSAGE else ""
        summary = f"{len(self.rows)} of {self.rows_checked} rows: {self.rule.description} ({some}{more})"
        return f"{summary}; tolerated" if self.passed else f"{summary}. {EFFECTS[self.policy]}; {self.rule.advice}"


@dataclass(frozen=True, eq=False)
class Inspection:
    """All verdicts of a night."""

    verdicts: tuple[Verdict, ...]

    @property
    def blocking(self) -> tuple[Verdict, ...]:
        """The verdicts that stop the night."""
        return tuple(verdict for verdict in self.verdicts if verdict.blocks)

    def failing(self, table: str, policy: str) -> dict[int, list[CheckRule]]:
        """Row of the table's delta → the rules of that policy that it fails, in the rules' order; rows ascending."""
        failed_rules: dict[int, list[CheckRule]] = {}
        for verdict in self.verdicts:
            if verdict.rule.batch_name == table and verdict.policy == policy:
                for row in verdict.rows.tolist():
                    failed_rules.setdefault(row, []).append(verdict.rule)
        return dict(sorted(failed_rules.items()))


def inspect_delta(
    delta: Mapping[str, pd.DataFrame],
    context: CheckContext,
    max_quarantined_fraction: float,
    rules: Sequence[CheckRule] = RULES,
) -> Inspection:
    """The verdicts on a night's delta, a frame per table with ``ts`` in UTC without a zone.

    First the rows are checked, then what quarantine leaves of them: whether expected bars are missing, and whether so
    many rows are in quarantine that the pull itself is in doubt.
    """
    row_verdicts = judge({table: delta[table] for table in TABLES}, rules, context)
    quarantined = {table: list(Inspection(row_verdicts).failing(table, QUARANTINE)) for table in TABLES}
    accepted = delta["bars"].drop(index=quarantined["bars"])
    covered = coverage(context, pd.concat([context.bars[["symbol", "ts"]], accepted[["symbol", "ts"]]]))
    batches = {"coverage": covered, "latest": latest(context, covered)}
    share_rules = []
    for table in TABLES:
        rule, batch = _quarantine_share(table, delta[table], quarantined[table], max_quarantined_fraction)
        share_rules.append(rule)
        batches[rule.batch_name] = batch
    return Inspection(row_verdicts + judge(batches, [*rules, *share_rules], context))


def judge(
    batches: Mapping[str, pd.DataFrame], rules: Sequence[CheckRule], context: CheckContext
) -> tuple[Verdict, ...]:
    """The verdicts of the rules whose batch is in ``batches``, in the rules' order."""
    verdicts: dict[int, Verdict] = {}
    for name, frame in batches.items():
        suite = {k: rule for k, rule in enumerate(rules) if rule.batch_name == name}
        results = _run_suite(name, frame.reset_index(drop=True), list(suite.values()), context)
        verdicts |= dict(zip(suite, results, strict=True))
    return tuple(verdicts[k] for k in sorted(verdicts))


def _run_suite(name: str, frame: pd.DataFrame, rules: list[CheckRule], context: CheckContext) -> list[Verdict]:
    if frame.empty:
        return [Verdict(rule, True, 0, np.zeros(0, dtype=np.int64)) for rule in rules]
    problems: dict[str, str] = {}
    columns: dict[str, np.ndarray] = {}
    for rule in rules:
        if rule.check is not None:
            try:
                columns[rule.name] = rule.check(frame, context)
            except Exception as exc:  # an error of one rule must stop the night, not the other rules
                logger.exception("rule %s of %s could not be measured", rule.name, name)
                problems[rule.name] = f"{type(exc).__name__}: {exc}"
    evaluable = [rule for rule in rules if rule.name not in problems]
    results = _validate(name, frame.assign(**columns), evaluable)
    return [_to_verdict(rule, frame, results.get(rule.name, []), problems.get(rule.name, "")) for rule in rules]


def _validate(name: str, frame: pd.DataFrame, rules: list[CheckRule]) -> dict[str, list[Any]]:
    """The library's results by rule name. They name failing rows by the frame's index, which is their position."""
    with _library_lock:
        gx, gx_context = _gx_context()
        suite = gx.ExpectationSuite(name=name)
        for rule in rules:
            for kind, arguments in rule.expectations:
                expectation = getattr(gx.expectations, kind)
                suite.add_expectation(expectation(**arguments, mostly=rule.mostly, meta={"rule": rule.name}))
        source = gx_context.data_sources.add_or_update_pandas(name)
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        report = batch.get_batch({"dataframe": frame}).validate(suite, result_format="COMPLETE")
        gx_context.data_sources.delete(name)  # or it would keep the frame
    results: dict[str, list[Any]] = {}
    for result in report.results:
        results.setdefault(result.expectation_config.meta["rule"], []).append(result)
    return results


@lru_cache(maxsize=1)
def _gx_context() -> tuple[Any, Any]:
    """The library and an empty context of it, without files, telemetry or progress bars. The import takes seconds."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is first imported
    library = logging.getLogger("great_expectations")
    library.setLevel(logging.WARNING)  # at INFO it logs each function and store
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig
    library.getChild("data_context.types.base").setLevel(logging.WARNING)  # this one sets its own level to INFO
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return gx, context


def _to_verdict(rule: CheckRule, frame: pd.DataFrame, results: list[Any], problem: str) -> Verdict:
    rows = np.zeros(0, dtype=np.int64)
    unevaluated = [r for r in results if "unexpected_index_list" not in r.result]
    if not problem and (unevaluated or len(results) != len(rule.expectations)):
        problem = _exception_text(unevaluated[0]) if unevaluated else "the library returned no result for it"
    if not problem:
        failing = [np.asarray(r.result["unexpected_index_list"], dtype=np.int64) for r in results]
        rows = np.unique(np.concatenate(failing))
    passed = not problem and all(r.success for r in results)
    return Verdict(rule, passed, len(frame), rows, _keys(frame, rows), problem)


def _exception_text(result: Any) -> str:
    info = result.exception_info
    nested = [info] if "exception_message" in info else list(info.values())
    return "; ".join(sorted({str(part["exception_message"]) for part in nested})) or "no message"


def _keys(frame: pd.DataFrame, rows: np.ndarray) -> tuple[dict[str, str], ...]:
    some = frame.iloc[rows].sort_values(["symbol", "ts"]).head(MAX_KEYS)
    stamps = np.datetime_as_string(some["ts"].to_numpy().astype("datetime64[s]"), timezone="UTC")
    return tuple({"symbol": s, "ts": str(t)} for s, t in zip(some["symbol"], stamps, strict=True))


def _quarantine_share(
    table: str, frame: pd.DataFrame, quarantined: list[int], limit: float
) -> tuple[CheckRule, pd.DataFrame]:
    """The rule that quarantine takes at most ``limit`` of the rows, and its batch. One bad symbol never blocks."""
    is_kept = np.ones(len(frame), dtype=bool)
    is_kept[quarantined] = False
    is_one_symbol = frame.loc[~is_kept, "symbol"].nunique() <= 1
    description = f"row is kept out by other rules, and at most {limit:.0%} of the rows may be"
    advice = "read this night's other verdicts: the pull itself is in doubt"
    rule = CheckRule(
        "quarantined_share",
        table,
        BLOCK,
        description,
        advice,
        (is_true("kept"),),
        mostly=0.0 if is_one_symbol else 1 - limit,
        batch=f"{table} kept",
    )
    return rule, frame[["symbol", "ts"]].assign(kept=is_kept)
