"""Stream: the events of an exchange as they happen, until it is stopped. It is no step of the night."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Annotated

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from flows.parameters import WAREHOUSE, load_bybit_universe, open_warehouse
from flows.settings import load_settings
from flows.terminal import log_to_screen, table
from models.sessions import FAR_FUTURE
from tasks.live.event_feed import EventConsumer, StoreOnly
from tasks.live.job import StreamJob, StreamReport
from tasks.live.market import LiveMarket
from tasks.live.stream import stream_events
from tasks.markets.bybit import LIVE_URL as REST_URL
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_ws import LIVE_URL
from warehouse.universes import load_universe

COUNTS = {"name": ("what", ""), "count": ("how many", ",d")}


class StreamParameters(BaseModel):
    """Parameters of the flow `stream`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    universe: Annotated[str, Field(description="a universe of Bybit perpetuals")] = "crypto"
    minutes: Annotated[float | None, Field(gt=0, description="how long; empty: until it is stopped")] = None
    url: Annotated[
        str | None,
        Field(pattern=r"^wss?://\S+$", description="another websocket than Bybit's own; its rows get source=recorded"),
    ] = None
    rest_url: Annotated[
        str | None, Field(pattern=r"^https?://\S+$", description="the REST service that goes with url")
    ] = None
    model: Annotated[
        str | None,
        Field(description="a temporal graph network, to forecast at every close; empty: events are only stored"),
    ] = None
    warehouse: Annotated[str | None, WAREHOUSE] = None
    save_every_s: Annotated[float, Field(gt=0, le=3600, description="what a kill can cost, but for the trades")] = 5.0
    book_every_ms: Annotated[int, Field(ge=1, description="a book gives one event in so many milliseconds")] = 1000
    bound_ms: Annotated[int, Field(ge=0, le=60_000, description="how late an event may come after a newer one")] = 1000

    @contextlib.contextmanager
    def job(self) -> Iterator[StreamJob]:
        """The job of these parameters; its warehouse is migrated, its connections are open for the block."""
        warehouse = open_warehouse(load_settings(warehouse_url=self.warehouse))
        universe = load_bybit_universe(warehouse, self.universe, self.url, self.rest_url)
        today = datetime.now(UTC).date()
        symbols = {member.symbol for member in universe.members if (member.valid_to or date.max) > today}
        options = self.model_dump(include={"model", "minutes", "save_every_s", "book_every_ms", "bound_ms"})
        rest = Bybit(FAR_FUTURE, url=self.rest_url or REST_URL) if self.rest_url or not self.url else None
        source = "recorded" if self.url else "live"
        try:
            yield StreamJob(
                warehouse, universe.name, tuple(sorted(symbols)), source, self.url or LIVE_URL, rest, **options
            )
        finally:
            if rest is not None:
                rest.close()

    def consumer(self, job: StreamJob) -> EventConsumer:
        """The consumer of the events: the newest published fold of the model, or StoreOnly without a model."""
        if self.model is None:
            return StoreOnly()
        from tasks.live.network import LiveNetwork, published_fold  # torch takes seconds to import: only for forecasts

        market = LiveMarket(job.warehouse, load_universe(job.warehouse, job.universe), job.source, job.rest)
        return LiveNetwork(published_fold(market, self.model), market, job.symbols)


@flow
def stream(stream: StreamParameters = StreamParameters()) -> StreamReport:  # noqa: B008 (frozen; the UI's defaults)
    """Stores the events of one universe as they happen; continues where the last run stopped."""
    with stream.job() as job:
        return stream_events(job, stream.consumer(job))


def run_stream(parameters: StreamParameters, screen: Console) -> None:
    """Streams in this process, shows the progress, and prints the counts at the end."""
    with parameters.job() as job, log_to_screen(job.warehouse.path.with_name(f"{job.warehouse.path.stem}.stream.log")):
        report = stream_events(job, parameters.consumer(job))
    screen.print(f"{report.universe}, {report.source}, {report.seconds:.0f} s", style="bold", markup=False)
    screen.print(table("Counts", COUNTS, [{"name": name, "count": count} for name, count in report.counts.items()]))
    screen.print(f"State: {job.state_file}", markup=False, soft_wrap=True)
