"""The data rules, evaluated by great-expectations: each rule passes clean rows, and names the rows of its fault.

A night is the run for one as-of date; its delta is the set of received rows that no night has accepted yet. In these
tests a delta consists of clean rows of one symbol. A *fault* is a function that changes the delta in place.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from warehouse.expectations import MAX_STORED_KEYS, Verdict, evaluate_rules, inspect_delta
from warehouse.row_checks import CheckContext, bar_coverage, last_bar_coverage
from warehouse.rules import BLOCK, FLAG, QUARANTINE, RULES, TABLES, CheckRule, Expectation, expect_true

DAY = np.timedelta64(1, "D")
FIRST = np.datetime64("2024-01-01", "us")  # open of the first bar
N_BARS = 100
MAX_QUARANTINED_FRACTION = 0.1
Frames = dict[str, pd.DataFrame]  # one frame per table of warehouse.rules.TABLES
Fault = Callable[[Frames], None]


def make_bars(n: int = N_BARS, symbol: str = "AAA", start: np.datetime64 = FIRST) -> pd.DataFrame:
    """``n`` daily bars from ``start`` on; log returns of the close are normal with a standard deviation of 1 %."""
    close = 50 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, n)))
    frame = pd.DataFrame({"symbol": symbol, "interval": "1d", "ts": start + DAY * np.arange(n)})
    frame = frame.astype({"symbol": "str", "interval": "str", "ts": "datetime64[us]"})
    return frame.assign(open=close, high=close * 1.01, low=close * 0.99, close=close, volume=1000.0 + np.arange(n))


def make_actions(**columns: list) -> pd.DataFrame:
    """Corporate actions of AAA with these columns; by default four dividends of half a dollar."""
    rows = columns or {"ts": [FIRST + DAY * k for k in (5, 25, 45, 65)], "kind": ["dividend"] * 4, "value": [0.5] * 4}
    return pd.DataFrame({"symbol": "AAA", **rows}).astype(
        {"symbol": "str", "kind": "str", "ts": "datetime64[us]", "value": float}
    )


def make_funding() -> pd.DataFrame:
    """Sixty funding settlements of AAA, one every eight hours."""
    ts = FIRST + np.timedelta64(8, "h") * np.arange(60)
    return pd.DataFrame({"symbol": "AAA", "ts": ts, "rate": 1e-4}).astype({"symbol": "str", "ts": "datetime64[us]"})


def clean_frames() -> Frames:
    """Rows that pass every rule."""
    return {"bars": make_bars(), "corporate_actions": make_actions(), "funding_rates": make_funding()}


def make_context(
    frames: Frames, accepted: pd.DataFrame | None = None, until: np.datetime64 = FIRST + DAY * N_BARS
) -> CheckContext:
    """The context of a delta on a market with a bar every day, up to the clock ``until``.

    ``accepted`` are the bars that earlier nights accepted; by default there are none.
    """
    accepted_bars = make_bars(0) if accepted is None else accepted
    delta_bars = frames["bars"]
    symbols = sorted({*delta_bars["symbol"], *accepted_bars["symbol"]})
    return CheckContext(
        clock=until,
        interval="1d",
        open_times=np.arange(FIRST, until, DAY),
        close_times=delta_bars["ts"].to_numpy() + DAY,
        membership_ends=dict.fromkeys(symbols, np.datetime64("NaT")),
        first_bars=dict.fromkeys(symbols, FIRST),
        accepted_bars=accepted_bars[["symbol", "ts", "close"]],
        accepted_actions=make_actions().iloc[:0],
        accepted_settlements=make_funding().iloc[:0][["symbol", "ts"]],
        delta_bars=delta_bars,
        delta_actions=frames["corporate_actions"],
    )


def find_rule(table: str, name: str) -> CheckRule:
    """The rule of this table and name."""
    (rule,) = [rule for rule in RULES if (rule.table, rule.name) == (table, name)]
    return rule


def run_rule(table: str, name: str, frames: Frames, context: CheckContext | None = None) -> Verdict:
    """The verdict of one rule on a delta, evaluated by great-expectations."""
    context = context or make_context(frames)
    coverage = bar_coverage(context, frames["bars"][["symbol", "ts"]])
    batches = {**frames, "coverage": coverage, "latest": last_bar_coverage(context, coverage)}
    rule = find_rule(table, name)
    (verdict,) = evaluate_rules({rule.batch_name: batches[rule.batch_name]}, [rule], context)
    return verdict


def set_values(table: str, rows: int | slice, **values: object) -> Fault:
    """A fault: sets these values in one row, or in the rows of a slice whose end is included (pandas ``loc``)."""

    def apply(frames: Frames) -> None:
        for column, value in values.items():
            frames[table].loc[rows, column] = value

    return apply


def multiply_prices(rows: slice, factor: float) -> Fault:
    """A fault: multiplies all prices of these bars by a factor; the end of the slice is included (pandas ``loc``)."""

    def apply(frames: Frames) -> None:
        frames["bars"].loc[rows, ["open", "high", "low", "close"]] *= factor

    return apply


def repeat_row(table: str, row: int, **values: object) -> Fault:
    """A fault: appends a copy of one row, with these values changed."""

    def apply(frames: Frames) -> None:
        repeated = frames[table].iloc[[row]].assign(**values)
        frames[table] = pd.concat([frames[table], repeated], ignore_index=True)

    return apply


def drop_rows(table: str, *rows: int) -> Fault:
    """A fault: removes these rows; the positions of the later rows decrease."""

    def apply(frames: Frames) -> None:
        frames[table] = frames[table].drop(index=list(rows)).reset_index(drop=True)

    return apply


def leave_split_unadjusted(frames: Frames) -> None:
    """A fault: a split of 4 for 1 before row 60, for which rows 0 to 59 are not adjusted."""
    frames["corporate_actions"] = make_actions(ts=[FIRST + DAY * 60], kind=["split"], value=[4.0])
    multiply_prices(slice(0, 59), 4.0)(frames)


def make_dividend_huge(frames: Frames) -> None:
    """A fault: the last dividend is 24 times the usual half dollar, and just above a quarter of the price."""
    frames["corporate_actions"].loc[3, "value"] = 12.0


# (table, rule) → faults, each with the positions of the rows that must fail: positions in the changed table, or for gap
# and last_bar in the frame with one row per expected bar.
FAULTS: dict[tuple[str, str], list[tuple[Fault, list[int]]]] = {
    ("bars", "null"): [(set_values("bars", 7, close=np.nan), [7]), (set_values("bars", 8, volume=np.nan), [8])],
    ("bars", "price"): [
        (set_values("bars", 7, open=0.0), [7]),
        (set_values("bars", 8, low=-1.0), [8]),
        (set_values("bars", 9, high=np.inf), [9]),
    ],
    ("bars", "volume"): [(set_values("bars", 7, volume=-1.0), [7]), (set_values("bars", 8, volume=np.inf), [8])],
    ("bars", "high_low"): [
        (set_values("bars", 7, high=40.0, open=41.0, close=39.0, low=38.0), [7]),
        (set_values("bars", 8, high=42.0, open=41.0, close=39.0, low=40.0), [8]),
    ],
    ("bars", "duplicate"): [(repeat_row("bars", 7, close=51.0), [7, 100]), (repeat_row("bars", 7), [100])],
    ("bars", "bar_interval"): [(set_values("bars", 7, interval="1h"), [7])],
    ("bars", "off_grid"): [(set_values("bars", 7, ts=FIRST + DAY * 7 + np.timedelta64(90, "m")), [7])],
    ("bars", "future"): [(set_values("bars", 99, ts=FIRST + DAY * N_BARS), [99])],
    ("bars", "unit_error"): [
        (multiply_prices(slice(40, 43), 100.0), [40, 41, 42, 43]),
        (multiply_prices(slice(40, 40), 0.1), [40]),
        (multiply_prices(slice(99, 99), 100.0), [99]),
        (multiply_prices(slice(0, 9), 0.001), list(range(10))),
        (set_values("bars", 50, low=0.45), [50]),
    ],
    ("bars", "split_scale"): [(leave_split_unadjusted, list(range(60, 100)))],
    ("bars", "jump"): [(multiply_prices(slice(60, None), 1.5), [60])],
    ("bars", "stale"): [(set_values("bars", slice(50, 55), close=50.0), [54, 55])],
    ("bars", "zero_volume"): [(set_values("bars", 7, volume=0.0), [7])],
    ("bars", "gap"): [(drop_rows("bars", 30, 31), [30, 31])],
    ("bars", "last_bar"): [(drop_rows("bars", 99), [0])],
    ("corporate_actions", "null"): [(set_values("corporate_actions", 1, value=np.nan), [1])],
    ("corporate_actions", "kind"): [(set_values("corporate_actions", 1, kind="spin-off"), [1])],
    ("corporate_actions", "positive"): [
        (set_values("corporate_actions", 1, value=0.0), [1]),
        (set_values("corporate_actions", 2, value=np.inf), [2]),
    ],
    ("corporate_actions", "split_ratio"): [
        (set_values("corporate_actions", 1, kind="split", value=5e-5), [1]),
        (set_values("corporate_actions", 1, kind="split", value=2000.0), [1]),
    ],
    ("corporate_actions", "duplicate"): [(repeat_row("corporate_actions", 1, value=0.6), [1, 4])],
    ("corporate_actions", "future"): [(set_values("corporate_actions", 3, ts=FIRST + DAY * 101), [3])],
    ("corporate_actions", "dividend_size"): [(set_values("corporate_actions", 1, value=70.0), [1])],
    ("corporate_actions", "dividend_scale"): [
        (make_dividend_huge, [3]),
        (set_values("corporate_actions", 3, value=0.005), [3]),
        (set_values("corporate_actions", 0, value=20.0), [0]),
    ],
    ("funding_rates", "null"): [(set_values("funding_rates", 7, rate=np.nan), [7])],
    ("funding_rates", "bounds"): [
        (set_values("funding_rates", 7, rate=0.05), [7]),
        (set_values("funding_rates", 7, rate=-0.05), [7]),
        (set_values("funding_rates", 7, rate=-np.inf), [7]),
    ],
    ("funding_rates", "duplicate"): [(repeat_row("funding_rates", 7, rate=2e-4), [7, 60])],
    ("funding_rates", "off_grid"): [(set_values("funding_rates", 7, ts=FIRST + np.timedelta64(56 * 60 + 1, "m")), [7])],
    ("funding_rates", "future"): [
        (set_values("funding_rates", 59, ts=FIRST + DAY * N_BARS + np.timedelta64(1, "h")), [59])
    ],
    ("funding_rates", "gap"): [(drop_rows("funding_rates", 30), [30])],
}
CASES = [
    pytest.param(table, name, fault, positions, id=f"{table}-{name}-{k}")
    for (table, name), faults in FAULTS.items()
    for k, (fault, positions) in enumerate(faults)
]


def test_every_rule_is_tested_on_a_fault() -> None:
    assert set(FAULTS) == {(rule.table, rule.name) for rule in RULES}


@pytest.mark.parametrize(("table", "name", "fault", "failing_positions"), CASES)
def test_a_fault_fails_its_rule_and_the_failing_rows_are_named(
    table: str, name: str, fault: Fault, failing_positions: list[int]
) -> None:
    frames = clean_frames()
    fault(frames)
    verdict = run_rule(table, name, frames)
    assert not verdict.passed and not verdict.problem
    assert verdict.failing_positions.tolist() == failing_positions
    assert [key["symbol"] for key in verdict.failing_keys] == ["AAA"] * len(failing_positions)
    assert verdict.rule.description in verdict.message and verdict.rule.advice in verdict.message


def test_clean_rows_pass_every_rule() -> None:
    frames = clean_frames()
    inspection = inspect_delta(frames, make_context(frames), MAX_QUARANTINED_FRACTION)
    assert [v.rule.name for v in inspection.verdicts if not v.passed or len(v.failing_positions)] == []
    assert len(inspection.verdicts) == len(RULES) + len(TABLES)
    assert all("all pass" in v.message for v in inspection.verdicts)


def test_an_empty_delta_passes_with_nothing_checked() -> None:
    frames = {table: frame.iloc[:0] for table, frame in clean_frames().items()}
    inspection = inspect_delta(frames, make_context(frames, accepted=make_bars()), MAX_QUARANTINED_FRACTION)
    assert all(v.passed for v in inspection.verdicts)
    assert {v.rows_checked for v in inspection.verdicts if v.rule.batch_name in TABLES} == {0}


def test_rounding_between_high_and_close_is_no_fault() -> None:
    frames = clean_frames()
    set_values("bars", 7, high=40.0, open=39.5, close=40.0 * (1 + 1e-8), low=39.0)(frames)
    assert run_rule("bars", "high_low", frames).passed


def test_a_large_move_that_is_not_reverted_is_a_jump_and_no_unit_error() -> None:
    """Prices do fall by 90 % in a day, so a factor of 10 that does not revert is no fault of the data."""
    frames = clean_frames()
    multiply_prices(slice(60, None), 0.1)(frames)
    assert run_rule("bars", "unit_error", frames).passed
    assert run_rule("bars", "jump", frames).failing_positions.tolist() == [60]


def test_a_spike_and_its_reversal_are_not_flagged_as_jumps_too() -> None:
    frames = clean_frames()
    multiply_prices(slice(60, 60), 100.0)(frames)
    assert run_rule("bars", "jump", frames).passed


def test_jumps_are_judged_by_earlier_bars_only() -> None:
    """A jump is judged by the returns before it: here 20, of which half are small.

    If the jump itself or the large returns after it counted too, the median absolute deviation would hide the jump.
    """
    earlier_returns = np.tile([0.001, 0.1], 10) * np.tile([1, 1, -1, -1], 5)
    log_returns = np.concatenate([[0.0], earlier_returns, [1.2], np.full(10, 0.1)])
    close = 50 * np.exp(np.cumsum(log_returns))
    frames = {**clean_frames(), "bars": make_bars(len(close)).assign(open=close, high=close, low=close, close=close)}
    assert run_rule("bars", "jump", frames).failing_positions.tolist() == [21]


def test_a_jump_needs_twenty_returns_before_it() -> None:
    jump_after_19_returns = clean_frames()
    multiply_prices(slice(20, None), 1.5)(jump_after_19_returns)  # row 0 has no return
    jump_after_20_returns = clean_frames()
    multiply_prices(slice(21, None), 1.5)(jump_after_20_returns)
    assert run_rule("bars", "jump", jump_after_19_returns).passed
    assert run_rule("bars", "jump", jump_after_20_returns).failing_positions.tolist() == [21]


def split_into_accepted_and_delta(n_new: int) -> tuple[pd.DataFrame, Frames]:
    """Clean bars in two parts: accepted bars of earlier nights, and a delta with the last ``n_new`` bars."""
    all_bars = make_bars()
    frames = {**clean_frames(), "bars": all_bars.iloc[-n_new:].reset_index(drop=True)}
    return all_bars.iloc[:-n_new], frames


def test_one_new_bar_is_judged_by_the_accepted_bars_before_it() -> None:
    accepted, frames = split_into_accepted_and_delta(1)
    assert run_rule("bars", "jump", frames, make_context(frames, accepted)).passed
    multiply_prices(slice(0, 0), 1.5)(frames)
    assert run_rule("bars", "jump", frames, make_context(frames, accepted)).failing_positions.tolist() == [0]
    accepted, frames = split_into_accepted_and_delta(1)
    multiply_prices(slice(0, 0), 100.0)(frames)
    assert run_rule("bars", "unit_error", frames, make_context(frames, accepted)).failing_positions.tolist() == [0]


def test_a_break_of_scale_after_accepted_bars_fails_the_new_bars() -> None:
    accepted, frames = split_into_accepted_and_delta(60)
    multiply_prices(slice(None), 0.01)(frames)
    assert run_rule("bars", "unit_error", frames, make_context(frames, accepted)).failing_positions.tolist() == list(
        range(60)
    )


def test_a_history_that_is_completely_restated_on_another_scale_is_no_fault() -> None:
    frames = {**clean_frames(), "corporate_actions": make_actions(ts=[FIRST + DAY * 60], kind=["split"], value=[4.0])}
    multiply_prices(slice(None), 0.25)(frames)
    context = make_context(frames, accepted=make_bars())
    for rule in ("unit_error", "split_scale", "jump"):
        assert run_rule("bars", rule, frames, context).passed


def test_a_split_before_the_first_bar_is_ignored() -> None:
    frames = clean_frames()
    multiply_prices(slice(5, None), 0.5)(frames)
    frames["corporate_actions"] = make_actions(ts=[FIRST - DAY * 3], kind=["split"], value=[2.0])
    assert run_rule("bars", "split_scale", frames).passed


def test_a_symbol_that_lists_later_has_no_gap_before_its_first_bar() -> None:
    frames = {
        **clean_frames(),
        "bars": pd.concat([make_bars(), make_bars(40, "NEW", FIRST + DAY * 60)], ignore_index=True),
    }
    context = replace(make_context(frames), first_bars={"AAA": FIRST, "NEW": FIRST + DAY * 60})
    assert run_rule("bars", "gap", frames, context).passed


def test_a_symbol_has_no_gap_after_its_membership() -> None:
    frames = {**clean_frames(), "bars": pd.concat([make_bars(), make_bars(40, "OLD")], ignore_index=True)}
    context = replace(make_context(frames), membership_ends={"AAA": np.datetime64("NaT"), "OLD": FIRST + DAY * 41})
    verdict = run_rule("bars", "gap", frames, context)
    assert [key["ts"][:10] for key in verdict.failing_keys] == ["2024-02-10"]


def test_the_last_bar_may_be_missing_for_half_of_the_symbols_but_not_for_more() -> None:
    complete_symbols = [make_bars(symbol=symbol) for symbol in ("S0", "S1")]
    symbols_without_last_bar = [make_bars(symbol=symbol).iloc[:-1] for symbol in ("S2", "S3")]
    bars = pd.concat([*complete_symbols, *symbols_without_last_bar], ignore_index=True)
    frames = {**clean_frames(), "bars": bars}
    verdict = run_rule("bars", "last_bar", frames)
    assert verdict.passed and len(verdict.failing_positions) == 2 and "tolerated" in verdict.message
    drop_rows("bars", N_BARS - 1)(frames)  # the last bar of S0
    assert run_rule("bars", "last_bar", frames).is_blocking


def test_a_universe_without_any_bar_is_blocked() -> None:
    frames = {table: frame.iloc[:0] for table, frame in clean_frames().items()}
    context = replace(
        make_context(frames), membership_ends=dict.fromkeys(("AAA", "BBB"), np.datetime64("NaT")), first_bars={}
    )
    assert [v.rule.name for v in inspect_delta(frames, context, MAX_QUARANTINED_FRACTION).blocking] == ["last_bar"]


N_BAD_BARS = 50


def make_delta_with_bad_symbols(n_bad: int) -> tuple[Frames, CheckContext]:
    """A delta of ten symbols with N_BARS bars each, and its context.

    The first ``n_bad`` symbols have N_BAD_BARS bars of negative volume.
    """
    frames = {**clean_frames(), "bars": pd.concat([make_bars(symbol=f"S{k}") for k in range(10)], ignore_index=True)}
    for k in range(n_bad):
        first_row = N_BARS * k
        frames["bars"].loc[first_row : first_row + N_BAD_BARS - 1, "volume"] = -1.0
    return frames, make_context(frames)


@pytest.mark.parametrize(
    # one bad symbol quarantines 5 % of the rows, two 10 %, three 15 %
    ("n_bad", "max_fraction", "is_blocking"),
    [(1, 0.01, False), (2, 0.1, False), (3, 0.1, True)],
)
def test_many_quarantined_rows_block_but_one_bad_symbol_never_does(
    n_bad: int, max_fraction: float, is_blocking: bool
) -> None:
    frames, context = make_delta_with_bad_symbols(n_bad)
    inspection = inspect_delta(frames, context, max_fraction)
    assert [v.rule.name for v in inspection.blocking] == (["quarantined_share"] if is_blocking else [])
    assert len(inspection.failing_rules("bars", QUARANTINE)) == N_BAD_BARS * n_bad


def test_a_quarantined_bar_counts_as_missing() -> None:
    frames = clean_frames()
    set_values("bars", 30, volume=-1.0)(frames)
    failing_verdicts = {
        v.rule.name: v
        for v in inspect_delta(frames, make_context(frames), MAX_QUARANTINED_FRACTION).verdicts
        if len(v.failing_positions)
    }
    assert failing_verdicts["gap"].failing_keys == ({"symbol": "AAA", "ts": "2024-01-31T00:00:00Z"},)


def test_failing_rows_are_listed_by_policy() -> None:
    frames = clean_frames()
    set_values("bars", 7, volume=0.0)(frames)
    set_values("bars", 9, volume=-1.0, close=np.nan)(frames)
    inspection = inspect_delta(frames, make_context(frames), MAX_QUARANTINED_FRACTION)
    names = {
        policy: {row: [rule.name for rule in rules] for row, rules in inspection.failing_rules("bars", policy).items()}
        for policy in (QUARANTINE, FLAG)
    }
    assert names == {QUARANTINE: {9: ["null", "volume"]}, FLAG: {7: ["zero_volume"]}}


def test_at_most_a_hundred_keys_are_stored_and_all_failing_rows_are_counted() -> None:
    n_failing = MAX_STORED_KEYS + 50
    frames = {**clean_frames(), "bars": make_bars(n_failing).assign(volume=0.0)}
    verdict = run_rule("bars", "zero_volume", frames, make_context(frames, until=FIRST + DAY * n_failing))
    first_key, *_ = verdict.failing_keys
    assert first_key == {"symbol": "AAA", "ts": "2024-01-01T00:00:00Z"}
    assert (len(verdict.failing_positions), len(verdict.failing_keys)) == (n_failing, MAX_STORED_KEYS)
    assert verdict.message.startswith(f"{n_failing} of {n_failing} rows: volume is zero (AAA 2024-01-01T00:00:00Z, ")


def test_a_rule_whose_check_raises_blocks_and_the_others_are_still_evaluated(caplog: pytest.LogCaptureFixture) -> None:
    def failing_check(_: pd.DataFrame, __: CheckContext) -> np.ndarray:
        raise ZeroDivisionError("cannot divide")

    frames = clean_frames()
    set_values("bars", 7, volume=0.0)(frames)
    rules = [CheckRule("odd", "bars", FLAG, "is odd", "look", check=failing_check), find_rule("bars", "zero_volume")]
    with caplog.at_level(logging.ERROR):
        odd_verdict, volume_verdict = evaluate_rules({"bars": frames["bars"]}, rules, make_context(frames))
    assert odd_verdict.is_blocking and "ZeroDivisionError: cannot divide" in odd_verdict.message
    assert volume_verdict.failing_positions.tolist() == [7]
    assert "odd" in caplog.text


@pytest.mark.parametrize(
    "expectation",
    [expect_true("no_such_column"), ("ExpectColumnValuesToBeBetween", {"column": "symbol", "min_value": 0.0})],
)
def test_a_rule_that_fails_in_the_library_blocks_and_the_others_are_still_evaluated(expectation: Expectation) -> None:
    frames = clean_frames()
    set_values("bars", 7, volume=0.0)(frames)
    rules = [CheckRule("odd", "bars", FLAG, "is odd", "look", (expectation,)), find_rule("bars", "zero_volume")]
    odd_verdict, volume_verdict = evaluate_rules({"bars": frames["bars"]}, rules, make_context(frames))
    assert odd_verdict.is_blocking and odd_verdict.policy == BLOCK and "could not be evaluated" in odd_verdict.message
    assert volume_verdict.failing_positions.tolist() == [7] and not volume_verdict.problem


def test_the_library_prints_nothing_leaves_no_file_and_opens_no_connection(tmp_path: Path) -> None:
    """No progress bar, warning or telemetry of the library reaches the user's terminal or the network."""
    code = """
import logging, socket, sys
logging.basicConfig(level=logging.INFO)
def refuse(*arguments): raise SystemExit("a connection was opened")
socket.socket.connect = refuse
import pandas as pd
import warehouse.expectations as expectations
from warehouse.rules import BAR_RULES
assert "great_expectations" not in sys.modules, "the slow import must wait for the first use"
(rule,) = [rule for rule in BAR_RULES if rule.name == "volume"]
bars = pd.DataFrame({"symbol": ["A"], "ts": pd.to_datetime(["2024-01-01"]), "volume": [-1.0]})
(verdict,) = expectations.evaluate_rules({"bars": bars}, [rule], None)
assert verdict.failing_positions.tolist() == [0]
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
