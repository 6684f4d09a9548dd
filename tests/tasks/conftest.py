"""Fixtures of the tasks' tests: a real warehouse with validated bars of two small universes, and stored forecasts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.panel import TS_TYPE
from models.sessions import bar_opens
from tasks.ledger import write_night
from tasks.night import Night
from tests.market_place import LiveDesk, publish_fitted_night
from tests.universes import make_perpetuals, make_stocks
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.tables import append

START = date(2024, 1, 2)
SECTORS = {"AAA": "Energy", "BBB": "Energy", "CCC": "Utilities", "DDD": "Utilities"}
STOCKS = make_stocks(SECTORS, "IDX", START, SECTORS)
PERPETUALS = make_perpetuals(("AAA", "BBB"), date(2024, 6, 1), "Layer 1")
UNIVERSES = {universe.name: universe for universe in (STOCKS, PERPETUALS)}


@dataclass(frozen=True)
class Desk:
    """A warehouse with validated bars of both universes, and its nights."""

    warehouse: Warehouse

    def night(self, as_of: date, universe: str = "stocks") -> Night:
        """The recorded night of ``stocks`` (AAA to DDD, daily) or ``perpetuals`` (AAA and BBB, hourly)."""
        midnight = datetime.combine(as_of + timedelta(days=1), datetime.min.time(), UTC)
        return Night(as_of, "recorded", UNIVERSES[universe], self.warehouse, midnight)

    def publish(self, as_of: date, universe: str = "stocks") -> None:
        """Marks the night as published."""
        night = self.night(as_of, universe)
        write_night(night, state="published", settings="{}", settings_hash="", published_at=night.clock)

    def copy_to(self, folder: Path) -> Desk:
        """A second desk on a copy of the warehouse, in a new folder."""
        folder.mkdir()
        return Desk(Warehouse.from_url(shutil.copy(self.warehouse.path, folder)))

    def execute(self, statement: str, **parameters: object) -> None:
        with self.warehouse.write("test") as con:
            con.execute(statement, parameters)

    def plant_lead_lag(self) -> None:
        """Replaces every daily bar of AAA by BBB's bar of the day before, so that BBB leads AAA."""
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
        """All rows of ``table``, which may include a WHERE clause, in one order."""
        with self.warehouse.read() as con:
            return con.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").to_arrow_table()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty migrated warehouse file, to copy."""
    path = tmp_path_factory.mktemp("migrated") / "warehouse.duckdb"
    migrate(Warehouse.from_url(path))
    return path


@pytest.fixture
def warehouse(migrated_file: Path, tmp_path: Path) -> Warehouse:
    """An empty migrated warehouse."""
    return Warehouse.from_url(shutil.copy(migrated_file, tmp_path))


@pytest.fixture(scope="session")
def desk_file(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with the bars of both universes until the end of July 2024, with dividends, funding and a gap."""
    warehouse = Warehouse.from_url(shutil.copy(migrated_file, tmp_path_factory.mktemp("desk")))
    stamp = {"source": "recorded", "fetched_at": datetime(2024, 7, 31, tzinfo=UTC), "run_id": "bars"}
    with warehouse.write("bars") as con:
        for universe, symbols in ((STOCKS, (*STOCKS.symbols, "IDX")), (PERPETUALS, PERPETUALS.symbols)):
            opens = bar_opens(universe.calendar, universe.interval, universe.history_start.date(), date(2024, 8, 1))
            keys = {"universe": universe.name, **stamp}
            append(con, "store.bars", bar_rows(opens, symbols), interval=universe.interval, **keys)
        con.execute("DELETE FROM store.bars WHERE symbol = 'DDD' AND (ts < '2024-03-01' OR ts::DATE = '2024-05-07')")
        ex_date = pa.array([datetime(2024, 4, 1, 13, 30)], TS_TYPE)
        dividend = pa.table({"symbol": ["AAA"], "ts": ex_date, "kind": ["dividend"], "value": [0.8]})
        append(con, "store.corporate_actions", dividend, universe="stocks", **stamp)
        settled_at = np.arange("2024-06-10T08", "2024-07-05", 8, dtype="datetime64[h]").astype("datetime64[us]")
        keys = {"symbol": ["AAA"] * len(settled_at), "ts": pa.array(settled_at).cast(TS_TYPE)}
        rates = pa.table({**keys, "rate": np.arange(len(settled_at)) * 1e-5})
        append(con, "store.funding_rates", rates, universe="perpetuals", **stamp)
    return warehouse.path


@pytest.fixture
def desk(desk_file: Path, tmp_path: Path) -> Desk:
    """A desk on a copy of ``desk_file``."""
    return Desk(Warehouse.from_url(shutil.copy(desk_file, tmp_path)))


def bar_rows(opens: np.ndarray, symbols: tuple[str, ...]) -> pa.Table:
    """Bars of symbols that share one factor."""
    shape = (len(opens), len(symbols))
    rng = np.random.default_rng(7)
    close = 50 * np.exp(np.cumsum(0.01 * (rng.normal(size=(shape[0], 1)) + rng.normal(size=shape)), axis=0))
    open_ = close * np.exp(rng.normal(0, 0.003, shape))
    return pa.table(
        {
            "symbol": np.tile(np.array(symbols, dtype=object), shape[0]),
            "ts": pa.array(np.repeat(opens, shape[1])).cast(TS_TYPE),
            "open": open_.ravel(),
            "high": (np.maximum(open_, close) * 1.002).ravel(),
            "low": (np.minimum(open_, close) * 0.998).ravel(),
            "close": close.ravel(),
            "volume": np.floor(rng.lognormal(10, 1, close.size)),
        }
    )


@pytest.fixture(scope="session")
def published_folder(desk_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the warehouse of a published night of perpetuals, see tests/market_place.py."""
    folder = tmp_path_factory.mktemp("published")
    publish_fitted_night(Desk(Warehouse.from_url(shutil.copy(desk_file, folder))), folder)
    return folder


@pytest.fixture
def live_desk(published_folder: Path, tmp_path: Path) -> Iterator[LiveDesk]:
    """The desk after that night with REST data of the hours after it, in a warehouse of its own."""
    folder = tmp_path / "live_desk"
    shutil.copytree(published_folder, folder)
    desk = LiveDesk(Desk(Warehouse.from_url(folder / "warehouse.duckdb")), folder)
    yield desk
    for client in desk.clients:
        client.close()


@pytest.fixture(scope="session")
def open_desk() -> Callable[[Path], Desk]:
    """The desk of a warehouse file, for fixtures that prepare one for many tests."""
    return lambda path: Desk(Warehouse.from_url(path))


@pytest.fixture(scope="session")
def store_forecasts() -> Callable[..., None]:
    """Stores predictions: ``store_forecasts(desk, trial_id, start=date, side={symbol: −1 | 0 | 1}, confidence=0.6)``.

    Without ``side`` each side is random, seeded by the trial, so that its portfolio trades.
    """

    def store(
        desk: Desk,
        trial_id: str,
        start: date,
        end: date = date(2024, 8, 1),
        universe: str = "stocks",
        side: dict[str, int] | None = None,
        confidence: float = 0.6,
        horizons: tuple[int, ...] = (1, 5, 20),
    ) -> None:
        symbols = UNIVERSES[universe].symbols
        opens = bar_opens(UNIVERSES[universe].calendar, UNIVERSES[universe].interval, start, end)
        rng = np.random.default_rng(sum(trial_id.encode()))
        shape = (len(opens), len(symbols))
        sides = (
            rng.integers(-1, 2, shape) if side is None else np.array([[side.get(s, 0) for s in symbols]] * len(opens))
        )
        other = (1 - confidence) / 2
        three = np.where(sides[:, :, None] == np.array([-1, 0, 1]), confidence, other)
        columns = {
            "p_strong_sell": three[:, :, 0] * 0.4,
            "p_sell": three[:, :, 0] * 0.6,
            "p_hold": three[:, :, 1],
            "p_buy": three[:, :, 2] * 0.6,
            "p_strong_buy": three[:, :, 2] * 0.4,
            "expected_return": 0.01 * sides,
            "expected_volatility": np.full(shape, 0.02),
        }
        rows = pa.table(
            {
                "symbol": np.tile(np.array(symbols, dtype=object), len(opens)),
                "ts": pa.array(np.repeat(opens, len(symbols))).cast(TS_TYPE),
                **{name: values.ravel() for name, values in columns.items()},
            }
        )
        keys = {"source": "recorded", "universe": universe, "trial_id": trial_id, "fold": 0, "run_id": "forecast"}
        with desk.warehouse.write("forecast") as con:
            for horizon in horizons:
                append(con, "store.predictions", rows, horizon_bars=horizon, **keys)

    return store
