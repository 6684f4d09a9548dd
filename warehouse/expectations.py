"""The verdicts of the data rules on a night's delta, computed by great-expectations.

A night is the run for one as-of date; its *delta* is the set of received rows that no night has accepted yet. A batch
is the pandas frame that a rule checks. The library (great-expectations) runs all rules on one batch together
and decides which rows fail. This module passes the batches to the library and converts the library's results to
verdicts. A rule that cannot be evaluated gets a failed verdict that blocks the night.
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

from warehouse.row_checks import CheckContext, bar_coverage, last_bar_coverage
from warehouse.rules import BLOCK, FLAG, QUARANTINE, RULES, TABLES, CheckRule, expect_true

logger = logging.getLogger(__name__)

MAX_STORED_KEYS = 100
MAX_KEYS_IN_MESSAGE = 3
EFFECTS = {
    BLOCK: "Nothing of the night is accepted",
    QUARANTINE: "These rows wait in quarantine",
    FLAG: "The night goes on with a flag",
}
_library_lock = threading.Lock()  # the library has one context per process


@dataclass(frozen=True, eq=False)
class Verdict:
    """The result of one rule on its batch.

    ``passed`` is True for a rule that holds as a whole, see ``CheckRule``; some rows may fail nevertheless.
    ``rows_checked`` is the number of rows of the batch. ``failing_positions`` (int64, ascending) are the positions of
    the failing rows in the batch. ``failing_keys`` are the symbol and ts of the first hundred failing rows, sorted by
    symbol and ts; a ts is ISO 8601 text in UTC. ``problem`` states why the rule could not be evaluated; it is empty
    for a rule that was evaluated.
    """

    rule: CheckRule
    passed: bool
    rows_checked: int
    failing_positions: np.ndarray
    failing_keys: tuple[dict[str, str], ...] = ()
    problem: str = ""

    @property
    def policy(self) -> str:
        """The rule's policy; ``block`` for a rule that could not be evaluated."""
        return BLOCK if self.problem else self.rule.policy

    @property
    def is_blocking(self) -> bool:
        """True when the night must stop because of this verdict."""
        return not self.passed and self.policy == BLOCK

    @property
    def message(self) -> str:
        """One sentence on the result. For a failed rule, a second one states the effect and what a person can do."""
        if self.problem:
            return f"could not be evaluated ({self.problem}). {EFFECTS[BLOCK]}; this is a fault of the rule: report it"
        n_failing = len(self.failing_positions)
        if not n_failing:
            return f"{self.rows_checked} rows checked, all pass"
        examples = ", ".join(" ".join(key.values()) for key in self.failing_keys[:MAX_KEYS_IN_MESSAGE])
        ellipsis = ", …" if n_failing > MAX_KEYS_IN_MESSAGE else ""
        summary = f"{n_failing} of {self.rows_checked} rows: {self.rule.description} ({examples}{ellipsis})"
        return f"{summary}; tolerated" if self.passed else f"{summary}. {EFFECTS[self.policy]}; {self.rule.advice}"


@dataclass(frozen=True, eq=False)
class Inspection:
    """All verdicts of a night."""

    verdicts: tuple[Verdict, ...]

    @property
    def blocking(self) -> tuple[Verdict, ...]:
        """The verdicts that stop the night."""
        return tuple(verdict for verdict in self.verdicts if verdict.is_blocking)

    def failing_rules(self, table: str, policy: str) -> dict[int, list[CheckRule]]:
        """Position in the table's delta → the rules with ``policy`` that the row fails.

        Positions ascend; the rules of a row are in the order of ``verdicts``. Rows without such a rule are left out.
        """
        rules_by_position: dict[int, list[CheckRule]] = {}
        for verdict in self.verdicts:
            if verdict.rule.batch_name == table and verdict.policy == policy:
                for position in verdict.failing_positions.tolist():
                    rules_by_position.setdefault(position, []).append(verdict.rule)
        return dict(sorted(rules_by_position.items()))


def inspect_delta(
    delta: Mapping[str, pd.DataFrame],
    context: CheckContext,
    max_quarantined_fraction: float,
    rules: Sequence[CheckRule] = RULES,
) -> Inspection:
    """The verdicts on a night's delta.

    ``delta`` has one frame per table of ``TABLES``, with ``ts`` in UTC without a time zone. The rules on the rows of
    the delta are evaluated first. Then two rules check whether bars are missing (any expected bar, the last bar); a
    quarantined bar counts as missing. The last rule of each table checks that at most ``max_quarantined_fraction`` of
    the table's rows are quarantined.
    """
    row_verdicts = evaluate_rules({table: delta[table] for table in TABLES}, rules, context)
    row_inspection = Inspection(row_verdicts)
    quarantined_positions = {table: list(row_inspection.failing_rules(table, QUARANTINE)) for table in TABLES}
    new_bars = delta["bars"].drop(index=quarantined_positions["bars"])
    available_bars = pd.concat([context.accepted_bars[["symbol", "ts"]], new_bars[["symbol", "ts"]]])
    coverage = bar_coverage(context, available_bars)
    batches = {"coverage": coverage, "latest": last_bar_coverage(context, coverage)}
    share_rules = []
    for table in TABLES:
        positions = quarantined_positions[table]
        rule, batch = _quarantine_share_rule(table, delta[table], positions, max_quarantined_fraction)
        share_rules.append(rule)
        batches[rule.batch_name] = batch
    return Inspection(row_verdicts + evaluate_rules(batches, [*rules, *share_rules], context))


def evaluate_rules(
    batches: Mapping[str, pd.DataFrame], rules: Sequence[CheckRule], context: CheckContext
) -> tuple[Verdict, ...]:
    """The verdicts of the ``rules`` whose batch is in ``batches`` (name → frame), in the order of ``rules``."""
    verdict_by_rule_index: dict[int, Verdict] = {}
    for name, frame in batches.items():
        batch_rules = {k: rule for k, rule in enumerate(rules) if rule.batch_name == name}
        verdicts = _evaluate_batch(name, frame.reset_index(drop=True), list(batch_rules.values()), context)
        verdict_by_rule_index |= dict(zip(batch_rules, verdicts, strict=True))
    return tuple(verdict_by_rule_index[k] for k in sorted(verdict_by_rule_index))


def _evaluate_batch(name: str, frame: pd.DataFrame, rules: list[CheckRule], context: CheckContext) -> list[Verdict]:
    """One verdict per rule on the batch ``frame``, whose index must be 0, 1, …; every rule passes an empty batch."""
    if frame.empty:
        return [Verdict(rule, True, 0, np.zeros(0, dtype=np.int64)) for rule in rules]
    problems: dict[str, str] = {}
    check_columns: dict[str, np.ndarray] = {}
    for rule in rules:
        if rule.check is not None:
            try:
                check_columns[rule.name] = rule.check(frame, context)
            except Exception as exc:  # an error of one rule must stop the night, not the other rules
                logger.exception("rule %s of %s could not be measured", rule.name, name)
                problems[rule.name] = f"{type(exc).__name__}: {exc}"
    evaluable_rules = [rule for rule in rules if rule.name not in problems]
    results = _run_library(name, frame.assign(**check_columns), evaluable_rules)
    return [_to_verdict(rule, frame, results.get(rule.name, []), problems.get(rule.name, "")) for rule in rules]


def _run_library(name: str, frame: pd.DataFrame, rules: list[CheckRule]) -> dict[str, list[Any]]:
    """The library's results by rule name, one per expectation.

    A result lists failing rows by their index in ``frame``, which is also their position.
    """
    with _library_lock:
        gx, data_context = _library_and_data_context()
        suite = gx.ExpectationSuite(name=name)
        for rule in rules:
            for class_name, arguments in rule.all_expectations:
                expectation_class = getattr(gx.expectations, class_name)
                suite.add_expectation(expectation_class(**arguments, mostly=rule.mostly, meta={"rule": rule.name}))
        data_source = data_context.data_sources.add_or_update_pandas(name)
        batch_definition = data_source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        validation = batch_definition.get_batch({"dataframe": frame}).validate(suite, result_format="COMPLETE")
        data_context.data_sources.delete(name)  # otherwise the data context would keep the frame in memory
    results: dict[str, list[Any]] = {}
    for result in validation.results:
        results.setdefault(result.expectation_config.meta["rule"], []).append(result)
    return results


@lru_cache(maxsize=1)
def _library_and_data_context() -> tuple[Any, Any]:
    """The module of great-expectations and an empty data context: no files, no telemetry, no progress bars.

    The import takes seconds.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is first imported
    library_logger = logging.getLogger("great_expectations")
    library_logger.setLevel(logging.WARNING)  # at INFO it logs each function and store
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig
    library_logger.getChild("data_context.types.base").setLevel(logging.WARNING)  # it sets its own level to INFO
    data_context = gx.get_context(mode="ephemeral")
    data_context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return gx, data_context


def _to_verdict(rule: CheckRule, frame: pd.DataFrame, results: list[Any], problem: str) -> Verdict:
    """The verdict from the library's results on one rule.

    ``problem`` is the error of the rule's check, or "". The verdict also has a problem when the library returned no
    result for an expectation, or an exception.
    """
    failing_positions = np.zeros(0, dtype=np.int64)
    failed_results = [r for r in results if "unexpected_index_list" not in r.result]
    if not problem and (failed_results or len(results) != len(rule.all_expectations)):
        problem = _exception_text(failed_results[0]) if failed_results else "the library returned no result for it"
    if not problem:
        positions = [np.asarray(r.result["unexpected_index_list"], dtype=np.int64) for r in results]
        failing_positions = np.unique(np.concatenate(positions))
    passed = not problem and all(r.success for r in results)
    return Verdict(rule, passed, len(frame), failing_positions, _failing_keys(frame, failing_positions), problem)


def _exception_text(result: Any) -> str:
    """The messages of the exceptions in one result of the library, which nests them per metric or not at all."""
    info = result.exception_info
    exceptions = [info] if "exception_message" in info else list(info.values())
    return "; ".join(sorted({str(exception["exception_message"]) for exception in exceptions})) or "no message"


def _failing_keys(frame: pd.DataFrame, positions: np.ndarray) -> tuple[dict[str, str], ...]:
    """Symbol and ts of at most ``MAX_STORED_KEYS`` of these rows, sorted; ts as ISO 8601 text in UTC."""
    rows = frame.iloc[positions].sort_values(["symbol", "ts"]).head(MAX_STORED_KEYS)
    ts = np.datetime_as_string(rows["ts"].to_numpy().astype("datetime64[s]"), timezone="UTC")
    return tuple({"symbol": symbol, "ts": str(text)} for symbol, text in zip(rows["symbol"], ts, strict=True))


def _quarantine_share_rule(
    table: str, frame: pd.DataFrame, quarantined_positions: list[int], max_fraction: float
) -> tuple[CheckRule, pd.DataFrame]:
    """The rule that at most ``max_fraction`` of a table's rows are quarantined, and the batch that it checks.

    ``frame`` is the table's delta. The rule passes any share when all quarantined rows are of one symbol.
    """
    is_kept = np.ones(len(frame), dtype=bool)
    is_kept[quarantined_positions] = False
    is_of_one_symbol = frame.loc[~is_kept, "symbol"].nunique() <= 1
    rule = CheckRule(
        name="quarantined_share",
        table=table,
        policy=BLOCK,
        description=f"row is kept out by other rules, and at most {max_fraction:.0%} of the rows may be",
        advice="read this night's other verdicts: the pull itself is in doubt",
        expectations=(expect_true("kept"),),
        mostly=0.0 if is_of_one_symbol else 1 - max_fraction,
        batch=f"{table} kept",
    )
    return rule, frame[["symbol", "ts"]].assign(kept=is_kept)
