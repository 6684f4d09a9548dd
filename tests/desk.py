"""The desk of the tasks' tests: a test warehouse with recorded bars of two small universes, and their nights.

A night is the run for one as-of date.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa

from models.sessions import midnight_after
from tasks.ledger import write_night
from tasks.night import Night
from tests.universes import make_perpetuals, make_stocks
from warehouse.connect import Warehouse

START = date(2024, 1, 2)
SECTORS = {"AAA": "Energy", "BBB": "Energy", "CCC": "Utilities", "DDD": "Utilities"}
STOCKS = make_stocks(SECTORS, "IDX", START, SECTORS)
PERPETUALS = make_perpetuals(("AAA", "BBB"), date(2024, 6, 1), "Layer 1")
UNIVERSES = {universe.name: universe for universe in (STOCKS, PERPETUALS)}


@dataclass(frozen=True)
class Desk:
    """A test warehouse with recorded bars of both universes, which opens their nights, changes and reads tables."""

    warehouse: Warehouse

    def night(self, as_of: date, universe: str = "stocks") -> Night:
        """The recorded night of ``stocks`` (AAA to DDD, daily) or ``perpetuals`` (AAA and BBB, hourly).

        Its clock is the midnight (UTC) that ends ``as_of``.
        """
        return Night(as_of, "recorded", UNIVERSES[universe], self.warehouse, clock=midnight_after(as_of))

    def publish(self, as_of: date, universe: str = "stocks") -> None:
        """Marks the night as published, without running its steps."""
        night = self.night(as_of, universe)
        write_night(night, state="published", settings="{}", settings_hash="", published_at=night.clock)

    def copy_to(self, folder: Path) -> Desk:
        """A second desk on a copy of the warehouse file in the new ``folder``; model files are not copied."""
        folder.mkdir()
        return Desk(Warehouse.from_url(shutil.copy(self.warehouse.path, folder)))

    def execute(self, statement: str, **parameters: object) -> None:
        """Executes a statement that changes the warehouse."""
        with self.warehouse.write("test") as con:
            con.execute(statement, parameters)

    def delay_aaa_behind_bbb(self) -> None:
        """Replaces every daily bar of AAA by BBB's bar of the day before, so that BBB leads AAA by one bar."""
        self.execute(
            "UPDATE store.bars AS b SET open = p.open, high = p.high, low = p.low, close = p.close FROM (SELECT ts, "
            "lag(open) OVER w AS open, lag(high) OVER w AS high, lag(low) OVER w AS low, lag(close) OVER w AS close "
            "FROM store.bars WHERE universe = 'stocks' AND symbol = 'BBB' WINDOW w AS (ORDER BY ts)) AS p "
            "WHERE b.universe = 'stocks' AND b.symbol = 'AAA' AND b.ts = p.ts AND p.open IS NOT NULL"
        )

    def rows(self, query: str) -> list[tuple]:
        """Result rows of ``query``."""
        with self.warehouse.read() as con:
            return con.execute(query).fetchall()

    def contents(self, table: str, columns: str = "*") -> pa.Table:
        """All rows of ``table``, ordered by all columns; ``table`` may be followed by a WHERE clause."""
        with self.warehouse.read() as con:
            return con.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").to_arrow_table()
