"""Events: whole days of trades from Bybit's archive, and open interest. It is no step of the night, but the networks of
later nights read the events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from flows.parameters import WAREHOUSE, load_bybit_universe, open_warehouse
from flows.progress import progress
from flows.settings import SettingsError, load_settings
from flows.terminal import log_to_screen, table
from tasks.events import ArchiveJob, store_archived_events
from tasks.markets.bybit import LIVE_URL as REST_URL
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_archive import ARCHIVE_URL, TradeArchive

COUNTS = {"day": ("day", ""), "symbol": ("symbol", ""), "count": ("new events", ",d")}


class EventsParameters(BaseModel):
    """Parameters of the flow `events`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    day: Annotated[date, Field(description="the first UTC day to fetch")]
    days: Annotated[int, Field(ge=1, le=366, description="how many days from it on")] = 1
    universe: Annotated[str, Field(description="a universe of Bybit perpetuals")] = "crypto"
    url: Annotated[
        str | None,
        Field(pattern=r"^https?://\S+$", description="another archive than Bybit's own; its rows get source=recorded"),
    ] = None
    rest_url: Annotated[
        str | None,
        Field(pattern=r"^https?://\S+$", description="the REST service that goes with url; empty: no open interest"),
    ] = None
    warehouse: Annotated[str | None, WAREHOUSE] = None

    @contextlib.contextmanager
    def job(self) -> Iterator[ArchiveJob]:
        """The job of these parameters; its warehouse is migrated, its connections are open for the block."""
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
            yield ArchiveJob(warehouse, archive, "recorded" if self.url else "live", universe.name, files, rest)


@flow
def events(events: EventsParameters) -> int:
    """Number of new events of one universe and some days in the warehouse; 0 when run again."""
    with events.job() as job:
        return sum(store_archived_events(job, progress()).values())


def run_events(parameters: EventsParameters, screen: Console) -> None:
    """Fetches in this process, shows the progress, and prints the number of new events by day and symbol."""
    with (
        parameters.job() as job,
        log_to_screen(job.warehouse.path.with_name(f"{job.warehouse.path.stem}.events.log")),
    ):
        counts = store_archived_events(job, progress())
    rows = [{"day": str(day), "symbol": symbol, "count": count} for (day, symbol), count in counts.items()]
    screen.print(table(f"{parameters.universe}, {job.source}: trades and open interest", COUNTS, rows))
