"""Validate: checks the night's raw rows by the rules of warehouse/rules.py, and accepts good rows into the store."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.panel import TS_TYPE
from models.sessions import INTERVALS, bar_closes, bar_opens, midnight, session_dates
from tasks.errors import NightBlockedError
from tasks.night import Night
from tasks.panels import instant
from warehouse.expectations import Inspection, inspect_delta
from warehouse.price_series import RETURN_WINDOW
from warehouse.row_checks import CheckContext
from warehouse.rules import FLAG, QUARANTINE, TABLES
from warehouse.tables import read_query, replace_slice, upsert

logger = logging.getLogger(__name__)

GAP_SESSIONS = 10  # a missing bar is reported for so many sessions, or as far back as the delta reaches
BEYOND_CLOCK = timedelta(days=7)  # how far past the clock the calendar reaches, to tell early bars from stray ones
ROW_KEYS = {
    "bars": ("symbol", "interval", "ts"),
    "corporate_actions": ("symbol", "ts", "kind"),
    "funding_rates": ("symbol", "ts"),
}
QUARANTINE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("table_name", "symbol", "rule", "reason", "contents")),
        *((name, TS_TYPE) for name in ("ts", "fetched_at")),
    ]
)
Delta = Mapping[str, pa.Table]


@dataclass(frozen=True)
class ValidationReport:
    """Counts of the night's delta: rows checked, accepted, of these flagged, quarantined; and the rules that failed."""

    checked: int
    accepted: int
    flagged: int
    quarantined: int
    failed: tuple[str, ...]


@task(name="validate night", cache_policy=NO_CACHE, persist_result=False)
def validate_night(night: Night, max_quarantined_fraction: float = 0.2) -> ValidationReport:
    """Writes the verdicts on the night's delta, accepts its good rows, and returns the counts.

    The delta consists of the raw rows of this night and of earlier nights that were never accepted. Raises
    NightBlockedError when a blocking rule fails: then the verdicts are written and no row is accepted. A second run
    writes the same rows.
    """
    delta, context = _read(night)
    frames = {table: _frame(rows) for table, rows in delta.items()}
    inspection = inspect_delta(frames, context, max_quarantined_fraction)
    report = _write(night, delta, inspection)
    if inspection.blocking:
        reasons = "; ".join(f"{v.rule.table} {v.rule.name}: {v.message}" for v in inspection.blocking)
        raise NightBlockedError(
            f"the {night.source} night {night.as_of} of {night.universe.name} is blocked. {reasons}"
        )
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def _read(night: Night) -> tuple[dict[str, pa.Table], CheckContext]:
    """The delta by table, and the stored rows that the rules compare it with."""
    keys = night.slice
    interval = night.universe.interval
    with night.warehouse.read() as con:
        runs = read_query(con, "pending_runs", night=night.as_of, run_id=night.run_id, **keys)["run_id"].to_pylist()
        delta = {table: read_query(con, f"pending_{table}", run_ids=runs, **keys) for table in TABLES}
        bars = _frame(delta["bars"])
        start = _checked_from(night, bars["ts"].to_numpy())
        before = start - RETURN_WINDOW * 2 * INTERVALS[interval].item() - timedelta(days=7)
        received = {"night": night.as_of, "clock": night.clock, "run_ids": runs, **keys}
        known_bars = read_query(con, "known_bars", start=before, interval=interval, **received)
        actions = read_query(con, "known_corporate_actions", **received)
        settlements = read_query(con, "known_settlements", **received)
        history = {"start": night.universe.history_start, "clock": night.clock, "interval": interval, **keys}
        first_bars = _frame(read_query(con, "first_bars", **history))
    opens, closed_at = _calendar(night, start, bars["ts"].to_numpy())
    context = CheckContext(
        clock=instant(night.clock),
        interval=interval,
        opens=opens,
        closed_at=closed_at,
        memberships=_memberships(night),
        first_bars=dict(zip(first_bars["symbol"], first_bars["ts"].to_numpy(), strict=True)),
        bars=_frame(known_bars),
        actions=_frame(actions),
        settlements=_frame(settlements),
        delta_bars=bars,
        delta_actions=_frame(delta["corporate_actions"]),
    )
    return delta, context


def _checked_from(night: Night, ts: np.ndarray) -> datetime:
    """Start of the checked window: the last sessions, or earlier the delta's first bar, but within the history."""
    recent = session_dates(night.universe.calendar, night.as_of - timedelta(days=31), night.as_of + timedelta(days=1))
    first = np.concatenate([recent[-GAP_SESSIONS:][:1], ts.astype("datetime64[D]")]).min()
    return max(midnight(first.astype(date)), night.universe.history_start)


def _calendar(night: Night, start: datetime, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Opens of the window's closed bars, and closes of the bars at ``ts``; ``ts`` itself where off the calendar."""
    calendar = night.universe.calendar
    interval = night.universe.interval
    opens = bar_opens(calendar, interval, start.date(), night.clock.astimezone(UTC).date() + BEYOND_CLOCK)
    closed_at = np.where(np.isin(ts, opens), bar_closes(calendar, interval, ts), ts)
    has_closed = bar_closes(calendar, interval, opens) <= instant(night.clock)
    return opens[has_closed & (opens < np.datetime64(night.as_of) + np.timedelta64(1, "D"))], closed_at


def _memberships(night: Night) -> dict[str, np.datetime64]:
    """End of the latest membership of every fetched symbol, NaT for a current one."""
    ends: dict[str, np.datetime64] = {}
    for member in sorted(night.universe.members, key=lambda m: m.valid_from):
        ends[member.symbol] = np.datetime64(member.valid_to or "NaT", "us")
    return {symbol: ends.get(symbol, np.datetime64("NaT")) for symbol in night.universe.symbols_to_fetch}


def _write(night: Night, delta: Delta, inspection: Inspection) -> ValidationReport:
    """Writes verdicts and, unless the night is blocked, accepted and quarantined rows, in one transaction."""
    blocked = bool(inspection.blocking)
    accepted = {} if blocked else {table: _accepted(delta[table], inspection, table) for table in TABLES}
    quarantined = _quarantined({} if blocked else delta, inspection)
    keys = {"night": night.as_of, **night.slice}
    with night.warehouse.write(f"validate {night.as_of} of {night.universe.name}") as con:
        replace_slice(con, "store.checks", _checks(inspection), **keys, run_id=night.run_id)
        replace_slice(con, "store.quarantine", quarantined, **keys, run_id=night.run_id)
        for table, rows in accepted.items():
            newer = read_query(con, "superseded_rows", table_name=table, clock=night.clock, **night.slice)
            upsert(con, f"store.{table}", _without(rows, newer), (*night.slice, *ROW_KEYS[table]), **night.slice)
    return ValidationReport(
        checked=sum(len(rows) for rows in delta.values()),
        accepted=sum(len(rows) for rows in accepted.values()),
        flagged=accepted["bars"]["flag"].drop_null().length() if accepted else 0,
        quarantined=0 if blocked else sum(len(inspection.failing(table, QUARANTINE)) for table in TABLES),
        failed=tuple(f"{v.rule.table} {v.rule.name}" for v in inspection.verdicts if not v.passed),
    )


def _accepted(rows: pa.Table, inspection: Inspection, table: str) -> pa.Table:
    """The rows that no rule quarantines; bars carry the names of the rules that flag them."""
    if table == "bars":
        failing = inspection.failing(table, FLAG)
        flags = [",".join(rule.name for rule in failing[k]) if k in failing else None for k in range(len(rows))]
        rows = rows.append_column("flag", pa.array(flags, pa.string()))
    is_accepted = np.ones(len(rows), dtype=bool)
    is_accepted[list(inspection.failing(table, QUARANTINE))] = False
    return rows.filter(pa.array(is_accepted))


def _without(rows: pa.Table, newer: pa.Table) -> pa.Table:
    """The rows whose key no later night has restated, so that a night run again does not restore old prices."""
    if not len(newer):
        return rows
    key = [name for name in ("symbol", "ts", "kind") if name in rows.column_names]
    later = set(zip(*(newer[name].to_pylist() for name in key), strict=True))
    keep = [row not in later for row in zip(*(rows[name].to_pylist() for name in key), strict=True)]
    return rows.filter(pa.array(keep, pa.bool_()))


def _checks(inspection: Inspection) -> pa.Table:
    return pa.table(
        {
            "table_name": [v.rule.table for v in inspection.verdicts],
            "rule": [v.rule.name for v in inspection.verdicts],
            "policy": [v.policy for v in inspection.verdicts],
            "passed": [v.passed for v in inspection.verdicts],
            "rows_checked": [v.rows_checked for v in inspection.verdicts],
            "rows_failed": [len(v.rows) for v in inspection.verdicts],
            "failing_keys": [json.dumps(v.keys) for v in inspection.verdicts],
            "message": [v.message for v in inspection.verdicts],
        }
    )


def _quarantined(delta: Delta, inspection: Inspection) -> pa.Table:
    """One row per quarantined raw row and rule that quarantines it."""
    refused: list[dict[str, object]] = []
    for table, rows in delta.items():
        for k, rules in inspection.failing(table, QUARANTINE).items():
            row = rows.slice(k, 1).to_pylist()[0]
            contents = json.dumps({name: _plain(value) for name, value in row.items()})
            same = {"table_name": table, "symbol": row["symbol"], "ts": row["ts"], "fetched_at": row["fetched_at"]}
            refused += [{**same, "rule": rule.name, "reason": rule.description, "contents": contents} for rule in rules]
    return pa.Table.from_pylist(refused, QUARANTINE_SCHEMA)


def _plain(value: Any) -> Any:
    """A value that JSON can hold: instants as ISO text, numbers that are not finite as text."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _frame(rows: pa.Table) -> pd.DataFrame:
    """A pandas frame with ``ts`` in UTC without a zone, the form that the rules take."""
    ts = rows["ts"].cast(pa.timestamp("us"))
    return rows.set_column(rows.column_names.index("ts"), "ts", ts).to_pandas()
