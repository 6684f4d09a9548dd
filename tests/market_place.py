"""A published night of two perpetuals with a fitted tgn, and what the exchange sends in the hours after it."""

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

FRIDAY = date(2024, 6, 28)
SATURDAY = date(2024, 6, 29)
MIDNIGHT = datetime(2024, 6, 29, tzinfo=UTC)  # the published night's clock, up to which its bars are stored
HOUR_MS = 3_600_000
GRAPH = {"graphs": ("correlation",), "window_bars": 24, "min_correlation": 0.05, "top_k": 1, "every_bars": 12}
RECIPE = Recipe(
    horizons=(1, 4),
    class_horizon=4,
    folds={"warmup_bars": 241, "train_bars": 60, "test_bars": 300, "embargo_bars": 4},
    train={"epochs": 1, "chunk_bars": 16, "burn_in_bars": 4, "context_bars": 8},
)
AFTER_MIDNIGHT = {"bars": ">=", "funding_rates": ">"}  # a settlement at midnight is published by then
COLUMNS = (
    *("provider", "interval", "calendar", "benchmark", "history_start", "commission_bps", "slippage_bps"),
    "survivorship_biased",
)
PREDICTIONS = ("expected_return", "expected_volatility", "p_strong_sell", "p_sell", "p_hold", "p_buy", "p_strong_buy")
SYMBOLS = ("AAA", "BBB")


def ms_after_midnight(hours: float) -> int:
    """The time ``hours`` after midnight, in milliseconds UTC."""
    return int(MIDNIGHT.timestamp() * 1000 + hours * HOUR_MS)


def trade(hours: float, symbol: str = "AAA", value: float = 150_000.0, name: str = "") -> str:
    stamp = ms_after_midnight(hours)
    price = 60.0 + hours
    data = {"T": stamp, "s": symbol, "S": "Buy", "v": f"{value / price:.3f}", "p": f"{price}"}
    data["i"] = name or f"{symbol}-{stamp}-{value:.0f}"
    return json.dumps({"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": stamp, "data": [data]})


def liquidation(hours: float, symbol: str = "BBB") -> str:
    stamp = ms_after_midnight(hours)
    data = {"T": stamp, "s": symbol, "S": "Sell", "v": "700", "p": f"{50 + hours}"}
    return json.dumps({"topic": f"allLiquidation.{symbol}", "type": "snapshot", "ts": stamp, "data": [data]})


def ticker(hours: float, symbol: str = "AAA", kind: str = "snapshot") -> str:
    data = {"symbol": symbol, "fundingRate": "0.0002", "openInterest": f"{5000 + 10 * hours}"}
    data["nextFundingTime"] = str(ms_after_midnight(8))
    stamp = ms_after_midnight(hours)
    return json.dumps({"topic": f"tickers.{symbol}", "type": kind, "cs": stamp, "ts": stamp, "data": data})


def market_frames(first: float, last: float) -> list[str]:
    """Frames from hour ``first`` to ``last``: large, small and simultaneous trades, and trades exactly at closes."""
    steps = []
    for quarter in range(int(4 * first), int(4 * last)):
        hour = quarter / 4
        steps += [trade(hour + 0.05), trade(hour + 0.05, name=f"twin-{quarter}"), trade(hour + 0.1, "BBB", 500.0)]
        steps += [liquidation(hour + 0.12), ticker(hour + 0.15), trade(hour + 0.2, "BBB")]
        if quarter % 4 == 3:
            steps += [trade(hour + 0.25, name=f"close-{quarter}")]
    return steps


def publish_fitted_night(desk: Any, folder: Path) -> None:
    """Runs and publishes a night of perpetuals with a fitted tgn; moves the rows after midnight into parquet files."""
    night = desk.night(FRIDAY, "perpetuals")
    write_features.fn(night)
    build_graphs.fn(night, **GRAPH)
    trial = train_model.fn(night, load_training_data.fn(night, RECIPE, ("tgn",)), "tgn", 0, RECIPE).trial_id
    write_night(night, state="published", settings="{}", settings_hash="", published_at=night.clock)
    champion = {"role": "champion", "model": "tgn", "trial_ids": [trial], "reason": "best"}
    with desk.warehouse.write("night") as con:
        keys = {**night.slice, "night": FRIDAY, "run_id": night.run_id}
        append(con, "store.model_registry", pa.Table.from_pylist([champion]), **keys)
        for table, operator in AFTER_MIDNIGHT.items():
            where = f"universe = 'perpetuals' AND ts {operator} '{MIDNIGHT}'"
            con.execute(f"COPY (SELECT * FROM store.{table} WHERE {where}) TO '{folder / table}.parquet'")
            con.execute(f"DELETE FROM store.{table} WHERE {where}")
    publish_copy(desk.warehouse, "recorded", "perpetuals")


@dataclass
class LiveDesk:
    """A desk with the published night, and the bars and funding rates of the hours after it, which REST serves."""

    desk: Any
    folder: Path
    clients: list[Bybit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bars, self.funding_rates = (
            pq.read_table(self.folder / f"{name}.parquet").to_pylist() for name in AFTER_MIDNIGHT
        )

    @property
    def universe(self) -> Universe:
        return self.desk.night(FRIDAY, "perpetuals").universe

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
        universe = {name: getattr(self.universe, name) for name in COLUMNS} | {"description": "two perpetuals"}
        members = [{**vars(member), "membership_source": "test"} for member in self.universe.members]
        with self.desk.warehouse.write("universe") as con:
            append(con, "store.universes", pa.Table.from_pylist([universe]), universe=self.universe.name)
            append(con, "store.universe_members", pa.Table.from_pylist(members), universe=self.universe.name)

    def stream(self, exchange: FakeExchange, symbols: tuple[str, ...] = SYMBOLS) -> MarketStream:
        job = StreamJob(self.desk.warehouse, "perpetuals", symbols, "recorded", exchange.url, model="tgn")
        job = replace(job, save_every_s=0.1, book_every_ms=100, timing=replace(QUICK_TIMING, silence_s=5))
        return MarketStream(job, self.network(exchange.rest_url, symbols))

    def forecasts(self, columns: str = f"symbol, ts, horizon_bars, {', '.join(PREDICTIONS)}") -> list[tuple]:
        return self.desk.rows(f"SELECT {columns} FROM stream_forecasts ORDER BY ts, symbol, horizon_bars")

    def night_forecasts(self, bars: int) -> list[tuple]:
        """The rows of predict_fold for the first ``bars`` bars after midnight, with the events stored so far."""
        with self.desk.warehouse.write("the next night") as con:
            for table, rows in zip(AFTER_MIDNIGHT, (self.bars, self.funding_rates), strict=True):
                append(con, f"store.{table}", pa.Table.from_pylist(rows))
        night = Night(SATURDAY, "recorded", self.universe, self.desk.warehouse, datetime.now(UTC))
        panel = load_bars(night)
        _, closes = bar_grid(night)
        features = compute_features(panel, closes)
        first = int(np.searchsorted(features.ts, np.datetime64(MIDNIGHT.replace(tzinfo=None), "us")))
        fold = published_fold(self.market(), "tgn")
        start = int(np.searchsorted(features.ts, fold.test_start))
        window = Fold(fold.fold, np.arange(0), 0, start, start + fold.test_bars, 0)
        graphs = load_snapshots(self.desk.night(FRIDAY, "perpetuals"), "correlation")
        events = load_bar_events(night)
        assert events is not None
        side_inputs = SideInputs(graphs, events.for_bars(features.ts[: first + bars]))
        (name,) = self.desk.rows(f"SELECT artifact FROM folds WHERE artifact_sha256 = '{fold.sha256}'")[0]
        artifact = self.desk.warehouse.artifacts / name
        predictions = predict_fold(artifact, features.rows(0, first + bars), side_inputs, window, first)
        return forecast_rows(predictions)


def row_ms(row: dict[str, Any]) -> int:
    """The row's ``ts`` in milliseconds UTC."""
    return round(row["ts"].timestamp() * 1000)


def forecast_rows(predictions: Any) -> list[tuple]:
    """(symbol, ts, horizon, *PREDICTIONS), ordered by ts, symbol and horizon, as LiveDesk.forecasts returns them."""
    rows = []
    for i, ts in enumerate(predictions.ts):
        for j, symbol in enumerate(predictions.symbols):
            for k, horizon in enumerate(predictions.horizons):
                returns = predictions.returns[i, j, k]
                numbers = (returns, predictions.volatility[i, j], *predictions.probabilities[i, j])
                rows.append((symbol, ts.astype(datetime).replace(tzinfo=UTC), horizon, *map(float, numbers)))
    return rows
