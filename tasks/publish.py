"""Publish: makes the whole night visible to readers at once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import NightBlockedError
from tasks.forecasts import utc_datetime
from tasks.ledger import write_night
from tasks.night import Night
from tasks.panels import bar_grid
from warehouse.publish import publish_copy, read_published
from warehouse.tables import read_query

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """The tables of one published night that are small enough to be shown, and the path of the copy."""

    copy: Path
    champion: str
    leaderboard: pa.Table
    signals: pa.Table
    checks: pa.Table
    equity: pa.Table


@task(name="mark_published", cache_policy=NO_CACHE, persist_result=False)
def mark_published(night: Night, champion: str, for_session: date) -> None:
    """Sets ``published_at`` to the night's clock; no step alters the night's rows from then on.

    Raises NightBlockedError unless the night was validated and audited, without a blocking check or a leak.
    """
    keys = {"night": night.as_of, **night.slice}
    gate = night.warehouse.query("publish_gate", **keys).to_pylist()[0]
    if not gate["validated"] or not gate["audited"] or gate["blocking"] or gate["leaks"]:
        raise NightBlockedError(
            f"the {night.source} night {night.as_of} of {night.universe.name} is not fit to publish: "
            f"{gate['validated']} checks ({gate['blocking']} blocking), {gate['audited']} audit rows "
            f"({gate['leaks']} leaks). Run validate and audit, and see the views checks and leak_audit"
        )
    message = f"published; champion {champion}"
    write_night(
        night,
        state="published",
        champion=champion,
        for_session=for_session,
        last_ts=utc_datetime(bar_grid(night)[0][-1]),
        published_at=night.clock,
        message=message,
    )


@task(name="swap_copy", cache_policy=NO_CACHE, persist_result=False)
def swap_copy(night: Night) -> Published:
    """Replaces the read-only copy atomically by one that includes the night, and returns the night's tables from it.

    Raises NotPublishedError while a later night of the universe is unfinished.
    """
    path = publish_copy(night.warehouse, night.source, night.universe.name)
    keys = {"night": night.as_of, **night.slice}
    with read_published(night.warehouse) as copy:
        names = ("leaderboard", "signals", "checks", "equity")
        tables = {name: read_query(copy, f"published_{name}", **keys) for name in names}
    champion = tables["signals"]["model"][0].as_py() if len(tables["signals"]) else ""
    logger.info("%s %s: %d signals in %s", night.as_of, night.universe.name, len(tables["signals"]), path)
    return Published(path, champion, **tables)


def complete_copy(night: Night) -> None:
    """Replaces the copy if the process died after the night was marked as published and before its copy was made."""
    if night.warehouse.published.exists():
        with read_published(night.warehouse) as copy:
            rows = read_query(copy, "night_row", night=night.as_of, **night.slice).to_pylist()
        if rows and rows[0]["published_at"] is not None:
            return
    swap_copy(night)
