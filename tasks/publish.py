"""Publish: the night becomes visible to readers, all of it at once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.ledger import night_row, write_night
from tasks.night import Night
from warehouse.connect import Warehouse
from warehouse.publish import publish_copy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """What readers can now see of one night: small tables, ready to be shown."""

    copy: Path
    champion: str
    leaderboard: pa.Table
    signals: pa.Table
    checks: pa.Table
    equity: pa.Table


@task(name="mark_published", cache_policy=NO_CACHE, persist_result=False)
def mark_published(night: Night, champion: str, for_session: date) -> None:
    """Sets ``published_at`` to the night's clock: from here on its rows are never altered."""
    message = f"published; champion {champion}"
    write_night(
        night, state="published", champion=champion, for_session=for_session, published_at=night.clock, message=message
    )


@task(name="swap_copy", cache_policy=NO_CACHE, persist_result=False)
def swap_copy(night: Night) -> Published:
    """Puts the night into the read-only copy, atomically, and reads back from the copy what readers now see."""
    path = publish_copy(night.warehouse, night.source, night.universe.name)
    copy = Warehouse.at(path)
    keys = {"night": night.as_of, **night.slice}
    tables = {name: copy.query(f"published_{name}", **keys) for name in ("leaderboard", "signals", "checks", "equity")}
    champion = tables["signals"]["model"][0].as_py() if len(tables["signals"]) else ""
    logger.info("%s %s: %d signals in %s", night.as_of, night.universe.name, len(tables["signals"]), path)
    return Published(path, champion, **tables)


def complete_copy(night: Night) -> None:
    """Swaps the copy in if the process died after the night was marked and before its copy was."""
    copy = Warehouse.at(night.warehouse.published)
    if not copy.path.exists() or night_row(Night(**{**vars(night), "warehouse": copy})) is None:
        swap_copy(night)
