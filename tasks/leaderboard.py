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
# a stored number and the recomputed one are the same if they differ by less
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

    ``ts`` (d,) are the open times of the bars that end the sessions. ``weights`` (d, n) are the target weights decided
    at the close of these bars; a row of NaN is no decision. ``funding_coverage`` is the share of the funding
    settlements on record, NaN in a market without funding.
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

    ``excess_annual_return`` is measured against buy-and-hold. NaN becomes None. Warns when funding is incomplete.
    """
    rows = [_leaderboard_row(night, run, risk_free) for run in runs]
    lowest_coverage = min((run.funding_coverage for run in runs if run.funding_coverage < 1), default=1)
    if lowest_coverage < 1:
        logger.warning(
            "%s is scored with %.0f%% of its funding settlements; the others are not on record and not charged",
            night.universe.name,
            100 * lowest_coverage,
        )
    benchmark = next((row["annual_return"] for row in rows if row["model"] == BENCHMARK_RULE), math.nan)
    rows.sort(key=lambda row: (math.inf if math.isnan(row["sharpe"]) else -row["sharpe"], row["model"]))
    for rank, row in enumerate(rows, start=1):
        row |= {"rank": rank, "excess_annual_return": row["annual_return"] - benchmark}
    return [{name: _nan_to_none(value) for name, value in row.items()} for row in rows]


def _nan_to_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _leaderboard_row(night: Night, run: BacktestRun, risk_free: float) -> Row:
    """The leaderboard row of one run, without its rank.

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
    """Writes the night's runs, metrics and leaderboard in one transaction; ``board`` comes from ``leaderboard``."""
    metric_names = [name for name, value in board[0].items() if value is None or isinstance(value, float)]
    rows = [
        {"backtest_id": row["backtest_id"], "metric": name, "value": row[name]}
        for row in board
        for name in metric_names
    ]
    keys = {"night": night.as_of, **night.slice}
    with night.warehouse.write(f"backtests of {night.universe.name}") as con:
        for run in runs:
            _store_run(con, night, run)
        table = pa.Table.from_pylist([{**row, "run_id": night.run_id} for row in rows])
        replace_slice(con, "store.metrics", table, **keys)
        replace_slice(con, "store.leaderboard", pa.Table.from_pylist(board), **keys)


def _store_run(con: duckdb.DuckDBPyConnection, night: Night, run: BacktestRun) -> None:
    """Writes the run's row of store.backtests, unless it is stored, and its new or changed curve and positions."""
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
        _store_new(con, night, name, rows, run.ts, keys)


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
    session, asset = np.nonzero(np.nan_to_num(run.weights))
    return pa.table(
        {
            "ts": pa.array(run.ts[session], pa.timestamp("us")).cast(TS_TYPE),
            "symbol": pa.array(np.asarray(run.symbols, dtype=object)[asset], pa.string()),
            "weight": run.weights[session, asset],
        }
    )


def _store_new(
    con: duckdb.DuckDBPyConnection, night: Night, name: str, rows: pa.Table, ts: np.ndarray, keys: Row
) -> None:
    """Writes ``rows`` from the first row on that is new or differs from its stored row.

    Stored rows before that row stay unchanged. Stored rows after the last of ``ts`` also stay, so that an earlier night
    that is run again does not change the rows of later nights. ``name`` is "equity" or "positions".
    """
    end = utc_datetime(ts[-1]) + timedelta(microseconds=1)
    stored = read_query(con, f"{name}_between", **keys, start=utc_datetime(ts[0]), end=end)
    n_same = _count_same_rows(stored, rows)
    if n_same == stored.num_rows == rows.num_rows:
        return
    since = min(t["ts"][n_same].as_py() for t in (stored, rows) if t.num_rows > n_same)
    if stored.num_rows > n_same:
        logger.warning("%s: bars were restated, the %s since %s change", keys["backtest_id"], name, since)
    read_query(con, f"delete_{name}_between", **keys, start=since, end=end)
    table = {"equity": "store.equity_curves", "positions": "store.positions"}[name]
    append(con, table, rows.filter(pc.greater_equal(rows["ts"], since)), **keys, run_id=night.run_id)


def _count_same_rows(stored: pa.Table, rows: pa.Table) -> int:
    """Number of leading rows that are the same in both tables, compared in the columns of ``rows``."""
    n_rows = min(stored.num_rows, rows.num_rows)
    is_same = np.ones(n_rows, dtype=bool)
    for name in rows.column_names:
        old = stored[name][:n_rows].to_numpy(zero_copy_only=False)
        new = rows[name][:n_rows].to_numpy(zero_copy_only=False)
        is_same &= np.isclose(old, new, SAME_RTOL, SAME_ATOL) if old.dtype.kind == "f" else old == new
    return n_rows if is_same.all() else int(is_same.argmin())
