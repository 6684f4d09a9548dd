"""Stream: what happens on the exchange, event by event, for as long as one likes. It is not a step of the night."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Annotated

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from flows.parameters import WAREHOUSE, open_warehouse
from flows.settings import SettingsError, load_settings
from flows.terminal import log_to_screen, table
from models.sessions import FAR_FUTURE
from tasks.live.event_feed import EventConsumer, NoConsumer
from tasks.live.job import StreamJob, StreamReport
from tasks.live.market import LiveMarket
from tasks.live.stream import stream_events
from tasks.markets.bybit import LIVE_URL as REST_URL
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_ws import LIVE_URL
from warehouse.universes import load_universe

COUNTS = {"name": ("what", ""), "count": ("how many", ",d")}


class StreamParameters(BaseModel):
    """What `stream` can be told."""

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
        """The job these parameters name, its warehouse migrated and its connections open for the block."""
        warehouse = open_warehouse(load_settings(warehouse_url=self.warehouse))
        universe = load_universe(warehouse, self.universe)
        if universe.provider != "bybit":
            raise SettingsError(
                f"{universe.name} is no universe of Bybit's: only those can be streamed, such as crypto"
            )
        if self.rest_url and not self.url:
            raise SettingsError("rest_url goes with url: Bybit's own websocket has Bybit's own REST")
        today = datetime.now(UTC).date()
        symbols = {one.symbol for one in universe.members if (one.valid_to or date.max) > today}
        asked = self.model_dump(include={"model", "minutes", "save_every_s", "book_every_ms", "bound_ms"})
        rest = Bybit(FAR_FUTURE, url=self.rest_url or REST_URL) if self.rest_url or not self.url else None
        source, url = ("recorded", self.url) if self.url else ("live", LIVE_URL)
        try:
            yield StreamJob(warehouse, universe.name, tuple(sorted(symbols)), source, url, rest, **asked)
        finally:
            if rest is not None:
                rest.close()

    def memory(self, job: StreamJob) -> EventConsumer:
        """What reads the events: the newest published fold of the model, or nothing."""
        if self.model is None:
            return NoConsumer()
        from tasks.live.network import LiveNetwork, published_fold  # torch takes seconds: only for who forecasts

        market = LiveMarket(job.warehouse, load_universe(job.warehouse, job.universe), job.source, job.rest)
        return LiveNetwork(published_fold(market, self.model), market, job.symbols)


@flow
def stream(stream: StreamParameters = StreamParameters()) -> StreamReport:  # noqa: B008 (frozen; the UI's defaults)
    """Events of one universe as they happen, into the warehouse; goes on from where the last one stopped."""
    with stream.job() as job:
        return stream_events(job, stream.memory(job))


def run_stream(parameters: StreamParameters, screen: Console) -> None:
    """Streams in this process, telling how far it has got, and prints the counts at the end."""
    with parameters.job() as job, log_to_screen(job.warehouse.path.with_name(f"{job.warehouse.path.stem}.stream.log")):
        report = stream_events(job, parameters.memory(job))
    screen.print(f"{report.universe}, {report.source}, {report.seconds:.0f} s", style="bold", markup=False)
    screen.print(table("Counts", COUNTS, [{"name": name, "count": count} for name, count in report.counts.items()]))
    screen.print(f"State: {job.state_file}", markup=False, soft_wrap=True)
