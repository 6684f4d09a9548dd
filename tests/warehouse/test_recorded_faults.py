"""The data rules on recorded market data: real faults of Yahoo are caught, and the clean tape passes with few flags.

The tape is a folder of recorded market data. No rule can recognise a fault that agrees with all other data: a dividend
that is missing or invented, or dividends that have all been wrong by the same factor. Adjusted closes are not checked,
because nothing is computed from them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from warehouse.expectations import evaluate_rules, inspect_delta
from warehouse.row_checks import CheckContext
from warehouse.rules import RULES, TABLES

DAY = np.timedelta64(1, "D")
COLUMN_TYPES = {"symbol": "str", "interval": "str", "kind": "str", "ts": "datetime64[us]"}
COLUMNS = {
    "bars": ["symbol", "interval", "ts", "open", "high", "low", "close", "volume"],
    "corporate_actions": ["symbol", "ts", "kind", "value"],
    "funding_rates": ["symbol", "ts", "rate"],
}
CAUGHT_FAULTS = {  # file: table, rule, number of failing rows
    "AET-L-1d-100x-error": ("bars", "unit_error", 9),
    "ASAI-L-1h-bad-unit": ("bars", "unit_error", 1),
    "SSW-JO-1d-100x-error": ("bars", "unit_error", 7),
    "ALPHA-PA-1d-bad-stock-split": ("bars", "unit_error", 1),
    "LA-V-1d-bad-stock-split": ("bars", "unit_error", 1),
    "MOB-ST-1d-bad-stock-split": ("bars", "unit_error", 1),
    "4063-T-1d-bad-stock-split": ("bars", "split_scale", 9),
    "DEX-AX-1d-bad-stock-split": ("bars", "split_scale", 8),
    "AV-L-1wk-bad-stock-split": ("bars", "split_scale", 22),
    "SPM-MI-1d-bad-stock-split": ("bars", "jump", 1),
    "ELCO-L-1d-bad-div": ("corporate_actions", "dividend_scale", 5),
    "PSH-L-1d-bad-div": ("corporate_actions", "dividend_scale", 11),
    "REL-L-1d-bad-div": ("corporate_actions", "dividend_scale", 6),
    "TEM-L-1d-bad-div": ("corporate_actions", "dividend_size", 1),
    "LSC-L-1d-bad-div": ("corporate_actions", "dividend_size", 4),
}
UNREPORTED_UNIT_FAULTS = {  # file reported for its dividends: number of bars in a wrong currency unit
    "CLC-L-1d-bad-div": 6,
    "LSC-L-1d-bad-div": 110,
    "NVT-L-1d-bad-div": 35,
}


def to_table(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with the columns and types of the warehouse table ``name``; a missing column is NaN."""
    rows = frame.reindex(columns=COLUMNS[name])
    return rows.astype({column: COLUMN_TYPES.get(column, float) for column in rows}).reset_index(drop=True)


def first_night(
    bars: pd.DataFrame, actions: pd.DataFrame, funding: pd.DataFrame, bar_length: np.timedelta64
) -> tuple[dict[str, pd.DataFrame], CheckContext]:
    """The delta (rows to check) and the context of a first night that received all rows.

    Bars are expected at every ts that any symbol has: a bar is missing where a symbol lacks a ts of another symbol.
    """
    delta = dict(zip(TABLES, map(to_table, TABLES, (bars, actions, funding)), strict=True))
    ts = delta["bars"]["ts"]
    no_rows = pd.DataFrame()
    return delta, CheckContext(
        clock=ts.to_numpy().max() + bar_length,
        interval=delta["bars"]["interval"][0],
        open_times=np.unique(ts),
        close_times=ts.to_numpy() + bar_length,
        membership_ends=dict.fromkeys(delta["bars"]["symbol"].unique(), np.datetime64("NaT")),
        first_bars=ts.groupby(delta["bars"]["symbol"]).min().to_dict(),
        accepted_bars=to_table("bars", no_rows)[["symbol", "ts", "close"]],
        accepted_actions=to_table("corporate_actions", no_rows),
        accepted_settlements=to_table("funding_rates", no_rows)[["symbol", "ts"]],
        delta_bars=delta["bars"],
        delta_actions=delta["corporate_actions"],
    )


def count_failing_rows(path: Path, table_name: str, rule_name: str) -> int:
    """Number of rows of one CSV file of Yahoo's prices that fail one rule; the first column is the time."""
    rows = pd.read_csv(path).rename(columns=str.lower)
    ts = pd.to_datetime(rows.iloc[:, 0], utc=True).dt.tz_localize(None)
    rows = rows.assign(symbol="X", interval="1d", ts=ts).sort_values("ts")
    kinds = {"dividends": "dividend", "stock splits": "split"}  # column of the file: kind of action
    actions = pd.concat([rows.assign(kind=kind, value=rows[column]) for column, kind in kinds.items()])
    delta, context = first_night(rows, actions[actions["value"] != 0], pd.DataFrame(), np.timedelta64(1, "h"))
    (rule,) = [rule for rule in RULES if (rule.table, rule.name) == (table_name, rule_name)]
    (verdict,) = evaluate_rules({table_name: delta[table_name]}, [rule], context)
    assert not verdict.problem
    return len(verdict.failing_positions)


@pytest.mark.parametrize("name", CAUGHT_FAULTS)
def test_a_real_fault_of_yahoo_is_caught_and_the_repaired_file_passes(shared_data: Path, name: str) -> None:
    table_name, rule_name, n_failing = CAUGHT_FAULTS[name]
    folder = shared_data / "wire" / "yahoo_bad_data"
    assert count_failing_rows(folder / f"{name}.csv", table_name, rule_name) == n_failing
    assert count_failing_rows(folder / f"{name}-fixed.csv", table_name, rule_name) == 0


@pytest.mark.parametrize("name", UNREPORTED_UNIT_FAULTS)
def test_prices_off_by_a_hundred_are_found_in_files_reported_for_other_faults(shared_data: Path, name: str) -> None:
    path = shared_data / "wire" / "yahoo_bad_data" / f"{name}-fixed.csv"
    assert count_failing_rows(path, "bars", "unit_error") == UNREPORTED_UNIT_FAULTS[name]


@pytest.mark.parametrize("provider", ["yahoo", "bybit"])
def test_the_clean_tape_passes_with_few_flags(shared_data: Path, provider: str) -> None:
    """Of every recorded bar, none is blocked or quarantined, and about one in a thousand is flagged as a jump."""
    tape = shared_data / "tape" / provider
    if provider == "yahoo":
        bars = pd.read_parquet(tape / "bars_1d.parquet").assign(interval="1d")
        bars["ts"] = pd.to_datetime(bars["date"])
        bar_length = DAY
        funding = pd.DataFrame()
    else:
        bars = pd.read_parquet(tape / "klines_60.parquet").assign(interval="1h")
        funding = pd.read_parquet(tape / "funding.parquet").rename(columns={"funding_rate": "rate"})
        bars["ts"] = bars["ts"].dt.tz_localize(None)
        funding["ts"] = funding["ts"].dt.tz_localize(None)
        bar_length = np.timedelta64(1, "h")
    delta, context = first_night(bars, pd.DataFrame(), funding, bar_length)
    inspection = inspect_delta(delta, context, max_quarantined_fraction=1.0)
    assert not any(v.problem for v in inspection.verdicts)
    n_failing = {v.rule.name: len(v.failing_positions) for v in inspection.verdicts if not v.passed}
    assert 0 < n_failing.pop("jump") < 0.0015 * len(bars)
    assert set(n_failing) <= {"gap"}  # XRPUSDT ends half a year before the others
