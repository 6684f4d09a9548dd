"""Fixtures of the tasks' tests: a test warehouse with recorded bars of two small universes, and stored forecasts.

A night is the run for one as-of date. The class Desk and its universes are defined in tests/desk.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.panel import TS_TYPE
from models.sessions import bar_opens
from tests.desk import PERPETUALS, STOCKS, UNIVERSES, Desk
from tests.market_place import LiveDesk, publish_fitted_night
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.tables import append


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
    """A warehouse file with the bars of both universes up to and including 31 July 2024.

    AAA pays a dividend of 0.8 on 1 April. DDD has no bar before March and none on 7 May. The k-th funding settlement of
    AAA (k from 0, every 8 hours from 10 June 08:00, before 5 July) has the rate k · 1e-5; BBB has no settlement.
    """
    warehouse = Warehouse.from_url(shutil.copy(migrated_file, tmp_path_factory.mktemp("desk")))
    stamp = {"source": "recorded", "fetched_at": datetime(2024, 7, 31, tzinfo=UTC), "run_id": "bars"}
    with warehouse.write("bars") as con:
        for universe, symbols in ((STOCKS, (*STOCKS.symbols, "IDX")), (PERPETUALS, PERPETUALS.symbols)):
            open_times = bar_opens(
                universe.calendar, universe.interval, universe.history_start.date(), date(2024, 8, 1)
            )
            keys = {"universe": universe.name, **stamp}
            append(con, "store.bars", make_bar_rows(open_times, symbols), interval=universe.interval, **keys)
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
    """A test warehouse: a copy of ``desk_file``."""
    return Desk(Warehouse.from_url(shutil.copy(desk_file, tmp_path)))


def make_bar_rows(open_times: np.ndarray, symbols: tuple[str, ...]) -> pa.Table:
    """One bar per open time and symbol: random walks that share one factor, the same on every call."""
    n_bars = len(open_times)
    shape = (n_bars, len(symbols))
    rng = np.random.default_rng(7)
    close = 50 * np.exp(np.cumsum(0.01 * (rng.normal(size=(n_bars, 1)) + rng.normal(size=shape)), axis=0))
    open_ = close * np.exp(rng.normal(0, 0.003, shape))
    return pa.table(
        {
            "symbol": np.tile(np.array(symbols, dtype=object), n_bars),
            "ts": pa.array(np.repeat(open_times, len(symbols))).cast(TS_TYPE),
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
    """A test warehouse, a copy of ``published_folder``, with the REST data of the hours after the published night."""
    folder = tmp_path / "live_desk"
    shutil.copytree(published_folder, folder)
    desk = LiveDesk(Desk(Warehouse.from_url(folder / "warehouse.duckdb")), folder)
    yield desk
    for client in desk.clients:
        client.close()


@pytest.fixture(scope="session")
def open_desk() -> Callable[[Path], Desk]:
    """Opens the desk of a warehouse file, for fixtures that prepare a file for many tests."""
    return lambda path: Desk(Warehouse.from_url(path))


@pytest.fixture(scope="session")
def store_forecasts() -> Callable[..., None]:
    """A function that stores predictions of one trial for the bars in [start, end), the same at every horizon.

    Call: ``store_forecasts(desk, trial_id, start=…, direction={symbol: −1 | 0 | 1})``.

    ``confidence`` is the probability of the predicted direction, sell (−1), hold (0) or buy (1); the other two share
    the rest equally. Of buy and of sell, 60 % is the plain class and 40 % the strong class. A symbol that ``direction``
    lacks is held. Without ``direction`` all directions are random, seeded by the trial, so that its portfolio trades.
    """

    def store(
        desk: Desk,
        trial_id: str,
        start: date,
        end: date = date(2024, 8, 1),
        universe: str = "stocks",
        direction: dict[str, int] | None = None,
        confidence: float = 0.6,
        horizons: tuple[int, ...] = (1, 5, 20),
    ) -> None:
        symbols = UNIVERSES[universe].symbols
        open_times = bar_opens(UNIVERSES[universe].calendar, UNIVERSES[universe].interval, start, end)
        rng = np.random.default_rng(sum(trial_id.encode()))
        shape = (len(open_times), len(symbols))
        if direction is None:
            directions = rng.integers(-1, 2, shape)
        else:
            directions = np.array([[direction.get(symbol, 0) for symbol in symbols]] * len(open_times))
        is_predicted = directions[:, :, None] == np.array([-1, 0, 1])
        probabilities = np.where(is_predicted, confidence, (1 - confidence) / 2)
        sell, hold, buy = np.moveaxis(probabilities, -1, 0)
        columns = {
            "p_strong_sell": sell * 0.4,
            "p_sell": sell * 0.6,
            "p_hold": hold,
            "p_buy": buy * 0.6,
            "p_strong_buy": buy * 0.4,
            "expected_return": 0.01 * directions,
            "expected_volatility": np.full(shape, 0.02),
        }
        rows = pa.table(
            {
                "symbol": np.tile(np.array(symbols, dtype=object), len(open_times)),
                "ts": pa.array(np.repeat(open_times, len(symbols))).cast(TS_TYPE),
                **{name: values.ravel() for name, values in columns.items()},
            }
        )
        keys = {"source": "recorded", "universe": universe, "trial_id": trial_id, "fold": 0, "run_id": "forecast"}
        with desk.warehouse.write("forecast") as con:
            for horizon in horizons:
                append(con, "store.predictions", rows, horizon_bars=horizon, **keys)

    return store
