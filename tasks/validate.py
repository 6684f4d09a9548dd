"""Validate: checks the raw rows of a night by the rules of warehouse/rules.py, and accepts good rows into the store.

A night is the run for one as-of date. Its delta consists of the raw rows that this night received, and those of earlier
nights that were blocked or ended before validation. A row is accepted, flagged (accepted with a mark), or quarantined
(kept out of the store).
"""

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
from models.sessions import BAR_LENGTHS, bar_closes, bar_opens, midnight, session_dates
from tasks.errors import NightBlockedError
from tasks.night import Night
from tasks.panels import to_datetime64
from warehouse.expectations import Inspection, inspect_delta
from warehouse.price_series import RETURN_WINDOW
from warehouse.row_checks import CheckContext
from warehouse.rules import FLAG, QUARANTINE, TABLES
from warehouse.tables import read_query, replace_slice, upsert

logger = logging.getLogger(__name__)

GAP_SESSIONS = 10  # missing bars are searched in the last 10 sessions, or as far back as the delta reaches
CALENDAR_MARGIN = timedelta(
    days=7
)  # after the clock, so that bars received too early are recognised as bars of the calendar
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
Delta = Mapping[str, pa.Table]  # raw rows by table name, as in TABLES


@dataclass(frozen=True)
class ValidationReport:
    """Counts of rows of the night's delta; ``failed`` holds the names ("table rule") of the rules that failed.

    ``flagged`` counts accepted bars that a rule has marked. In a blocked night no row is accepted or quarantined, so
    only ``checked`` is above 0.
    """

    checked: int
    accepted: int
    flagged: int
    quarantined: int
    failed: tuple[str, ...]


@task(name="validate night", cache_policy=NO_CACHE, persist_result=False)
def validate_night(night: Night, max_quarantined_fraction: float = 0.2) -> ValidationReport:
    """Writes the verdicts on the night's delta, accepts its good rows, and returns the counts.

    Raises NightBlockedError when a blocking rule fails or more than ``max_quarantined_fraction`` of the rows would be
    quarantined; then the verdicts are written and no row is accepted. A second run writes the same rows.
    """
    delta, context = _read_delta(night)
    frames = {table: _to_frame(rows) for table, rows in delta.items()}
    inspection = inspect_delta(frames, context, max_quarantined_fraction)
    report = _write_verdicts(night, delta, inspection)
    if inspection.blocking:
        reasons = "; ".join(f"{v.rule.table} {v.rule.name}: {v.message}" for v in inspection.blocking)
        raise NightBlockedError(
            f"the {night.source} night {night.as_of} of {night.universe.name} is blocked. {reasons}"
        )
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def _read_delta(night: Night) -> tuple[dict[str, pa.Table], CheckContext]:
    """The delta by table, and the context that the rules read: calendar, memberships and earlier rows."""
    keys = night.slice
    interval = night.universe.interval
    with night.warehouse.read() as con:
        run_ids = read_query(con, "pending_runs", night=night.as_of, run_id=night.run_id, **keys)["run_id"].to_pylist()
        delta = {table: read_query(con, f"pending_{table}", run_ids=run_ids, **keys) for table in TABLES}
        bars = _to_frame(delta["bars"])
        window_start = _window_start(night, bars["ts"].to_numpy())
        known_from = window_start - RETURN_WINDOW * 2 * BAR_LENGTHS[interval].item() - timedelta(days=7)
        parameters = {"night": night.as_of, "clock": night.clock, "run_ids": run_ids, **keys}
        known_bars = read_query(con, "known_bars", start=known_from, interval=interval, **parameters)
        actions = read_query(con, "known_corporate_actions", **parameters)
        settlements = read_query(con, "known_settlements", **parameters)
        history = {"start": night.universe.history_start, "clock": night.clock, "interval": interval, **keys}
        first_bars = _to_frame(read_query(con, "first_bars", **history))
    open_times, close_times = _calendar_times(night, window_start, bars["ts"].to_numpy())
    context = CheckContext(
        clock=to_datetime64(night.clock),
        interval=interval,
        open_times=open_times,
        close_times=close_times,
        membership_ends=_membership_ends(night),
        first_bars=dict(zip(first_bars["symbol"], first_bars["ts"].to_numpy(), strict=True)),
        accepted_bars=_to_frame(known_bars),
        accepted_actions=_to_frame(actions),
        accepted_settlements=_to_frame(settlements),
        delta_bars=bars,
        delta_actions=_to_frame(delta["corporate_actions"]),
    )
    return delta, context


def _window_start(night: Night, delta_ts: np.ndarray) -> datetime:
    """Start of the window in which missing bars are searched.

    It is the day of the delta's first bar or the first of the last GAP_SESSIONS sessions, whichever is earlier, but not
    before the universe's history start. ``delta_ts`` are the open times of the delta's bars.
    """
    recent = session_dates(night.universe.calendar, night.as_of - timedelta(days=31), night.as_of + timedelta(days=1))
    first_day = np.concatenate([recent[-GAP_SESSIONS:][:1], delta_ts.astype("datetime64[D]")]).min()
    return max(midnight(first_day.astype(date)), night.universe.history_start)


def _calendar_times(night: Night, window_start: datetime, delta_ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Open times of the calendar's bars to expect, and close times of the delta's bars.

    The first array has the bars from ``window_start`` to the end of the as-of date that have closed by the clock. The
    second has one entry per entry of ``delta_ts``: the close of the bar, or its ts if the calendar has no such bar.
    """
    calendar = night.universe.calendar
    interval = night.universe.interval
    calendar_end = night.clock.astimezone(UTC).date() + CALENDAR_MARGIN
    open_times = bar_opens(calendar, interval, window_start.date(), calendar_end)
    is_on_calendar = np.isin(delta_ts, open_times)
    close_times = np.where(is_on_calendar, bar_closes(calendar, interval, delta_ts), delta_ts)
    has_closed = bar_closes(calendar, interval, open_times) <= to_datetime64(night.clock)
    is_in_night = open_times < np.datetime64(night.as_of) + np.timedelta64(1, "D")
    return open_times[has_closed & is_in_night], close_times


def _membership_ends(night: Night) -> dict[str, np.datetime64]:
    """By symbol to fetch, the end of its latest membership; NaT for a current member and for a non-member."""
    ends: dict[str, np.datetime64] = {}
    for member in sorted(night.universe.members, key=lambda m: m.valid_from):
        ends[member.symbol] = np.datetime64(member.valid_to or "NaT", "us")
    return {symbol: ends.get(symbol, np.datetime64("NaT")) for symbol in night.universe.symbols_to_fetch}


def _write_verdicts(night: Night, delta: Delta, inspection: Inspection) -> ValidationReport:
    """Writes the verdicts in one transaction; unless the night is blocked, also the accepted and quarantined rows."""
    is_blocked = bool(inspection.blocking)
    accepted = {} if is_blocked else {table: _accepted_rows(delta[table], inspection, table) for table in TABLES}
    quarantined = _quarantine_rows({} if is_blocked else delta, inspection)
    keys = {"night": night.as_of, **night.slice}
    with night.warehouse.write(f"validate {night.as_of} of {night.universe.name}") as con:
        replace_slice(con, "store.checks", _check_rows(inspection), **keys, run_id=night.run_id)
        replace_slice(con, "store.quarantine", quarantined, **keys, run_id=night.run_id)
        for table, rows in accepted.items():
            newer = read_query(con, "superseded_rows", table_name=table, clock=night.clock, **night.slice)
            upsert(
                con, f"store.{table}", _without_superseded(rows, newer), (*night.slice, *ROW_KEYS[table]), **night.slice
            )
    return ValidationReport(
        checked=sum(len(rows) for rows in delta.values()),
        accepted=sum(len(rows) for rows in accepted.values()),
        flagged=accepted["bars"]["flag"].drop_null().length() if accepted else 0,
        quarantined=0 if is_blocked else sum(len(inspection.failing_rules(table, QUARANTINE)) for table in TABLES),
        failed=tuple(f"{v.rule.table} {v.rule.name}" for v in inspection.verdicts if not v.passed),
    )


def _accepted_rows(rows: pa.Table, inspection: Inspection, table: str) -> pa.Table:
    """The rows that no rule quarantines; bars get a column ``flag``, the names of the rules that flag them or null."""
    if table == "bars":
        failing = inspection.failing_rules(table, FLAG)
        flags = [",".join(rule.name for rule in failing[k]) if k in failing else None for k in range(len(rows))]
        rows = rows.append_column("flag", pa.array(flags, pa.string()))
    is_accepted = np.ones(len(rows), dtype=bool)
    is_accepted[list(inspection.failing_rules(table, QUARANTINE))] = False
    return rows.filter(pa.array(is_accepted))


def _without_superseded(rows: pa.Table, newer: pa.Table) -> pa.Table:
    """The rows without those whose key is in ``newer``, the keys of the rows that a later night has written.

    So an earlier night that is run again does not restore old prices.
    """
    if not len(newer):
        return rows
    key_columns = [name for name in ("symbol", "ts", "kind") if name in rows.column_names]
    newer_keys = set(zip(*(newer[name].to_pylist() for name in key_columns), strict=True))
    row_keys = zip(*(rows[name].to_pylist() for name in key_columns), strict=True)
    return rows.filter(pa.array([row_key not in newer_keys for row_key in row_keys], pa.bool_()))


def _check_rows(inspection: Inspection) -> pa.Table:
    """Rows of store.checks without their keys, one per rule."""
    return pa.table(
        {
            "table_name": [v.rule.table for v in inspection.verdicts],
            "rule": [v.rule.name for v in inspection.verdicts],
            "policy": [v.policy for v in inspection.verdicts],
            "passed": [v.passed for v in inspection.verdicts],
            "rows_checked": [v.rows_checked for v in inspection.verdicts],
            "rows_failed": [len(v.failing_positions) for v in inspection.verdicts],
            "failing_keys": [json.dumps(v.failing_keys) for v in inspection.verdicts],
            "message": [v.message for v in inspection.verdicts],
        }
    )


def _quarantine_rows(delta: Delta, inspection: Inspection) -> pa.Table:
    """Rows of store.quarantine without their keys: one per raw row and rule that quarantines it."""
    quarantined: list[dict[str, object]] = []
    for table, rows in delta.items():
        for k, rules in inspection.failing_rules(table, QUARANTINE).items():
            row = rows.slice(k, 1).to_pylist()[0]
            contents = json.dumps({name: _json_value(value) for name, value in row.items()})
            row_columns = {
                "table_name": table,
                "symbol": row["symbol"],
                "ts": row["ts"],
                "fetched_at": row["fetched_at"],
            }
            for rule in rules:
                rule_columns = {"rule": rule.name, "reason": rule.description, "contents": contents}
                quarantined.append({**row_columns, **rule_columns})
    return pa.Table.from_pylist(quarantined, QUARANTINE_SCHEMA)


def _json_value(value: Any) -> Any:
    """The value in a form that JSON can hold: an instant as ISO 8601 text in UTC, NaN and infinity as text."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _to_frame(rows: pa.Table) -> pd.DataFrame:
    """The rows as a pandas frame whose ``ts`` is UTC without a time zone, the form that the rules read."""
    ts = rows["ts"].cast(pa.timestamp("us"))
    return rows.set_column(rows.column_names.index("ts"), "ts", ts).to_pandas()
