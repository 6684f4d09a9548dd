"""The data rules run through the real library: each fails on its fault, passes clean rows and names failing rows."""

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

from warehouse.expectations import Verdict, inspect_delta, judge
from warehouse.row_checks import CheckContext, coverage, latest
from warehouse.rules import BLOCK, FLAG, QUARANTINE, RULES, TABLES, CheckRule, is_true

DAY = np.timedelta64(1, "D")
FIRST = np.datetime64("2024-01-01", "us")
BARS = 100
Frames = dict[str, pd.DataFrame]


def bars(n: int = BARS, symbol: str = "AAA", start: np.datetime64 = FIRST) -> pd.DataFrame:
    """Daily bars whose close moves by about 1 % a day."""
    close = 50 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, n)))
    frame = pd.DataFrame({"symbol": symbol, "interval": "1d", "ts": start + DAY * np.arange(n)})
    frame = frame.astype({"symbol": "str", "interval": "str", "ts": "datetime64[us]"})
    return frame.assign(open=close, high=close * 1.01, low=close * 0.99, close=close, volume=1000.0 + np.arange(n))


def actions(**columns: list) -> pd.DataFrame:
    """Four dividends of AAA, or the given rows."""
    rows = columns or {"ts": [FIRST + DAY * k for k in (5, 25, 45, 65)], "kind": ["dividend"] * 4, "value": [0.5] * 4}
    return pd.DataFrame({"symbol": "AAA", **rows}).astype(
        {"symbol": "str", "kind": "str", "ts": "datetime64[us]", "value": float}
    )


def funding() -> pd.DataFrame:
    """Settlements of AAA every eight hours."""
    ts = FIRST + np.timedelta64(8, "h") * np.arange(60)
    return pd.DataFrame({"symbol": "AAA", "ts": ts, "rate": 1e-4}).astype({"symbol": "str", "ts": "datetime64[us]"})


def clean_frames() -> Frames:
    """Rows that pass every rule."""
    return {"bars": bars(), "corporate_actions": actions(), "funding_rates": funding()}


def make_context(
    frames: Frames, accepted: pd.DataFrame | None = None, until: np.datetime64 = FIRST + DAY * BARS
) -> CheckContext:
    """The context of the frames on a market that never closes; ``accepted``: bars that earlier nights accepted."""
    before = bars(0) if accepted is None else accepted
    delta_bars = frames["bars"]
    symbols = sorted({*delta_bars["symbol"], *before["symbol"]})
    return CheckContext(
        clock=until,
        interval="1d",
        opens=np.arange(FIRST, until, DAY),
        closed_at=delta_bars["ts"].to_numpy() + DAY,
        memberships=dict.fromkeys(symbols, np.datetime64("NaT")),
        first_bars=dict.fromkeys(symbols, FIRST),
        bars=before[["symbol", "ts", "close"]],
        actions=actions().iloc[:0],
        settlements=funding().iloc[:0][["symbol", "ts"]],
        delta_bars=delta_bars,
        delta_actions=frames["corporate_actions"],
    )


def rule_named(table: str, name: str) -> CheckRule:
    (rule,) = [rule for rule in RULES if (rule.table, rule.name) == (table, name)]
    return rule


def verdict(table: str, name: str, frames: Frames, context: CheckContext | None = None) -> Verdict:
    """The verdict of one rule on the frames, from the real library."""
    context = context or make_context(frames)
    covered = coverage(context, frames["bars"][["symbol", "ts"]])
    batches = {**frames, "coverage": covered, "latest": latest(context, covered)}
    rule = rule_named(table, name)
    (result,) = judge({rule.batch_name: batches[rule.batch_name]}, [rule], context)
    return result


def set_values(table: str, row: int, **values: object) -> Callable[[Frames], None]:
    """A fault: sets these values in one row."""

    def spoil(frames: Frames) -> None:
        for column, value in values.items():
            frames[table].loc[row, column] = value

    return spoil


def multiply(rows: slice, factor: float) -> Callable[[Frames], None]:
    """A fault: multiplies all prices of these bars by a factor."""

    def spoil(frames: Frames) -> None:
        frames["bars"].loc[rows, ["open", "high", "low", "close"]] *= factor

    return spoil


def repeat(table: str, row: int, **values: object) -> Callable[[Frames], None]:
    """A fault: repeats one row, with other values."""

    def spoil(frames: Frames) -> None:
        repeated = frames[table].iloc[[row]].assign(**values)
        frames[table] = pd.concat([frames[table], repeated], ignore_index=True)

    return spoil


def drop(table: str, *rows: int) -> Callable[[Frames], None]:
    """A fault: removes these rows."""

    def spoil(frames: Frames) -> None:
        frames[table] = frames[table].drop(index=list(rows)).reset_index(drop=True)

    return spoil


def split_left_out(frames: Frames) -> None:
    """A fault: a split of 4 for 1 before row 60, for which the 60 bars before it are not adjusted."""
    frames["corporate_actions"] = actions(ts=[FIRST + DAY * 60], kind=["split"], value=[4.0])
    multiply(slice(0, 59), 4.0)(frames)


def huge_dividend(frames: Frames) -> None:
    """A fault: a dividend far above the usual ones."""
    frames["corporate_actions"].loc[3, "value"] = 12.0  # 24 times the usual half dollar, a quarter of the price


FAULTS: dict[tuple[str, str], list[tuple[Callable[[Frames], None], list[int]]]] = {
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
    ("bars", "duplicate"): [(repeat("bars", 7, close=51.0), [7, 100]), (repeat("bars", 7), [100])],
    ("bars", "bar_interval"): [(set_values("bars", 7, interval="1h"), [7])],
    ("bars", "off_grid"): [(set_values("bars", 7, ts=FIRST + DAY * 7 + np.timedelta64(90, "m")), [7])],
    ("bars", "future"): [(set_values("bars", 99, ts=FIRST + DAY * 100), [99])],
    ("bars", "unit_error"): [
        (multiply(slice(40, 43), 100.0), [40, 41, 42, 43]),
        (multiply(slice(40, 40), 0.1), [40]),
        (multiply(slice(99, 99), 100.0), [99]),
        (multiply(slice(0, 9), 0.001), list(range(10))),
        (set_values("bars", 50, low=0.45), [50]),
    ],
    ("bars", "split_scale"): [(split_left_out, list(range(60, 100)))],
    ("bars", "jump"): [(multiply(slice(60, None), 1.5), [60])],
    ("bars", "stale"): [(set_values("bars", slice(50, 55), close=50.0), [54, 55])],
    ("bars", "zero_volume"): [(set_values("bars", 7, volume=0.0), [7])],
    ("bars", "gap"): [(drop("bars", 30, 31), [30, 31])],
    ("bars", "last_bar"): [(drop("bars", 99), [0])],
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
    ("corporate_actions", "duplicate"): [(repeat("corporate_actions", 1, value=0.6), [1, 4])],
    ("corporate_actions", "future"): [(set_values("corporate_actions", 3, ts=FIRST + DAY * 101), [3])],
    ("corporate_actions", "dividend_size"): [(set_values("corporate_actions", 1, value=70.0), [1])],
    ("corporate_actions", "dividend_scale"): [
        (huge_dividend, [3]),
        (set_values("corporate_actions", 3, value=0.005), [3]),
        (set_values("corporate_actions", 0, value=20.0), [0]),
    ],
    ("funding_rates", "null"): [(set_values("funding_rates", 7, rate=np.nan), [7])],
    ("funding_rates", "bounds"): [
        (set_values("funding_rates", 7, rate=0.05), [7]),
        (set_values("funding_rates", 7, rate=-0.05), [7]),
        (set_values("funding_rates", 7, rate=-np.inf), [7]),
    ],
    ("funding_rates", "duplicate"): [(repeat("funding_rates", 7, rate=2e-4), [7, 60])],
    ("funding_rates", "off_grid"): [(set_values("funding_rates", 7, ts=FIRST + np.timedelta64(3361, "m")), [7])],
    ("funding_rates", "future"): [
        (set_values("funding_rates", 59, ts=FIRST + DAY * 100 + np.timedelta64(1, "h")), [59])
    ],
    ("funding_rates", "gap"): [(drop("funding_rates", 30), [30])],
}
CASES = [
    pytest.param(*rule, spoil, rows, id=f"{'-'.join(rule)}-{k}")
    for rule, faults in FAULTS.items()
    for k, (spoil, rows) in enumerate(faults)
]


def test_every_rule_is_tested_on_a_fault() -> None:
    assert set(FAULTS) == {(rule.table, rule.name) for rule in RULES}


@pytest.mark.parametrize(("table", "name", "spoil", "rows"), CASES)
def test_a_fault_fails_its_rule_and_the_failing_rows_are_named(
    table: str, name: str, spoil: Callable[[Frames], None], rows: list[int]
) -> None:
    frames = clean_frames()
    spoil(frames)
    result = verdict(table, name, frames)
    assert not result.passed and not result.problem
    assert result.rows.tolist() == rows
    assert len(result.keys) == len(rows) and result.keys[0]["symbol"] == "AAA"
    assert result.rule.description in result.message and result.rule.advice in result.message


def test_clean_rows_pass_every_rule() -> None:
    frames = clean_frames()
    inspection = inspect_delta(frames, make_context(frames), 0.1)
    assert [v.rule.name for v in inspection.verdicts if not v.passed or len(v.rows)] == []
    assert len(inspection.verdicts) == len(RULES) + len(TABLES)
    assert all("all pass" in v.message for v in inspection.verdicts)


def test_an_empty_delta_passes_with_nothing_checked() -> None:
    frames = {table: frame.iloc[:0] for table, frame in clean_frames().items()}
    inspection = inspect_delta(frames, make_context(frames, accepted=bars()), 0.1)
    assert all(v.passed for v in inspection.verdicts)
    assert {v.rows_checked for v in inspection.verdicts if v.rule.batch_name in TABLES} == {0}


def test_rounding_between_high_and_close_is_no_fault() -> None:
    frames = clean_frames()
    set_values("bars", 7, high=40.0, open=39.5, close=40.0 * (1 + 1e-8), low=39.0)(frames)
    assert verdict("bars", "high_low", frames).passed


def test_a_large_move_that_stays_is_a_jump_and_no_unit_error() -> None:
    """Prices do fall by 80 % and more in a day; only a unit of 100 or 1000 is recognised before the price reverts."""
    frames = clean_frames()
    multiply(slice(60, None), 0.1)(frames)
    assert verdict("bars", "unit_error", frames).passed
    assert verdict("bars", "jump", frames).rows.tolist() == [60]


def test_a_spike_and_its_reversal_are_not_flagged_as_jumps_too() -> None:
    frames = clean_frames()
    multiply(slice(60, 60), 100.0)(frames)
    assert verdict("bars", "jump", frames).passed


def test_jumps_are_judged_by_earlier_bars_only() -> None:
    """As many small as large returns come before it: one more large one, its own or a later one, would hide it."""
    moves = np.concatenate([np.tile([0.001, 0.1], 10) * np.tile([1, 1, -1, -1], 5), [1.2], np.full(10, 0.1)])
    close = 50 * np.exp(np.cumsum([0.0, *moves]))
    frames = {**clean_frames(), "bars": bars(len(close)).assign(open=close, high=close, low=close, close=close)}
    assert verdict("bars", "jump", frames).rows.tolist() == [21]


def test_a_jump_needs_twenty_returns_before_it() -> None:
    early = clean_frames()
    late = clean_frames()
    multiply(slice(20, None), 1.5)(early)
    multiply(slice(21, None), 1.5)(late)
    assert verdict("bars", "jump", early).passed
    assert verdict("bars", "jump", late).rows.tolist() == [21]


def accepted_and_delta(n: int) -> tuple[pd.DataFrame, Frames]:
    """Bars that earlier nights accepted, and a delta with the last ``n`` bars."""
    all_bars = bars()
    frames = {**clean_frames(), "bars": all_bars.iloc[-n:].reset_index(drop=True)}
    return all_bars.iloc[:-n], frames


def test_one_new_bar_is_judged_by_the_accepted_bars_before_it() -> None:
    accepted, frames = accepted_and_delta(1)
    assert verdict("bars", "jump", frames, make_context(frames, accepted)).passed
    multiply(slice(0, 0), 1.5)(frames)
    assert verdict("bars", "jump", frames, make_context(frames, accepted)).rows.tolist() == [0]
    accepted, frames = accepted_and_delta(1)
    multiply(slice(0, 0), 100.0)(frames)
    assert verdict("bars", "unit_error", frames, make_context(frames, accepted)).rows.tolist() == [0]


def test_a_break_of_scale_fails_the_new_bars_when_the_older_ones_are_published() -> None:
    accepted, frames = accepted_and_delta(60)
    multiply(slice(None), 0.01)(frames)
    assert verdict("bars", "unit_error", frames, make_context(frames, accepted)).rows.tolist() == list(range(60))


def test_a_whole_history_restated_on_another_scale_is_no_fault() -> None:
    frames = {**clean_frames(), "corporate_actions": actions(ts=[FIRST + DAY * 60], kind=["split"], value=[4.0])}
    multiply(slice(None), 0.25)(frames)
    context = make_context(frames, accepted=bars())
    for rule in ("unit_error", "split_scale", "jump"):
        assert verdict("bars", rule, frames, context).passed


def test_a_split_before_the_series_is_not_looked_for() -> None:
    frames = clean_frames()
    multiply(slice(5, None), 0.5)(frames)
    frames["corporate_actions"] = actions(ts=[FIRST - DAY * 3], kind=["split"], value=[2.0])
    assert verdict("bars", "split_scale", frames).passed


def test_a_symbol_that_lists_later_has_no_gap_before_its_first_bar() -> None:
    frames = {**clean_frames(), "bars": pd.concat([bars(), bars(40, "NEW", FIRST + DAY * 60)], ignore_index=True)}
    context = replace(make_context(frames), first_bars={"AAA": FIRST, "NEW": FIRST + DAY * 60})
    assert verdict("bars", "gap", frames, context).passed


def test_a_symbol_has_no_gap_after_its_membership() -> None:
    frames = {**clean_frames(), "bars": pd.concat([bars(), bars(40, "OLD")], ignore_index=True)}
    context = replace(make_context(frames), memberships={"AAA": np.datetime64("NaT"), "OLD": FIRST + DAY * 41})
    result = verdict("bars", "gap", frames, context)
    assert [key["ts"][:10] for key in result.keys] == ["2024-02-10"]


def test_the_last_bar_may_be_missing_of_some_symbols_but_not_of_most() -> None:
    symbols = [bars(symbol=f"S{k}") for k in range(4)]
    frames = {**clean_frames(), "bars": pd.concat([symbols[0], symbols[1], *(s.iloc[:-1] for s in symbols[2:])])}
    frames["bars"] = frames["bars"].reset_index(drop=True)
    result = verdict("bars", "last_bar", frames)
    assert result.passed and len(result.rows) == 2 and "tolerated" in result.message
    drop("bars", 99)(frames)
    assert verdict("bars", "last_bar", frames).blocks


def test_a_universe_without_any_bar_is_blocked() -> None:
    frames = {table: frame.iloc[:0] for table, frame in clean_frames().items()}
    context = replace(
        make_context(frames), memberships=dict.fromkeys(("AAA", "BBB"), np.datetime64("NaT")), first_bars={}
    )
    assert [v.rule.name for v in inspect_delta(frames, context, 0.1).blocking] == ["last_bar"]


def many_symbols(bad_symbols: int) -> tuple[Frames, CheckContext]:
    """Ten symbols, of which the first ones have a bar of negative volume on each of 50 days."""
    frames = {**clean_frames(), "bars": pd.concat([bars(symbol=f"S{k}") for k in range(10)], ignore_index=True)}
    for k in range(bad_symbols):
        frames["bars"].loc[100 * k : 100 * k + 49, "volume"] = -1.0
    return frames, make_context(frames)


@pytest.mark.parametrize(("bad_symbols", "limit", "blocks"), [(1, 0.01, False), (2, 0.1, False), (3, 0.1, True)])
def test_many_quarantined_rows_block_but_one_bad_symbol_never_does(
    bad_symbols: int, limit: float, blocks: bool
) -> None:
    frames, context = many_symbols(bad_symbols)
    inspection = inspect_delta(frames, context, limit)
    assert [v.rule.name for v in inspection.blocking] == (["quarantined_share"] if blocks else [])
    assert len(inspection.failing("bars", QUARANTINE)) == 50 * bad_symbols


def test_a_quarantined_bar_counts_as_missing() -> None:
    frames = clean_frames()
    set_values("bars", 30, volume=-1.0)(frames)
    failed = {v.rule.name: v for v in inspect_delta(frames, make_context(frames), 0.1).verdicts if len(v.rows)}
    assert failed["gap"].keys == ({"symbol": "AAA", "ts": "2024-01-31T00:00:00Z"},)


def test_failing_rows_are_listed_by_policy() -> None:
    frames = clean_frames()
    set_values("bars", 7, volume=0.0)(frames)
    set_values("bars", 9, volume=-1.0, close=np.nan)(frames)
    inspection = inspect_delta(frames, make_context(frames), 0.1)
    names = {
        policy: {row: [rule.name for rule in rules] for row, rules in inspection.failing("bars", policy).items()}
        for policy in (QUARANTINE, FLAG)
    }
    assert names == {QUARANTINE: {9: ["null", "volume"]}, FLAG: {7: ["zero_volume"]}}


def test_at_most_a_hundred_keys_are_kept_and_all_rows_counted() -> None:
    frames = {**clean_frames(), "bars": bars(150).assign(volume=0.0)}
    result = verdict("bars", "zero_volume", frames, make_context(frames, until=FIRST + DAY * 150))
    assert (len(result.rows), len(result.keys), result.keys[0]["ts"]) == (150, 100, "2024-01-01T00:00:00Z")
    assert result.message.startswith("150 of 150 rows: volume is zero (AAA 2024-01-01T00:00:00Z, ")


def test_a_rule_whose_check_raises_blocks_and_the_others_are_still_evaluated(caplog: pytest.LogCaptureFixture) -> None:
    def failing_check(_: pd.DataFrame, __: CheckContext) -> np.ndarray:
        raise ZeroDivisionError("no way to tell")

    frames = clean_frames()
    set_values("bars", 7, volume=0.0)(frames)
    rules = [CheckRule("odd", "bars", FLAG, "is odd", "look", check=failing_check), rule_named("bars", "zero_volume")]
    with caplog.at_level(logging.ERROR):
        odd, volume = judge({"bars": frames["bars"]}, rules, make_context(frames))
    assert odd.blocks and "ZeroDivisionError: no way to tell" in odd.message
    assert volume.rows.tolist() == [7]
    assert "odd" in caplog.text


@pytest.mark.parametrize(
    "demand", [is_true("no_such_column"), ("ExpectColumnValuesToBeBetween", {"column": "symbol", "min_value": 0.0})]
)
def test_a_rule_that_fails_in_the_library_blocks_and_the_others_are_still_evaluated(demand: tuple) -> None:
    frames = clean_frames()
    set_values("bars", 7, volume=0.0)(frames)
    rules = [CheckRule("odd", "bars", FLAG, "is odd", "look", (demand,)), rule_named("bars", "zero_volume")]
    odd, volume = judge({"bars": frames["bars"]}, rules, make_context(frames))
    assert odd.blocks and odd.policy == BLOCK and "could not be evaluated" in odd.message
    assert volume.rows.tolist() == [7] and not volume.problem


def test_the_library_prints_nothing_leaves_no_file_and_opens_no_connection(tmp_path: Path) -> None:
    """No progress bar, warning or telemetry of it reaches the user's terminal or the network."""
    code = """
import logging, socket, sys
logging.basicConfig(level=logging.INFO)
def refuse(*arguments): raise SystemExit("a connection was opened")
socket.socket.connect = refuse
import pandas as pd
import warehouse.expectations as expectations
from warehouse.rules import BARS
assert "great_expectations" not in sys.modules, "the slow import must wait for the first use"
(rule,) = [rule for rule in BARS if rule.name == "volume"]
bars = pd.DataFrame({"symbol": ["A"], "ts": pd.to_datetime(["2024-01-01"]), "volume": [-1.0]})
(verdict,) = expectations.judge({"bars": bars}, [rule], None)
assert verdict.rows.tolist() == [0]
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
