"""The leaderboard of simulated portfolios, and its storage: curves and positions by session, metrics by night.

A night is the run for one as-of date. Glossary: d sessions (a session is a day, or one bar of one-second bars), n
assets.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.panel import TS_TYPE
from models.scoring import metrics
from models.scoring.simulate import SessionResults
from models.sessions import sessions_per_year
from tasks.forecasts import Contender, utc_datetime
from tasks.night import Night
from warehouse.tables import append, read_query, replace_slice

logger = logging.getLogger(__name__)

FILL = "next_open"  # a decision is filled at the open of the next bar
BENCHMARK_RULE = "buy_and_hold"
# tolerances of np.isclose within which a recomputed number is the same as the stored one
SAME_RTOL = 1e-9
SAME_ATOL = 1e-12
BACKTEST_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("trial_ids", pa.list_(pa.string())),
        ("fill", pa.string()),
        ("commission_bps", pa.float64()),
        ("slippage_bps", pa.float64()),
        ("limits", pa.string()),
    ]
)
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class BacktestRun:
    """A simulated portfolio over d sessions.

    ``ts`` (d,) datetime64[us], UTC, are the open times of the bars that end the sessions. ``weights`` (d, n) are the
    target weights decided at the close of these bars, as fractions of equity; in a row of NaN the portfolio keeps what
    it holds. ``limits`` are the portfolio limits as stored in JSON, empty for a rule. ``funding_coverage`` is the
    fraction of the due funding settlements that are on record, NaN in a market without funding.
    """

    contender: Contender
    backtest_id: str
    limits: Row
    ts: np.ndarray
    sessions: SessionResults
    symbols: tuple[str, ...]
    weights: np.ndarray
    funding_coverage: float


def leaderboard(night: Night, runs: Sequence[BacktestRun], risk_free: float) -> list[Row]:
    """One row per run, ranked by Sharpe ratio, ties by model name; runs without a Sharpe come last.

    ``risk_free`` is a rate per year. ``excess_annual_return`` is the annual return minus that of buy-and-hold. NaN
    becomes None. Logs a warning when funding settlements are missing.
    """
    rows = [_leaderboard_row(night, run, risk_free) for run in runs]
    lowest_coverage = min((run.funding_coverage for run in runs if run.funding_coverage < 1), default=1)
    if lowest_coverage < 1:
        logger.warning(
            "%s is scored with %.0f%% of its funding settlements; the others are not on record and not charged",
            night.universe.name,
            100 * lowest_coverage,
        )
    benchmark_return = next((row["annual_return"] for row in rows if row["model"] == BENCHMARK_RULE), math.nan)
    rows.sort(key=lambda row: (math.inf if math.isnan(row["sharpe"]) else -row["sharpe"], row["model"]))
    for rank, row in enumerate(rows, start=1):
        row |= {"rank": rank, "excess_annual_return": row["annual_return"] - benchmark_return}
    return [{name: _nan_to_none(value) for name, value in row.items()} for row in rows]


def _nan_to_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _leaderboard_row(night: Night, run: BacktestRun, risk_free: float) -> Row:
    """The leaderboard row of one run, without rank and excess_annual_return.

    The first session is left out: it ends with the first decision, so the portfolio holds nothing in it.
    """
    periods = sessions_per_year(night.universe.calendar, night.universe.interval)
    sessions = run.sessions
    days = run.ts.astype("datetime64[D]").tolist()
    return {
        "model": run.contender.model,
        "kind": run.contender.kind,
        "backtest_id": run.backtest_id,
        **metrics.summary(sessions.returns[1:], periods, risk_free),
        "annual_turnover": metrics.turnover(sessions.turnover[1:], periods),
        "annual_cost": metrics.annual_sum(sessions.cost[1:], periods),
        "funding_coverage": run.funding_coverage,
        "sessions": len(days) - 1,
        "first_session": days[min(1, len(days) - 1)],
        "last_session": days[-1],
        "fill": FILL,
        "run_id": night.run_id,
    }


def store_runs(night: Night, runs: Sequence[BacktestRun], board: list[Row]) -> None:
    """Writes the night's runs, metrics and leaderboard in one transaction; ``board`` comes from ``leaderboard``.

    The metrics are the float columns of ``board``, one row per run and metric.
    """
    metric_names = [name for name, value in board[0].items() if value is None or isinstance(value, float)]
    metric_rows = [
        {"backtest_id": row["backtest_id"], "metric": name, "value": row[name]}
        for row in board
        for name in metric_names
    ]
    keys = {"night": night.as_of, **night.slice}
    with night.warehouse.write(f"backtests of {night.universe.name}") as con:
        for run in runs:
            _store_run(con, night, run)
        metrics_table = pa.Table.from_pylist([{**row, "run_id": night.run_id} for row in metric_rows])
        replace_slice(con, "store.metrics", metrics_table, **keys)
        replace_slice(con, "store.leaderboard", pa.Table.from_pylist(board), **keys)


def _store_run(con: duckdb.DuckDBPyConnection, night: Night, run: BacktestRun) -> None:
    """Writes the run's row of store.backtests, unless it is stored, and its new or changed curve and position rows."""
    keys = {**night.slice, "backtest_id": run.backtest_id}
    if not read_query(con, "backtest_exists", **keys)["is_stored"][0].as_py():
        row = {
            "model": run.contender.model,
            "trial_ids": list(run.contender.trial_ids),
            "fill": FILL,
            "commission_bps": night.universe.commission_bps,
            "slippage_bps": night.universe.slippage_bps,
            "limits": json.dumps(run.limits),
        }
        append(con, "store.backtests", pa.Table.from_pylist([row], BACKTEST_SCHEMA), **keys, run_id=night.run_id)
    for name, rows in (("equity", _equity_rows(run)), ("positions", _position_rows(run))):
        _replace_from_first_change(con, night, name, rows, run.ts, keys)


def _equity_rows(run: BacktestRun) -> pa.Table:
    """Rows of store.equity_curves without their keys, one per session."""
    sessions = run.sessions
    columns = {
        "session": pa.array(run.ts.astype("datetime64[D]")),
        "equity": sessions.equity,
        "session_return": sessions.returns,
        "drawdown": sessions.drawdown,
        "gross_exposure": sessions.gross_exposure,
        "net_exposure": sessions.net_exposure,
        "turnover": sessions.turnover,
        "cost": sessions.cost,
        "funding": sessions.funding,
    }
    return pa.table({"ts": pa.array(run.ts, pa.timestamp("us")).cast(TS_TYPE), **columns})


def _position_rows(run: BacktestRun) -> pa.Table:
    """Rows of store.positions without their keys: the weights other than zero and NaN, by ts and asset."""
    session_index, asset_index = np.nonzero(np.nan_to_num(run.weights))
    return pa.table(
        {
            "ts": pa.array(run.ts[session_index], pa.timestamp("us")).cast(TS_TYPE),
            "symbol": pa.array(np.asarray(run.symbols, dtype=object)[asset_index], pa.string()),
            "weight": run.weights[session_index, asset_index],
        }
    )


def _replace_from_first_change(
    con: duckdb.DuckDBPyConnection, night: Night, name: str, rows: pa.Table, ts: np.ndarray, keys: Row
) -> None:
    """Writes ``rows`` from the first one on that is not stored or differs from its stored row; replaces those stored.

    ``name`` is "equity" or "positions"; ``ts`` (d,) are the open times of the run. Stored rows before the first change
    stay. Stored rows after the last of ``ts`` also stay, so that an earlier night that is run again does not change
    the rows of later nights.
    """
    end = utc_datetime(ts[-1]) + timedelta(microseconds=1)
    stored = read_query(con, f"{name}_between", **keys, start=utc_datetime(ts[0]), end=end)
    n_same = _count_same_rows(stored, rows)
    if n_same == stored.num_rows == rows.num_rows:
        return
    changed_since = min(t["ts"][n_same].as_py() for t in (stored, rows) if t.num_rows > n_same)
    if stored.num_rows > n_same:
        logger.warning("%s: bars were restated, the %s since %s change", keys["backtest_id"], name, changed_since)
    read_query(con, f"delete_{name}_between", **keys, start=changed_since, end=end)
    table = {"equity": "store.equity_curves", "positions": "store.positions"}[name]
    append(con, table, rows.filter(pc.greater_equal(rows["ts"], changed_since)), **keys, run_id=night.run_id)


def _count_same_rows(stored: pa.Table, rows: pa.Table) -> int:
    """Number of rows before the first difference between the tables, compared in the columns of ``rows``."""
    n_rows = min(stored.num_rows, rows.num_rows)
    is_same = np.ones(n_rows, dtype=bool)
    for name in rows.column_names:
        stored_values = stored[name][:n_rows].to_numpy(zero_copy_only=False)
        new_values = rows[name][:n_rows].to_numpy(zero_copy_only=False)
        is_same &= (
            np.isclose(stored_values, new_values, SAME_RTOL, SAME_ATOL)
            if stored_values.dtype.kind == "f"
            else stored_values == new_values
        )
    return n_rows if is_same.all() else int(is_same.argmin())
