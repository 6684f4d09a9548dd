"""The leaderboard of simulated portfolios and its storage: curves and positions by session, metrics by night."""

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
from models.scoring.simulate import Sessions
from models.sessions import sessions_per_year
from tasks.forecasts import Contender, utc_datetime
from tasks.night import Night
from warehouse.tables import append, read_query, replace_slice

logger = logging.getLogger(__name__)

FILL = "next_open"
BENCHMARK_RULE = "buy_and_hold"
SAME = (1e-9, 1e-12)  # relative and absolute: a stored number this close to the recomputed one is the same number
BACKTEST = pa.schema(
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
class Run:
    """A simulated portfolio: its sessions (d,), the bars ``ts`` that end them, and the weights (d, n) decided there.

    ``coverage`` is the share of the funding settlements on record, NaN where there is no funding.
    """

    contender: Contender
    backtest_id: str
    limits: Row
    ts: np.ndarray
    sessions: Sessions
    symbols: tuple[str, ...]
    weights: np.ndarray
    coverage: float


def leaderboard(night: Night, runs: Sequence[Run], risk_free: float) -> list[Row]:
    """One row per run, ranked by Sharpe; runs without a Sharpe come last."""
    rows = [_score(night, run, risk_free) for run in runs]
    covered = min((run.coverage for run in runs if run.coverage < 1), default=1)
    if covered < 1:
        logger.warning(
            "%s is scored with %.0f%% of its funding settlements; the others are not on record and not charged",
            night.universe.name,
            100 * covered,
        )
    benchmark = next((row["annual_return"] for row in rows if row["model"] == BENCHMARK_RULE), math.nan)
    rows.sort(key=lambda row: (math.inf if math.isnan(row["sharpe"]) else -row["sharpe"], row["model"]))
    for rank, row in enumerate(rows, start=1):
        row |= {"rank": rank, "excess_annual_return": row["annual_return"] - benchmark}
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]


def _score(night: Night, run: Run, risk_free: float) -> Row:
    """The leaderboard row of one run, without the first session, which ends with the first decision."""
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
        "funding_coverage": run.coverage,
        "sessions": len(days) - 1,
        "first_session": days[min(1, len(days) - 1)],
        "last_session": days[-1],
        "fill": FILL,
        "run_id": night.run_id,
    }


def store_runs(night: Night, runs: Sequence[Run], board: list[Row]) -> None:
    """Writes the night's runs and its leaderboard in one transaction."""
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


def _store_run(con: duckdb.DuckDBPyConnection, night: Night, run: Run) -> None:
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
        append(con, "store.backtests", pa.Table.from_pylist([row], BACKTEST), **keys, run_id=night.run_id)
    for name, rows in (("equity", _equity_rows(run)), ("positions", _position_rows(run))):
        _store_new(con, night, name, rows, run.ts, keys)


def _equity_rows(run: Run) -> pa.Table:
    sessions = run.sessions
    columns = {
        "session": pa.array(run.ts.astype("datetime64[D]")),
        "equity": sessions.equity,
        "session_return": sessions.returns,
        "drawdown": sessions.drawdown,
        "gross_exposure": sessions.gross,
        "net_exposure": sessions.net,
        "turnover": sessions.turnover,
        "cost": sessions.cost,
        "funding": sessions.funding,
    }
    return pa.table({"ts": pa.array(run.ts, pa.timestamp("us")).cast(TS_TYPE), **columns})


def _position_rows(run: Run) -> pa.Table:
    """Weights other than zero, by (ts, symbol)."""
    i, j = np.nonzero(np.nan_to_num(run.weights))
    return pa.table(
        {
            "ts": pa.array(run.ts[i], pa.timestamp("us")).cast(TS_TYPE),
            "symbol": pa.array(np.asarray(run.symbols, dtype=object)[j], pa.string()),
            "weight": run.weights[i, j],
        }
    )


def _store_new(
    con: duckdb.DuckDBPyConnection, night: Night, name: str, rows: pa.Table, ts: np.ndarray, keys: Row
) -> None:
    """Writes ``rows`` from the first one on that is new or differs from the stored one; earlier rows stay unchanged.

    Rows after the last of ``ts`` stay too, so that an earlier night run again does not change later ones.
    """
    end = utc_datetime(ts[-1]) + timedelta(microseconds=1)
    stored = read_query(con, f"{name}_between", **keys, start=utc_datetime(ts[0]), end=end)
    same = _same_rows(stored, rows)
    if same == stored.num_rows == rows.num_rows:
        return
    since = min(t["ts"][same].as_py() for t in (stored, rows) if t.num_rows > same)
    if stored.num_rows > same:
        logger.warning("%s: bars were restated, the %s since %s change", keys["backtest_id"], name, since)
    read_query(con, f"delete_{name}_between", **keys, start=since, end=end)
    table = {"equity": "store.equity_curves", "positions": "store.positions"}[name]
    append(con, table, rows.filter(pc.greater_equal(rows["ts"], since)), **keys, run_id=night.run_id)


def _same_rows(stored: pa.Table, rows: pa.Table) -> int:
    """Number of leading rows that are the same in both, compared in the columns of ``rows``."""
    length = min(stored.num_rows, rows.num_rows)
    same = np.ones(length, dtype=bool)
    for name in rows.column_names:
        a, b = (t[name][:length].to_numpy(zero_copy_only=False) for t in (stored, rows))
        same &= np.isclose(a, b, *SAME) if a.dtype.kind == "f" else a == b
    return length if same.all() else int(same.argmin())
