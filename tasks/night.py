"""One night of one universe: the keys and the clock that every task reads and writes its slice with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from models.hashing import short_hash
from warehouse.connect import Warehouse
from warehouse.universes import Universe


@dataclass(frozen=True)
class Night:
    """The night ``as_of`` (UTC date) of one universe from one source.

    ``clock`` (UTC instant) is the time of the night: it reads nothing received after it. ``run_id`` follows from the
    night alone, so that the same night run again writes the same rows.
    """

    as_of: date
    source: str
    universe: Universe
    warehouse: Warehouse
    clock: datetime
    tape: Path | None = None

    @property
    def run_id(self) -> str:
        """First 16 hex digits of sha256("as_of|source|universe")."""
        return short_hash(f"{self.as_of}|{self.source}|{self.universe.name}")

    @property
    def slice(self) -> dict[str, object]:
        """Key columns of every row of this universe and source."""
        return {"source": self.source, "universe": self.universe.name}

    @property
    def stamp(self) -> dict[str, object]:
        """Columns of a raw row: the run of the night that received it, and the night's clock."""
        return {"run_id": self.run_id, "fetched_at": self.clock}
