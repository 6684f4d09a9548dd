"""A night: the run for one as-of date, universe and source, with the keys and the clock that every task uses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from models.hashing import short_hash
from warehouse.connect import Warehouse
from warehouse.universes import Universe


@dataclass(frozen=True)
class Night:
    """The run for the UTC date ``as_of`` of one universe with data from one source (live, recorded or simulated).

    The night reads no data received after ``clock``, an aware UTC datetime. ``tape`` is the folder of recorded market
    data of a recorded night, otherwise None. ``run_id`` depends only on date, source and universe, so a night that is
    run again writes the same rows.
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
        """Key columns of all rows of this source and universe, whatever the night."""
        return {"source": self.source, "universe": self.universe.name}

    @property
    def stamp(self) -> dict[str, object]:
        """Further columns of a raw row: the ``run_id`` of the night that received it, and ``fetched_at``, its clock."""
        return {"run_id": self.run_id, "fetched_at": self.clock}
