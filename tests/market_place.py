"""A published night (the run for one date) of two perpetuals with a fitted tgn, and the market of the hours after it.

"Hours" are hours after MIDNIGHT, the clock of the published night.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.features.indicators import compute_features
from models.graphs.context import SideInputs
from models.scoring.folds import Fold
from models.training.fit import predict_fold
from tasks.graphs import build_graphs, write_features
from tasks.ledger import write_night
from tasks.live.job import StreamJob, StreamReport
from tasks.live.market import LiveMarket
from tasks.live.network import LiveNetwork, published_fold
from tasks.live.stream import MarketStream
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_frames import topics_for
from tasks.markets.retry_policy import NO_RETRY
from tasks.night import Night
from tasks.panels import bar_grid, load_bar_events, load_bars, load_snapshots
from tasks.train import Recipe, load_training_data, train_model
from tests.exchange import QUICK_TIMING, FakeExchange, run_until_script_ends
from warehouse.publish import publish_copy
from warehouse.tables import append
from warehouse.universes import Universe

NIGHT_DATE = date(2024, 6, 28)
NEXT_NIGHT_DATE = date(2024, 6, 29)
MIDNIGHT = datetime(2024, 6, 29, tzinfo=UTC)  # the published night's clock; its last bar closes here
HOUR_MS = 3_600_000
GRAPH_OPTIONS = {"graphs": ("correlation",), "window_bars": 24, "min_correlation": 0.05, "top_k": 1, "every_bars": 12}
RECIPE = Recipe(
    horizons=(1, 4),
    class_horizon=4,
    folds={"warmup_bars": 241, "train_bars": 60, "test_bars": 300, "embargo_bars": 4},
    train={"epochs": 1, "chunk_bars": 16, "burn_in_bars": 4, "context_bars": 8},
)
# tables whose rows after midnight REST serves; a funding settlement at midnight is part of the published night
REST_TABLES = {"bars": ">=", "funding_rates": ">"}
UNIVERSE_COLUMNS = (
    *("provider", "interval", "calendar", "benchmark", "history_start", "commission_bps", "slippage_bps"),
    "survivorship_biased",
)
PREDICTION_COLUMNS = (
    "expected_return",
    "expected_volatility",
    "p_strong_sell",
    "p_sell",
    "p_hold",
    "p_buy",
    "p_strong_buy",
)
SYMBOLS = ("AAA", "BBB")


def ms_after_midnight(hours: float) -> int:
    """The time ``hours`` after midnight, in milliseconds UTC."""
    return int(MIDNIGHT.timestamp() * 1000 + hours * HOUR_MS)


def trade(hours: float, symbol: str = "AAA", value: float = 150_000.0, name: str = "") -> str:
    """A frame with one trade worth ``value`` at the price 60 + hours; ``name`` is its id."""
    stamp = ms_after_midnight(hours)
    price = 60.0 + hours
    data = {"T": stamp, "s": symbol, "S": "Buy", "v": f"{value / price:.3f}", "p": f"{price}"}
    data["i"] = name or f"{symbol}-{stamp}-{value:.0f}"
    return json.dumps({"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": stamp, "data": [data]})


def liquidation(hours: float, symbol: str = "BBB") -> str:
    """A frame with one liquidation of 700 coins at the price 50 + hours."""
    stamp = ms_after_midnight(hours)
    data = {"T": stamp, "s": symbol, "S": "Sell", "v": "700", "p": f"{50 + hours}"}
    return json.dumps({"topic": f"allLiquidation.{symbol}", "type": "snapshot", "ts": stamp, "data": [data]})


def ticker(hours: float, symbol: str = "AAA", kind: str = "snapshot") -> str:
    """A ticker frame with the open interest 5000 + 10 · hours and a constant funding rate."""
    data = {"symbol": symbol, "fundingRate": "0.0002", "openInterest": f"{5000 + 10 * hours}"}
    data["nextFundingTime"] = str(ms_after_midnight(8))
    stamp = ms_after_midnight(hours)
    return json.dumps({"topic": f"tickers.{symbol}", "type": kind, "cs": stamp, "ts": stamp, "data": data})


def market_frames(first: float, last: float) -> list[str]:
    """The frames of each quarter of an hour in [first, last): trades, a liquidation and a ticker.

    There are large, small (500) and simultaneous trades, and a trade exactly at the close of every hour.
    """
    steps = []
    for quarter in range(int(4 * first), int(4 * last)):
        hour = quarter / 4
        steps += [trade(hour + 0.05), trade(hour + 0.05, name=f"twin-{quarter}"), trade(hour + 0.1, "BBB", 500.0)]
        steps += [liquidation(hour + 0.12), ticker(hour + 0.15), trade(hour + 0.2, "BBB")]
        if quarter % 4 == 3:
            steps += [trade(hour + 0.25, name=f"close-{quarter}")]
    return steps


def publish_fitted_night(desk: Any, folder: Path) -> None:
    """Publishes a night of the desk's perpetuals with a fitted tgn.

    The stored bars and funding rates after midnight are moved into parquet files in ``folder``.
    """
    night = desk.night(NIGHT_DATE, "perpetuals")
    write_features.fn(night)
    build_graphs.fn(night, **GRAPH_OPTIONS)
    trial = train_model.fn(night, load_training_data.fn(night, RECIPE, ("tgn",)), "tgn", 0, RECIPE).trial_id
    write_night(night, state="published", settings="{}", settings_hash="", published_at=night.clock)
    champion = {"role": "champion", "model": "tgn", "trial_ids": [trial], "reason": "best"}
    with desk.warehouse.write("night") as con:
        keys = {**night.slice, "night": NIGHT_DATE, "run_id": night.run_id}
        append(con, "store.model_registry", pa.Table.from_pylist([champion]), **keys)
        for table, operator in REST_TABLES.items():
            where = f"universe = 'perpetuals' AND ts {operator} '{MIDNIGHT}'"
            con.execute(f"COPY (SELECT * FROM store.{table} WHERE {where}) TO '{folder / table}.parquet'")
            con.execute(f"DELETE FROM store.{table} WHERE {where}")
    publish_copy(desk.warehouse, "recorded", "perpetuals")


@dataclass
class LiveDesk:
    """A desk (tests/desk.py) with the published night, and the later bars and funding rates, which REST serves.

    ``clients``: the REST clients that were created; the fixture closes them.
    """

    desk: Any
    folder: Path
    clients: list[Bybit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bars, self.funding_rates = (
            pq.read_table(self.folder / f"{name}.parquet").to_pylist() for name in REST_TABLES
        )

    @property
    def universe(self) -> Universe:
        return self.desk.night(NIGHT_DATE, "perpetuals").universe

    def serve_rest_data(self, exchange: FakeExchange) -> None:
        """Puts the bars and the funding rates after midnight into the exchange's REST service."""
        exchange.klines = {}
        exchange.funding_rates = {}
        for bar in self.bars:
            numbers = [repr(bar[name]) for name in ("open", "high", "low", "close", "volume")]
            exchange.klines.setdefault(bar["symbol"], []).append([str(row_ms(bar)), *numbers, ""])
        for row in self.funding_rates:
            exchange.funding_rates.setdefault(row["symbol"], []).append((row_ms(row), repr(row["rate"])))

    def market(self, rest_url: str | None = None) -> LiveMarket:
        if rest_url is not None:
            self.clients.append(Bybit(datetime(2100, 1, 1, tzinfo=UTC), retry_policy=NO_RETRY, url=rest_url))
        return LiveMarket(self.desk.warehouse, self.universe, "recorded", self.clients[-1] if rest_url else None)

    def network(self, rest_url: str | None = None, symbols: tuple[str, ...] = SYMBOLS) -> LiveNetwork:
        market = self.market(rest_url)
        return LiveNetwork(published_fold(market, "tgn"), market, symbols)

    def run_stream(
        self, steps: list[str], is_rest_down: bool = False, symbols: tuple[str, ...] = SYMBOLS
    ) -> tuple[MarketStream, StreamReport]:
        """A stream that has received the whole script, and its report."""
        with FakeExchange(steps, topics_for(symbols)) as exchange:
            self.serve_rest_data(exchange)
            exchange.is_rest_down = is_rest_down
            stream = self.stream(exchange, symbols)
            return stream, asyncio.run(run_until_script_ends(stream, exchange))

    def store_universe(self) -> None:
        """Writes the universe into the warehouse, so that the command line can load it by name."""
        universe = {name: getattr(self.universe, name) for name in UNIVERSE_COLUMNS} | {"description": "two perpetuals"}
        members = [{**vars(member), "membership_source": "test"} for member in self.universe.members]
        with self.desk.warehouse.write("universe") as con:
            append(con, "store.universes", pa.Table.from_pylist([universe]), universe=self.universe.name)
            append(con, "store.universe_members", pa.Table.from_pylist(members), universe=self.universe.name)

    def stream(self, exchange: FakeExchange, symbols: tuple[str, ...] = SYMBOLS) -> MarketStream:
        job = StreamJob(self.desk.warehouse, "perpetuals", symbols, "recorded", exchange.url, model="tgn")
        job = replace(job, save_every_s=0.1, book_every_ms=100, timing=replace(QUICK_TIMING, silence_s=5))
        return MarketStream(job, self.network(exchange.rest_url, symbols))

    def forecasts(self, columns: str = f"symbol, ts, horizon_bars, {', '.join(PREDICTION_COLUMNS)}") -> list[tuple]:
        return self.desk.rows(f"SELECT {columns} FROM stream_forecasts ORDER BY ts, symbol, horizon_bars")

    def night_forecasts(self, bars: int) -> list[tuple]:
        """The forecasts of a night for the first ``bars`` bars after midnight, with the events stored so far.

        They are computed with ``predict_fold`` and have the columns of ``forecasts``.
        """
        with self.desk.warehouse.write("the next night") as con:
            for table, rows in zip(REST_TABLES, (self.bars, self.funding_rates), strict=True):
                append(con, f"store.{table}", pa.Table.from_pylist(rows))
        night = Night(NEXT_NIGHT_DATE, "recorded", self.universe, self.desk.warehouse, datetime.now(UTC))
        panel = load_bars(night)
        _, close_times = bar_grid(night)
        features = compute_features(panel, close_times)
        first = int(np.searchsorted(features.ts, np.datetime64(MIDNIGHT.replace(tzinfo=None), "us")))
        fold = published_fold(self.market(), "tgn")
        start = int(np.searchsorted(features.ts, fold.test_start))
        window = Fold(fold.fold, np.arange(0), 0, start, start + fold.test_bars, 0)  # only its test window is used
        graphs = load_snapshots(self.desk.night(NIGHT_DATE, "perpetuals"), "correlation")
        events = load_bar_events(night)
        assert events is not None
        side_inputs = SideInputs(graphs, events.for_bars(features.ts[: first + bars]))
        ((name,),) = self.desk.rows(f"SELECT artifact FROM folds WHERE artifact_sha256 = '{fold.sha256}'")
        artifact = self.desk.warehouse.artifacts / name
        predictions = predict_fold(artifact, features.slice_bars(0, first + bars), side_inputs, window, first)
        return forecast_rows(predictions)


def row_ms(row: dict[str, Any]) -> int:
    """The row's ``ts`` in milliseconds UTC."""
    return round(row["ts"].timestamp() * 1000)


def forecast_rows(predictions: Any) -> list[tuple]:
    """Rows (symbol, ts, horizon, *PREDICTION_COLUMNS) by ts, symbol and horizon, as LiveDesk.forecasts returns them."""
    rows = []
    for i, ts in enumerate(predictions.ts):
        for j, symbol in enumerate(predictions.symbols):
            for k, horizon in enumerate(predictions.horizons):
                returns = predictions.returns[i, j, k]
                numbers = (returns, predictions.volatility[i, j], *predictions.probabilities[i, j])
                rows.append((symbol, ts.astype(datetime).replace(tzinfo=UTC), horizon, *map(float, numbers)))
    return rows
