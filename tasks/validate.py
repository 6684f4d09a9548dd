"""Validate: the night's raw rows become the store's rows, each judged by the rules of warehouse/rules.py."""

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

GAP_SESSIONS = 10  # a missing bar is reported for so long, or as far back as the delta reaches
BEYOND_CLOCK = timedelta(days=7)  # the calendar reaches past the clock, to tell an early bar from an odd stamp
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
    """Rows of the night's delta: checked, accepted, of these flagged, put in quarantine; and the rules that failed."""

    checked: int
    accepted: int
    flagged: int
    quarantined: int
    failed: tuple[str, ...]


@task(name="validate night", cache_policy=NO_CACHE, persist_result=False)
def validate_night(night: Night, max_quarantined_fraction: float = 0.2) -> ValidationReport:
    """Counts of what became of the night's delta; its verdicts are written, its good rows accepted.

    The delta holds the raw rows of this night and of nights before it that were never accepted. Raises
    NightBlockedError when a blocking rule fails: then the verdicts are written and no row is accepted. Run again, it
    writes the same rows.
    """
    delta, evidence = _read(night)
    frames = {table: _frame(rows) for table, rows in delta.items()}
    inspection = inspect_delta(frames, evidence, max_quarantined_fraction)
    report = _write(night, delta, inspection)
    if inspection.blocking:
        found = "; ".join(f"{v.rule.table} {v.rule.name}: {v.message}" for v in inspection.blocking)
        raise NightBlockedError(f"the {night.source} night {night.as_of} of {night.universe.name} is blocked. {found}")
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def _read(night: Night) -> tuple[dict[str, pa.Table], CheckContext]:
    keys, interval = night.slice, night.universe.interval
    with night.warehouse.read() as con:
        runs = read_query(con, "pending_runs", night=night.as_of, run_id=night.run_id, **keys)["run_id"].to_pylist()
        delta = {table: read_query(con, f"pending_{table}", run_ids=runs, **keys) for table in TABLES}
        bars = _frame(delta["bars"])
        start = _checked_from(night, bars["ts"].to_numpy())
        before = start - RETURN_WINDOW * 2 * INTERVALS[interval].item() - timedelta(days=7)
        known = {"night": night.as_of, "clock": night.clock, "run_ids": runs, **keys}
        known_bars = read_query(con, "known_bars", start=before, interval=interval, **known)
        actions = read_query(con, "known_corporate_actions", **known)
        settlements = read_query(con, "known_settlements", **known)
        history = {"start": night.universe.history_start, "clock": night.clock, "interval": interval, **keys}
        first_bars = _frame(read_query(con, "first_bars", **history))
    opens, closed_at = _calendar(night, start, bars["ts"].to_numpy())
    evidence = CheckContext(
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
    return delta, evidence


def _checked_from(night: Night, ts: np.ndarray) -> datetime:
    """The earliest instant of the checked window: the last sessions, or the delta's first bar, within the history."""
    recent = session_dates(night.universe.calendar, night.as_of - timedelta(days=31), night.as_of + timedelta(days=1))
    first = np.concatenate([recent[-GAP_SESSIONS:][:1], ts.astype("datetime64[D]")]).min()
    return max(midnight(first.astype(date)), night.universe.history_start)


def _calendar(night: Night, start: datetime, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Opens of the window's closed bars; when each bar at ``ts`` closes, at once where the calendar has none."""
    calendar, interval = night.universe.calendar, night.universe.interval
    opens = bar_opens(calendar, interval, start.date(), night.clock.astimezone(UTC).date() + BEYOND_CLOCK)
    closed_at = np.where(np.isin(ts, opens), bar_closes(calendar, interval, ts), ts)
    due = bar_closes(calendar, interval, opens) <= instant(night.clock)
    return opens[due & (opens < np.datetime64(night.as_of) + np.timedelta64(1, "D"))], closed_at


def _memberships(night: Night) -> dict[str, np.datetime64]:
    """Every fetched symbol → the end of its latest membership, NaT while it lasts."""
    ends: dict[str, np.datetime64] = {}
    for member in sorted(night.universe.members, key=lambda m: m.valid_from):
        ends[member.symbol] = np.datetime64(member.valid_to or "NaT", "us")
    return {symbol: ends.get(symbol, np.datetime64("NaT")) for symbol in night.universe.fetched}


def _write(night: Night, delta: Delta, inspection: Inspection) -> ValidationReport:
    """One transaction: the verdicts and, unless the night is blocked, the accepted rows and the quarantined ones."""
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
    """The rows no rule takes out; bars carry the names of the rules that flag them."""
    if table == "bars":
        found = inspection.failing(table, FLAG)
        flags = [",".join(rule.name for rule in found[k]) if k in found else None for k in range(len(rows))]
        rows = rows.append_column("flag", pa.array(flags, pa.string()))
    kept = np.ones(len(rows), dtype=bool)
    kept[list(inspection.failing(table, QUARANTINE))] = False
    return rows.filter(pa.array(kept))


def _without(rows: pa.Table, newer: pa.Table) -> pa.Table:
    """The rows whose key a later night has not restated already: a night run again does not bring old prices back."""
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
    """One row per refused raw row and rule that refuses it."""
    found = []
    for table, rows in delta.items():
        for k, rules in inspection.failing(table, QUARANTINE).items():
            row = rows.slice(k, 1).to_pylist()[0]
            contents = json.dumps({name: _plain(value) for name, value in row.items()})
            same = {"table_name": table, "symbol": row["symbol"], "ts": row["ts"], "fetched_at": row["fetched_at"]}
            found += [{**same, "rule": rule.name, "reason": rule.says, "contents": contents} for rule in rules]
    return pa.Table.from_pylist(found, QUARANTINE_SCHEMA)


def _plain(value: Any) -> Any:
    """A value that JSON can hold: instants as ISO text, numbers that are not finite as text."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _frame(rows: pa.Table) -> pd.DataFrame:
    """A pandas frame with ``ts`` in UTC without a zone, as the rules want it."""
    ts = rows["ts"].cast(pa.timestamp("us"))
    return rows.set_column(rows.column_names.index("ts"), "ts", ts).to_pandas()
