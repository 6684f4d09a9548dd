"""The settings of one run of a stream, and the report at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from models.hashing import short_hash
from tasks.events import VENUE
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_ws import Timing
from warehouse.connect import Warehouse

COUNTED = (
    *("events", "stored", "late", "duplicates", "gaps", "reconnects", "malformed", "rejected", "filled", "unfilled"),
    *("unreadable", "forecasts", "unforecast"),
)
BREAKERS = ("ahead", "stale", "storms")


@dataclass(frozen=True)
class StreamJob:
    """What to stream, from where, and for how long (``minutes``; None: until stopped).

    ``rest`` serves the trades that were missed, at most every ``sweep_every_s``; without it they stay missing.
    ``model`` names the network that forecasts; each model has its own state file. ``bound_ms``: how long after a newer
    event an event may still arrive. The stream warns after ``stale_s`` without an event, and above ``storm_per_s``
    events a second (TGN-39).
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
    sweep_every_s: float = 10.0
    book_every_ms: int = 1_000
    bound_ms: int = 1_000
    stale_s: float = 60.0
    storm_per_s: float = 10_000.0
    timing: Timing = field(default_factory=Timing)

    @property
    def state_file(self) -> Path:
        """The file that the state is saved in, beside the warehouse."""
        folder = self.warehouse.path.with_name(f"{self.warehouse.path.stem}.streams")
        return folder / f"{'-'.join(filter(None, (self.source, self.universe, self.model)))}.npz"

    @property
    def keys(self) -> dict[str, object]:
        """Selects this stream's events in queries of the warehouse."""
        return {"source": self.source, "venue": VENUE, "symbols": list(self.symbols)}

    @property
    def run_id(self) -> str:
        """First 16 hex digits of sha256("stream|source|universe")."""
        return short_hash(f"stream|{self.source}|{self.universe}")


@dataclass(frozen=True)
class StreamReport:
    """How long a stream ran, in seconds, and its counts by the names in COUNTED and BREAKERS. ``forecasts`` counts
    rows written, ``unforecast`` the bars whose close gave no forecast."""

    universe: str
    source: str
    seconds: float
    counts: dict[str, int]
