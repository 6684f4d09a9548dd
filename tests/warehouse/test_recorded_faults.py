"""The data rules on recordings: Yahoo's real faults are caught, the clean tape passes with few flags.

No rule can recognise faults that nothing else in the row contradicts: a dividend that is missing, made up, or off by a
factor from the first one on; a wrong adjusted close, which nothing here is computed from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from warehouse.expectations import inspect_delta, judge
from warehouse.row_checks import CheckContext
from warehouse.rules import RULES, TABLES

DAY = np.timedelta64(1, "D")
TYPES = {"symbol": "str", "interval": "str", "kind": "str", "ts": "datetime64[us]"}
COLUMNS = {
    "bars": ["symbol", "interval", "ts", "open", "high", "low", "close", "volume"],
    "corporate_actions": ["symbol", "ts", "kind", "value"],
    "funding_rates": ["symbol", "ts", "rate"],
}
CAUGHT = {  # file: table, rule, failing rows
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
UNMARKED_UNIT_FAULTS = {  # in files that Yahoo's users report for their dividends
    "CLC-L-1d-bad-div": 6,
    "LSC-L-1d-bad-div": 110,
    "NVT-L-1d-bad-div": 35,
}


def table(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of the table ``name`` in ``frame``, with its types; NaN where ``frame`` lacks one."""
    rows = frame.reindex(columns=COLUMNS[name])
    return rows.astype({column: TYPES.get(column, float) for column in rows}).reset_index(drop=True)


def first_night(
    bars: pd.DataFrame, actions: pd.DataFrame, funding: pd.DataFrame, step: np.timedelta64
) -> tuple[dict[str, pd.DataFrame], CheckContext]:
    """All rows as the delta of a first night; the expected opens are those of the bars themselves."""
    delta = dict(zip(TABLES, map(table, TABLES, (bars, actions, funding)), strict=True))
    ts = delta["bars"]["ts"]
    no_rows = pd.DataFrame()
    return delta, CheckContext(
        clock=ts.to_numpy().max() + step,
        interval=delta["bars"]["interval"][0],
        opens=np.unique(ts),
        closed_at=ts.to_numpy() + step,
        memberships=dict.fromkeys(delta["bars"]["symbol"].unique(), np.datetime64("NaT")),
        first_bars=ts.groupby(delta["bars"]["symbol"]).min().to_dict(),
        bars=table("bars", no_rows)[["symbol", "ts", "close"]],
        actions=table("corporate_actions", no_rows),
        settlements=table("funding_rates", no_rows)[["symbol", "ts"]],
        delta_bars=delta["bars"],
        delta_actions=delta["corporate_actions"],
    )


def failing_rows(path: Path, table_name: str, rule_name: str) -> int:
    """Number of rows of one file of Yahoo's prices that fail one rule."""
    rows = pd.read_csv(path).rename(columns=str.lower)
    ts = pd.to_datetime(rows.iloc[:, 0], utc=True).dt.tz_localize(None)
    rows = rows.assign(symbol="X", interval="1d", ts=ts).sort_values("ts")
    columns = {"dividends": "dividend", "stock splits": "split"}
    actions = pd.concat([rows.assign(kind=kind, value=rows[column]) for column, kind in columns.items()])
    delta, context = first_night(rows, actions[actions["value"] != 0], pd.DataFrame(), np.timedelta64(1, "h"))
    (rule,) = [rule for rule in RULES if (rule.table, rule.name) == (table_name, rule_name)]
    (verdict,) = judge({table_name: delta[table_name]}, [rule], context)
    assert not verdict.problem
    return len(verdict.rows)


@pytest.mark.parametrize("name", CAUGHT)
def test_a_real_fault_of_yahoo_is_caught_and_the_repaired_file_passes(shared_data: Path, name: str) -> None:
    table_name, rule, rows = CAUGHT[name]
    folder = shared_data / "wire" / "yahoo_bad_data"
    assert failing_rows(folder / f"{name}.csv", table_name, rule) == rows
    assert failing_rows(folder / f"{name}-fixed.csv", table_name, rule) == 0


@pytest.mark.parametrize("name", UNMARKED_UNIT_FAULTS)
def test_prices_off_by_a_hundred_are_found_in_files_reported_for_other_faults(shared_data: Path, name: str) -> None:
    path = shared_data / "wire" / "yahoo_bad_data" / f"{name}-fixed.csv"
    assert failing_rows(path, "bars", "unit_error") == UNMARKED_UNIT_FAULTS[name]


@pytest.mark.parametrize("kind", ["yahoo", "bybit"])
def test_the_clean_tape_passes_with_few_flags(shared_data: Path, kind: str) -> None:
    """Every recorded bar: nothing blocked, nothing quarantined, about one bar in a thousand flagged as a jump."""
    tape = shared_data / "tape" / kind
    if kind == "yahoo":
        bars = pd.read_parquet(tape / "bars_1d.parquet").assign(interval="1d")
        bars["ts"] = pd.to_datetime(bars["date"])
        step = DAY
        funding = pd.DataFrame()
    else:
        bars = pd.read_parquet(tape / "klines_60.parquet").assign(interval="1h")
        funding = pd.read_parquet(tape / "funding.parquet").rename(columns={"funding_rate": "rate"})
        bars["ts"] = bars["ts"].dt.tz_localize(None)
        funding["ts"] = funding["ts"].dt.tz_localize(None)
        step = np.timedelta64(1, "h")
    inspection = inspect_delta(*first_night(bars, pd.DataFrame(), funding, step), max_quarantined_fraction=1.0)
    assert not any(v.problem for v in inspection.verdicts)
    failed = {v.rule.name: len(v.rows) for v in inspection.verdicts if not v.passed}
    assert 0 < failed.pop("jump") < 0.0015 * len(bars)
    assert set(failed) <= {"gap"}  # XRPUSDT ends half a year before the others
