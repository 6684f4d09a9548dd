"""The options of one run of a stream, and the report at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from models.hashing import short_hash
from tasks.events import VENUE
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_ws import Timing
from warehouse.connect import Warehouse

# what a stream counts: its events, their faults, and its forecasts
COUNT_NAMES = (
    *("events", "stored", "late", "duplicates", "gaps", "reconnects", "malformed", "rejected", "filled", "unfilled"),
    *("unreadable", "forecasts", "unforecast"),
)
# warnings: events ahead of our clock, periods without events, event storms
WARNING_NAMES = ("ahead", "stale", "storms")


@dataclass(frozen=True)
class StreamJob:
    """The options of one run of a stream.

    url                the websocket's address
    rest               serves the trades that were missed while unconnected; None: these trades stay missing
    model              the network that forecasts, None: events are only stored; each model has its own state file
    minutes            how long the stream runs; None: until it is stopped
    save_every_s       seconds between two writes to the warehouse
    backfill_every_s   the least seconds between two requests for missed trades
    book_every_ms      at most one book event per symbol is stored in each slot of this length
    bound_ms           an event that is older than the newest received event by more than this is late
    max_quiet_s        the stream warns after as many seconds without an event (TGN-39)
    max_events_per_s   the stream warns when more events arrive per second (TGN-39)
    """

    warehouse: Warehouse
    universe: str
    symbols: tuple[str, ...]
    source: str
    url: str
    rest: Bybit | None = None
    model: str | None = None
    minutes: float | None = None
    save_every_s: float = 5.0
    backfill_every_s: float = 10.0
    book_every_ms: int = 1_000
    bound_ms: int = 1_000
    max_quiet_s: float = 60.0
    max_events_per_s: float = 10_000.0
    timing: Timing = field(default_factory=Timing)

    @property
    def state_file(self) -> Path:
        """The path of the state file, in a folder beside the warehouse's file."""
        folder = self.warehouse.path.with_name(f"{self.warehouse.path.stem}.streams")
        return folder / f"{'-'.join(filter(None, (self.source, self.universe, self.model)))}.npz"

    @property
    def keys(self) -> dict[str, object]:
        """The query parameters that select this stream's events in the warehouse."""
        return {"source": self.source, "venue": VENUE, "symbols": list(self.symbols)}

    @property
    def run_id(self) -> str:
        """The run id of the rows that this stream writes: the short hash of "stream|source|universe"."""
        return short_hash(f"stream|{self.source}|{self.universe}")


@dataclass(frozen=True)
class StreamReport:
    """How long a stream ran, in seconds, and its counts by the names in COUNT_NAMES and WARNING_NAMES.

    ``forecasts`` counts the forecast rows that were written, ``unforecast`` the bars whose close gave no forecast.
    """

    universe: str
    source: str
    seconds: float
    counts: dict[str, int]
