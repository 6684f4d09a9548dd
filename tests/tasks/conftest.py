"""A desk: a real warehouse with validated bars of two small universes, to run tasks on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.panel import TS_TYPE
from models.sessions import bar_opens
from tasks.night import Night
from tests.market_place import Place, publish_night
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.tables import append
from warehouse.universes import Member, Universe

START = date(2024, 1, 2)
SECTORS = {"AAA": "Energy", "BBB": "Energy", "CCC": "Utilities", "DDD": "Utilities"}
STOCKS = Universe(
    name="stocks",
    provider="yahoo",
    interval="1d",
    calendar="XNYS",
    benchmark="IDX",
    history_start=datetime.combine(START, datetime.min.time(), UTC),
    commission_bps=1,
    slippage_bps=5,
    survivorship_biased=True,
    members=tuple(Member(symbol, sector, None, START, None) for symbol, sector in SECTORS.items()),
)
PERPETUALS = replace(
    STOCKS,
    name="perpetuals",
    provider="bybit",
    interval="1h",
    calendar="24/7",
    benchmark="AAA",
    history_start=datetime(2024, 6, 1, tzinfo=UTC),
    members=tuple(Member(symbol, "Layer 1", None, START, None) for symbol in ("AAA", "BBB")),
)
UNIVERSES = {universe.name: universe for universe in (STOCKS, PERPETUALS)}


@dataclass(frozen=True)
class Desk:
    """A warehouse with validated bars of both universes, and its nights."""

    warehouse: Warehouse

    def night(self, as_of: date, universe: str = "stocks") -> Night:
        """The recorded night of ``stocks`` (AAA to DDD, daily) or ``perpetuals`` (AAA and BBB, hourly)."""
        midnight = datetime.combine(as_of + timedelta(days=1), datetime.min.time(), UTC)
        return Night(as_of, "recorded", UNIVERSES[universe], self.warehouse, midnight)

    def another(self, folder: Path) -> Desk:
        """A second desk with what this one holds now."""
        folder.mkdir()
        return Desk(Warehouse.at(shutil.copy(self.warehouse.path, folder)))

    def execute(self, statement: str, **parameters: object) -> None:
        with self.warehouse.write("test") as con:
            con.execute(statement, parameters)

    def plant_leader(self) -> None:
        """Makes every daily bar of AAA that of BBB the day before: BBB leads AAA."""
        self.execute(
            "UPDATE store.bars AS b SET open = p.open, high = p.high, low = p.low, close = p.close FROM (SELECT ts, "
            "lag(open) OVER w AS open, lag(high) OVER w AS high, lag(low) OVER w AS low, lag(close) OVER w AS close "
            "FROM store.bars WHERE universe = 'stocks' AND symbol = 'BBB' WINDOW w AS (ORDER BY ts)) AS p "
            "WHERE b.universe = 'stocks' AND b.symbol = 'AAA' AND b.ts = p.ts AND p.open IS NOT NULL"
        )

    def rows(self, query: str) -> list[tuple]:
        with self.warehouse.read() as con:
            return con.execute(query).fetchall()

    def contents(self, table: str, columns: str = "*") -> pa.Table:
        with self.warehouse.read() as con:
            return con.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").to_arrow_table()


@pytest.fixture(scope="session")
def desk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with the bars of both universes until the end of July 2024, with dividends, funding and a gap."""
    warehouse = Warehouse.at(tmp_path_factory.mktemp("desk") / "warehouse.duckdb")
    migrate(warehouse)
    stamp = {"source": "recorded", "fetched_at": datetime(2024, 7, 31, tzinfo=UTC), "run_id": "bars"}
    with warehouse.write("bars") as con:
        for universe, symbols in ((STOCKS, (*STOCKS.symbols, "IDX")), (PERPETUALS, PERPETUALS.symbols)):
            opens = bar_opens(universe.calendar, universe.interval, universe.history_start.date(), date(2024, 8, 1))
            keys = {"universe": universe.name, **stamp}
            append(con, "store.bars", bar_rows(opens, symbols), interval=universe.interval, **keys)
        con.execute("DELETE FROM store.bars WHERE symbol = 'DDD' AND (ts < '2024-03-01' OR ts::DATE = '2024-05-07')")
        paid = {"symbol": ["AAA"], "ts": pa.array([datetime(2024, 4, 1, 13, 30)], TS_TYPE), "kind": ["dividend"]}
        append(con, "store.corporate_actions", pa.table({**paid, "value": [0.8]}), universe="stocks", **stamp)
        settled = np.arange("2024-06-10T08", "2024-07-05", 8, dtype="datetime64[h]").astype("datetime64[us]")
        funding = {"symbol": ["AAA"] * len(settled), "ts": pa.array(settled).cast(TS_TYPE)}
        rates = pa.table({**funding, "rate": np.arange(len(settled)) * 1e-5})
        append(con, "store.funding_rates", rates, universe="perpetuals", **stamp)
    return warehouse.path


@pytest.fixture
def desk(desk_file: Path, tmp_path: Path) -> Desk:
    return Desk(Warehouse.at(shutil.copy(desk_file, tmp_path)))


def bar_rows(opens: np.ndarray, symbols: tuple[str, ...]) -> pa.Table:
    """Bars of symbols that share one factor."""
    t, n = len(opens), len(symbols)
    draw = np.random.default_rng(7)
    close = 50 * np.exp(np.cumsum(0.01 * (draw.normal(size=(t, 1)) + draw.normal(size=(t, n))), axis=0))
    open_ = close * np.exp(draw.normal(0, 0.003, (t, n)))
    return pa.table(
        {
            "symbol": np.tile(np.array(symbols, dtype=object), t),
            "ts": pa.array(np.repeat(opens, n)).cast(TS_TYPE),
            "open": open_.ravel(),
            "high": (np.maximum(open_, close) * 1.002).ravel(),
            "low": (np.minimum(open_, close) * 0.998).ravel(),
            "close": close.ravel(),
            "volume": np.floor(draw.lognormal(10, 1, t * n)),
        }
    )


@pytest.fixture(scope="session")
def published_folder(desk_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the warehouse of a published night of perpetuals, see tests/market_place.py."""
    folder = tmp_path_factory.mktemp("published")
    publish_night(Desk(Warehouse.at(shutil.copy(desk_file, folder))), folder)
    return folder


@pytest.fixture
def place(published_folder: Path, tmp_path: Path) -> Iterator[Place]:
    """The market place after that night, with a warehouse of its own."""
    folder = tmp_path / "place"
    shutil.copytree(published_folder, folder)
    made = Place(Desk(Warehouse.at(folder / "warehouse.duckdb")), folder)
    yield made
    for client in made.clients:
        client.close()


@pytest.fixture(scope="session")
def open_desk() -> Callable[[Path], Desk]:
    """The desk of a warehouse file, for fixtures that prepare one for many tests."""
    return lambda path: Desk(Warehouse.at(path))


@pytest.fixture(scope="session")
def forecast() -> Callable[..., None]:
    """Stores predictions: ``forecast(desk, trial_id, start=date, side={symbol: −1 | 0 | 1}, confidence=0.6)``.

    Without ``side`` they are random but the same for a trial, so that its book trades.
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
        of = UNIVERSES[universe]
        draw = np.random.default_rng(sum(trial_id.encode()))
        opens = bar_opens(of.calendar, of.interval, start, end)
        shape = (len(opens), len(of.symbols))
        way = (
            draw.integers(-1, 2, shape)
            if side is None
            else np.array([[side.get(s, 0) for s in of.symbols]] * len(opens))
        )
        other = (1 - confidence) / 2
        three = np.where(way[:, :, None] == np.array([-1, 0, 1]), confidence, other)
        columns = {
            "p_strong_sell": three[:, :, 0] * 0.4,
            "p_sell": three[:, :, 0] * 0.6,
            "p_hold": three[:, :, 1],
            "p_buy": three[:, :, 2] * 0.6,
            "p_strong_buy": three[:, :, 2] * 0.4,
            "expected_return": 0.01 * way,
            "expected_volatility": np.full(shape, 0.02),
        }
        rows = pa.table(
            {
                "symbol": np.tile(np.array(of.symbols, dtype=object), len(opens)),
                "ts": pa.array(np.repeat(opens, len(of.symbols))).cast(TS_TYPE),
                **{name: values.ravel() for name, values in columns.items()},
            }
        )
        keys = {"source": "recorded", "universe": universe, "trial_id": trial_id, "fold": 0, "run_id": "forecast"}
        with desk.warehouse.write("forecast") as con:
            for horizon in horizons:
                append(con, "store.predictions", rows, horizon_bars=horizon, **keys)

    return store
