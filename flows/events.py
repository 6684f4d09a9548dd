"""Events: stores whole days of trades from Bybit's archive, and hourly open interest.

This flow is no step of the night (the run for one as-of date), but the networks of later nights read its events.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from flows.parameters import WAREHOUSE_FIELD, load_bybit_universe, open_warehouse
from flows.progress import start_progress
from flows.settings import SettingsError, load_settings
from flows.terminal import log_to_screen, make_table
from tasks.events import ArchiveJob, store_archived_events
from tasks.markets.bybit import LIVE_URL as REST_URL
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_archive import ARCHIVE_URL, TradeArchive

COUNT_COLUMNS = {"day": ("day", ""), "symbol": ("symbol", ""), "count": ("new events", ",d")}


class EventsParameters(BaseModel):
    """Parameters of the flow `events`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    day: Annotated[date, Field(description="the first UTC day to fetch")]
    days: Annotated[int, Field(ge=1, le=366, description="number of days, from day onwards")] = 1
    universe: Annotated[str, Field(description="a universe of Bybit perpetuals")] = "crypto"
    url: Annotated[
        str | None,
        Field(pattern=r"^https?://\S+$", description="archive to use instead of Bybit's; its rows get source=recorded"),
    ] = None
    rest_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://\S+$",
            description="REST service of that url, for open interest; empty: none is fetched from another archive",
        ),
    ] = None
    warehouse: Annotated[str | None, WAREHOUSE_FIELD] = None

    @contextlib.contextmanager
    def job(self) -> Iterator[ArchiveJob]:
        """The job of these parameters, for use in a ``with`` block; its warehouse is migrated.

        The connections of the job are closed after the block. The job has one file per (day, symbol) on which the
        symbol is a member. Raises SettingsError for a job without files, or for a universe that is not Bybit's.
        """
        warehouse = open_warehouse(load_settings(warehouse_url=self.warehouse))
        universe = load_bybit_universe(warehouse, self.universe, self.url, self.rest_url)
        days = [self.day + timedelta(days=k) for k in range(self.days)]
        files = [
            (day, member.symbol)
            for day in days
            for member in universe.members
            if member.valid_from <= day < (member.valid_to or date.max)
        ]
        if not files:
            raise SettingsError(f"{universe.name} has no member from {days[0]} to {days[-1]}: choose later days")
        with contextlib.ExitStack() as stack:
            archive = stack.enter_context(contextlib.closing(TradeArchive(url=self.url or ARCHIVE_URL)))
            rest = None
            if self.rest_url or not self.url:
                rest = Bybit(datetime.now(UTC), url=self.rest_url or REST_URL)
                stack.callback(rest.close)
            source = "recorded" if self.url else "live"
            yield ArchiveJob(warehouse, archive, source=source, universe=universe.name, files=files, rest=rest)


@flow
def events(events: EventsParameters) -> int:
    """Number of events that were new to the warehouse; 0 when the same days are fetched again."""
    with events.job() as job:
        return sum(store_archived_events(job, start_progress()).values())


def run_events(parameters: EventsParameters, console: Console) -> None:
    """Fetches in this process, shows the progress, and prints the number of new events per day and symbol."""
    with (
        parameters.job() as job,
        log_to_screen(job.warehouse.path.with_name(f"{job.warehouse.path.stem}.events.log")),
    ):
        counts = store_archived_events(job, start_progress())
    rows = [{"day": str(day), "symbol": symbol, "count": count} for (day, symbol), count in counts.items()]
    console.print(make_table(f"{parameters.universe}, {job.source}: trades and open interest", COUNT_COLUMNS, rows))
