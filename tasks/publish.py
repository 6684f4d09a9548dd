"""Publish: makes the whole night (the run for one as-of date) visible to readers at once.

Readers open the published copy, a read-only file beside the warehouse with the published nights only.
"""

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
class PublishedTables:
    """The tables of one published night that are shown to users, and ``copy``, the path of the published copy.

    ``champion`` is the model whose signals are followed, "" when the night has no signal.
    """

    copy: Path
    champion: str
    leaderboard: pa.Table
    signals: pa.Table
    checks: pa.Table
    equity: pa.Table


@task(name="mark_published", cache_policy=NO_CACHE, persist_result=False)
def mark_published(night: Night, champion: str, for_session: date) -> None:
    """Sets the night's state to published and ``published_at`` to its clock; from then on no step alters its rows.

    Raises NightBlockedError unless the night was validated without a blocking check and audited without a leak.
    """
    keys = {"night": night.as_of, **night.slice}
    # validated and audited count the verdicts; blocking and leaks count those that forbid publication
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
        last_ts=utc_datetime(bar_grid(night).open_times[-1]),
        published_at=night.clock,
        message=message,
    )


@task(name="swap_copy", cache_policy=NO_CACHE, persist_result=False)
def swap_copy(night: Night) -> PublishedTables:
    """Replaces the published copy atomically by a new one that includes the night; returns the night's tables from it.

    Raises NotPublishedError while a later night of the universe is unfinished.
    """
    path = publish_copy(night.warehouse, night.source, night.universe.name)
    keys = {"night": night.as_of, **night.slice}
    with read_published(night.warehouse) as copy:
        names = ("leaderboard", "signals", "checks", "equity")
        tables = {name: read_query(copy, f"published_{name}", **keys) for name in names}
    champion = tables["signals"]["model"][0].as_py() if len(tables["signals"]) else ""
    logger.info("%s %s: %d signals in %s", night.as_of, night.universe.name, len(tables["signals"]), path)
    return PublishedTables(path, champion, **tables)


def complete_copy(night: Night) -> None:
    """Makes the published copy if it does not contain the night, which is marked as published.

    That happens when the process died between ``mark_published`` and ``swap_copy``.
    """
    if night.warehouse.published.exists():
        with read_published(night.warehouse) as copy:
            rows = read_query(copy, "night_row", night=night.as_of, **night.slice).to_pylist()
        if rows and rows[0]["published_at"] is not None:
            return
    swap_copy(night)
