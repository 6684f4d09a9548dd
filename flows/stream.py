"""Stream: stores the events of an exchange as they happen, and optionally forecasts at the close of each bar.

This flow is no step of the night (the run for one as-of date). It runs until it is stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Annotated

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from flows.parameters import WAREHOUSE_FIELD, load_bybit_universe, open_warehouse
from flows.settings import load_settings
from flows.terminal import log_to_screen, make_table
from models.sessions import FAR_FUTURE
from tasks.live.event_feed import EventConsumer, StoreOnly
from tasks.live.job import StreamJob, StreamReport
from tasks.live.market import LiveMarket
from tasks.live.stream import stream_events
from tasks.markets.bybit import LIVE_URL as REST_URL
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_ws import LIVE_URL
from warehouse.universes import load_universe

COUNT_COLUMNS = {"name": ("what", ""), "count": ("how many", ",d")}


class StreamParameters(BaseModel):
    """Parameters of the flow `stream`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    universe: Annotated[str, Field(description="a universe of Bybit perpetuals")] = "crypto"
    minutes: Annotated[
        float | None, Field(gt=0, description="stop after so many minutes; empty: run until stopped")
    ] = None
    url: Annotated[
        str | None,
        Field(pattern=r"^wss?://\S+$", description="websocket to use instead of Bybit's; its rows get source=recorded"),
    ] = None
    rest_url: Annotated[
        str | None,
        Field(pattern=r"^https?://\S+$", description="REST service of that url, for missed trades and closed bars"),
    ] = None
    model: Annotated[
        str | None,
        Field(description="a temporal graph network that forecasts at every close; empty: events are only stored"),
    ] = None
    warehouse: Annotated[str | None, WAREHOUSE_FIELD] = None
    save_every_s: Annotated[
        float, Field(gt=0, le=3600, description="interval between saves; a kill loses at most this much, and no trades")
    ] = 5.0
    book_every_ms: Annotated[
        int, Field(ge=1, description="a symbol's order book is stored at most once per so many milliseconds")
    ] = 1000
    bound_ms: Annotated[
        int, Field(ge=0, le=60_000, description="an event may arrive at most so long after a newer one")
    ] = 1000

    @contextlib.contextmanager
    def job(self) -> Iterator[StreamJob]:
        """The job of these parameters, for use in a ``with`` block; its warehouse is migrated.

        The connections of the job are closed after the block. Raises SettingsError for a universe that is not Bybit's.
        """
        warehouse = open_warehouse(load_settings(warehouse_url=self.warehouse))
        universe = load_bybit_universe(warehouse, self.universe, self.url, self.rest_url)
        today = datetime.now(UTC).date()
        symbols = {member.symbol for member in universe.members if (member.valid_to or date.max) > today}
        job_options = self.model_dump(include={"model", "minutes", "save_every_s", "book_every_ms", "bound_ms"})
        has_rest = bool(self.rest_url) or not self.url  # another websocket than Bybit's has none by default
        rest = Bybit(FAR_FUTURE, url=self.rest_url or REST_URL) if has_rest else None
        source = "recorded" if self.url else "live"
        try:
            yield StreamJob(
                warehouse,
                universe.name,
                tuple(sorted(symbols)),
                source=source,
                url=self.url or LIVE_URL,
                rest=rest,
                **job_options,
            )
        finally:
            if rest is not None:
                rest.close()

    def event_consumer(self, job: StreamJob) -> EventConsumer:
        """The consumer of the events: a network from its newest published fold, or StoreOnly without a model."""
        if self.model is None:
            return StoreOnly()
        from tasks.live.network import LiveNetwork, published_fold  # imports torch, which takes seconds

        market = LiveMarket(job.warehouse, load_universe(job.warehouse, job.universe), job.source, job.rest)
        return LiveNetwork(published_fold(market, self.model), market, job.symbols)


@flow
def stream(stream: StreamParameters = StreamParameters()) -> StreamReport:  # noqa: B008 (frozen; the UI's defaults)
    """Report of the run after it was stopped. Stores events of one universe; continues where the last run stopped."""
    with stream.job() as job:
        return stream_events(job, stream.event_consumer(job))


def run_stream(parameters: StreamParameters, console: Console) -> None:
    """Streams in this process, shows the progress, and prints the number of events of each kind at the end."""
    with parameters.job() as job, log_to_screen(job.warehouse.path.with_name(f"{job.warehouse.path.stem}.stream.log")):
        report = stream_events(job, parameters.event_consumer(job))
    console.print(f"{report.universe}, {report.source}, {report.seconds:.0f} s", style="bold", markup=False)
    console.print(
        make_table("Counts", COUNT_COLUMNS, [{"name": name, "count": count} for name, count in report.counts.items()])
    )
    console.print(f"State: {job.state_file}", markup=False, soft_wrap=True)
