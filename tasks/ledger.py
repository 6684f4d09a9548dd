"""Writes a night's state to the table ``nights``, and each run of its steps to ``step_runs``.

A night is the run for one as-of date.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from models.hashing import short_hash
from tasks.night import Night
from warehouse.errors import PublishedNightError
from warehouse.tables import append, read_query, replace_slice

logger = logging.getLogger(__name__)
Row = dict[str, Any]


def night_row(night: Night) -> Row | None:
    """The night's row of ``nights``, or None before the night has begun."""
    rows = night.warehouse.query("night_row", night=night.as_of, **night.slice).to_pylist()
    return rows[0] if rows else None


def begin_night(night: Night, settings: Row) -> bool:
    """Marks the night as running and returns True; returns False when it is published with the same settings.

    Raises PublishedNightError when it is published with other settings, because published rows are never altered.
    """
    settings_json = json.dumps(settings, sort_keys=True)
    settings_hash = short_hash(settings_json)
    row = night_row(night)
    if row is not None and row["published_at"] is not None:
        if row["settings_hash"] != settings_hash:
            published_settings = json.loads(row["settings"])
            names = settings.keys() | published_settings.keys()
            changed = ", ".join(sorted(name for name in names if settings.get(name) != published_settings.get(name)))
            raise PublishedNightError(
                f"the {night.source} night {night.as_of} of {night.universe.name} is published with other settings "
                f"(different: {changed}); a published night is never altered: give --warehouse another file to try them"
            )
        return False
    write_night(night, state="running", settings=settings_json, settings_hash=settings_hash)
    return True


def write_night(night: Night, **changes: object) -> None:
    """Writes the night's row of ``nights``: its stored columns, if any, with ``changes`` applied."""
    keys = {"night": night.as_of, **night.slice}
    row = {"run_id": night.run_id, **(night_row(night) or {}), "clock": night.clock, **changes, **keys}
    with night.warehouse.write(f"night {night.as_of} of {night.universe.name}: {row['state']}") as con:
        replace_slice(con, "store.nights", pa.Table.from_pylist([row]), **keys)


@contextmanager
def step_run(night: Night, step: str, settings: Row) -> Iterator[None]:
    """Records the block as one step in ``step_runs``: running, then done or failed, with its wall time in seconds.

    Begins the night if it has not begun. Raises PublishedNightError when the night is published, because no step may
    alter it.
    """
    if not begin_night(night, settings):
        raise PublishedNightError(
            f"the {night.source} night {night.as_of} of {night.universe.name} is published: {step} would alter it. "
            "Give --warehouse another file to compute it anew"
        )
    started_at = datetime.now(UTC)
    started_s = time.perf_counter()
    keys: dict[str, object] = {"night": night.as_of, **night.slice, "run_id": night.run_id, "step": step}

    def record(state: str, **columns: object) -> None:
        with night.warehouse.write(f"step {step}: {state}") as con:
            read_query(con, "delete_step_run", run_id=night.run_id, step=step, started_at=started_at)
            append(
                con,
                "store.step_runs",
                pa.Table.from_pylist([{"state": state, "started_at": started_at, **columns}]),
                **keys,
            )

    logger.info("%s %s %s: %s", night.as_of, night.source, night.universe.name, step)
    record("running")
    try:
        yield
    except BaseException as error:
        seconds = time.perf_counter() - started_s
        record("failed", finished_at=datetime.now(UTC), seconds=seconds, detail=str(error)[:2000])
        raise
    record("done", finished_at=datetime.now(UTC), seconds=time.perf_counter() - started_s)


def step_seconds(night: Night) -> dict[str, float]:
    """Wall seconds of the latest run of each step of the night."""
    table = night.warehouse.query("step_seconds", run_id=night.run_id)
    return dict(zip(table["step"].to_pylist(), table["seconds"].to_pylist(), strict=True))
