"""Validate: the night's raw rows become the store's rows, each judged by the rules of warehouse/rules.py."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.sessions import INTERVALS, bar_closes, bar_opens, session_dates
from tasks.errors import NightBlockedError
from tasks.night import Night
from warehouse.expectations import Inspection, inspect_delta
from warehouse.measures import Evidence
from warehouse.price_series import RETURN_WINDOW
from warehouse.rules import FLAG, QUARANTINE, TABLES
from warehouse.tables import read_query, replace_slice, upsert

logger = logging.getLogger(__name__)

GAP_SESSIONS = 10  # how far back a missing bar is still reported; the whole delta when that reaches further
CLOCK_SLACK = timedelta(days=7)  # bars after the clock are known to the calendar, so that they are told from odd stamps
KEYS = {"bars": ("symbol", "interval", "ts"), "corporate_actions": ("symbol", "ts", "kind"), "funding_rates": ("symbol", "ts")}
Delta = Mapping[str, pa.Table]


@dataclass(frozen=True)
class ValidateReport:
    """Rows of the night's delta: checked, accepted, taken to quarantine, accepted with a flag; and the rules that failed."""

    checked: int
    accepted: int
    quarantined: int
    flagged: int
    failed: tuple[str, ...]


@task(name="validate night", cache_policy=NO_CACHE, persist_result=False)
def validate_night(night: Night, max_quarantined_fraction: float = 0.2) -> ValidateReport:
    """Judges the night's delta, writes every verdict, and accepts the rows that pass or carry a flag.

    The delta holds the raw rows of this night and of those before it that were never accepted. Raises NightBlockedError
    when a blocking rule fails; then the verdicts are written and no row is accepted. Run again it writes the same rows.
    """
    delta, evidence = _read(night)
    frames = {table: _frame(rows) for table, rows in delta.items()}
    inspection = inspect_delta(frames, evidence, max_quarantined_fraction)
    report = _write(night, delta, inspection)
    if inspection.blocking:
        found = "; ".join(f"{v.rule.table}/{v.rule.name}: {v.message}" for v in inspection.blocking)
        raise NightBlockedError(f"the {night.source} night {night.as_of} of {night.universe.name} is blocked. {found}")
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def _read(night: Night) -> tuple[dict[str, pa.Table], Evidence]:
    slice_, universe = night.slice, night.universe
    with night.warehouse.read() as con:
        runs = read_query(con, "pending_runs", night=night.as_of, run_id=night.run_id, **slice_)["run_id"].to_pylist()
        delta = {table: read_query(con, f"pending_{table}", run_ids=runs, **slice_) for table in TABLES}
        bars = _frame(delta["bars"])
        opens, closed_at = _calendar(night, bars["ts"].to_numpy())
        before = _instant(opens[0]) - RETURN_WINDOW * 2 * INTERVALS[universe.interval].item() - timedelta(days=7)
        past = {"night": night.as_of, "clock": night.clock, "run_ids": runs, **slice_}
        span = {"clock": night.clock, "interval": universe.interval, **slice_}
        known = read_query(con, "known_bars", start=before, interval=universe.interval, **past)
        actions = read_query(con, "known_corporate_actions", **past)
        settlements = read_query(con, "known_settlements", **past)
        first = _frame(read_query(con, "first_bars", start=_midnight(universe.history_start), **span))
    clock = np.datetime64(night.clock.astimezone(UTC).replace(tzinfo=None), "us")
    evidence = Evidence(
        clock=clock,
        interval=universe.interval,
        opens=opens[bar_closes(universe.calendar, universe.interval, opens) <= clock],
        closed_at=closed_at,
        memberships=_memberships(night),
        first_bars=dict(zip(first["symbol"], first["ts"].to_numpy(), strict=True)),
        bars=_frame(known),
        actions=_frame(actions),
        settlements=_frame(settlements),
        delta_bars=bars,
        delta_actions=_frame(delta["corporate_actions"]),
    )
    return delta, evidence


def _calendar(night: Night, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bar opens of the checked window and a little past the clock, and when the bars at ``ts`` close."""
    universe, last = night.universe, night.clock.astimezone(UTC).date()
    recent = session_dates(universe.calendar, night.as_of - timedelta(days=31), night.as_of + timedelta(days=1))
    start = recent[-GAP_SESSIONS:][0].astype(date)
    if len(ts):
        start = min(start, ts.min().astype("datetime64[D]").astype(date))
    opens = bar_opens(universe.calendar, universe.interval, max(start, universe.history_start), last + CLOCK_SLACK)
    closes = bar_closes(universe.calendar, universe.interval, ts)
    return opens, np.where(np.isin(ts, opens), closes, ts)


def _memberships(night: Night) -> dict[str, np.datetime64]:
    ends: dict[str, list[date | None]] = {symbol: [] for symbol in night.universe.fetched}
    for member in night.universe.members:
        ends[member.symbol].append(member.valid_to)
    lasting = np.datetime64("NaT")
    return {
        symbol: lasting if not days or None in days else np.datetime64(max(d for d in days if d), "us")
        for symbol, days in ends.items()
    }


def _write(night: Night, delta: Delta, inspection: Inspection) -> ValidateReport:
    """One transaction: verdicts, quarantine and accepted rows; of a blocked night the verdicts alone."""
    blocked = bool(inspection.blocking)
    refused = {table: inspection.failing(table, QUARANTINE) for table in TABLES}
    keys = {"night": night.as_of, **night.slice}
    with night.warehouse.write(f"validate {night.as_of} of {night.universe.name}") as con:
        replace_slice(con, "store.checks", _checks(night, inspection), **keys)
        replace_slice(con, "store.quarantine", _quarantine(night, delta, {} if blocked else refused), **keys)
