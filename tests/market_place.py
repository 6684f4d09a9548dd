"""A published night of two perpetuals with a fitted tgn, and the exchange of the hours after it."""

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
from tasks.markets.bybit_frames import topics_of
from tasks.markets.bybit_ws import Timing
from tasks.markets.retry_policy import NO_RETRY
from tasks.night import Night
from tasks.panels import bar_grid, load_bar_events, load_bars, load_snapshots
from tasks.train import Recipe, load_training_data, train_model
from tests.exchange import Exchange
from warehouse.publish import publish_copy
from warehouse.tables import append
from warehouse.universes import Universe

FRIDAY, SATURDAY = date(2024, 6, 28), date(2024, 6, 29)
MIDNIGHT = datetime(2024, 6, 29, tzinfo=UTC)  # the published night's clock, up to which its bars are stored
HOUR_MS = 3_600_000
GRAPH = {"graphs": ("correlation",), "window_bars": 24, "min_correlation": 0.05, "top_k": 1, "every_bars": 12}
RECIPE = Recipe(
    horizons=(1, 4),
    class_horizon=4,
    folds={"warmup_bars": 241, "train_bars": 60, "test_bars": 300, "embargo_bars": 4},
    train={"epochs": 1, "chunk_bars": 16, "burn_in_bars": 4, "context_bars": 8},
)
LATER = {"bars": ">=", "funding_rates": ">"}  # a settlement at midnight is known at midnight
COLUMNS = (
    *("provider", "interval", "calendar", "benchmark", "history_start", "commission_bps", "slippage_bps"),
    "survivorship_biased",
)
NUMBERS = ("expected_return", "expected_volatility", "p_strong_sell", "p_sell", "p_hold", "p_buy", "p_strong_buy")
SYMBOLS = ("AAA", "BBB")
QUICK = Timing(heartbeat_s=0.05, silence_s=5, open_s=5, first_wait_s=0.01, longest_wait_s=0.05)


def at(hours: float) -> int:
    """Milliseconds of so many hours after midnight."""
    return int(MIDNIGHT.timestamp() * 1000 + hours * HOUR_MS)


def trade(hours: float, symbol: str = "AAA", value: float = 150_000.0, name: str = "") -> str:
    stamp, price = at(hours), 60.0 + hours
    data = {"T": stamp, "s": symbol, "S": "Buy", "v": f"{value / price:.3f}", "p": f"{price}"}
    data["i"] = name or f"{symbol}-{stamp}-{value:.0f}"
    return json.dumps({"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": stamp, "data": [data]})


def liquidation(hours: float, symbol: str = "BBB") -> str:
    data = {"T": at(hours), "s": symbol, "S": "Sell", "v": "700", "p": f"{50 + hours}"}
    return json.dumps({"topic": f"allLiquidation.{symbol}", "type": "snapshot", "ts": at(hours), "data": [data]})


def ticker(hours: float, symbol: str = "AAA", kind: str = "snapshot") -> str:
    data = {"symbol": symbol, "fundingRate": "0.0002", "openInterest": f"{5000 + 10 * hours}"}
    data["nextFundingTime"] = str(at(8))
    stamp = at(hours)
    return json.dumps({"topic": f"tickers.{symbol}", "type": kind, "cs": stamp, "ts": stamp, "data": data})


def hours(first: float, last: float) -> list[str]:
    """What happens from ``first`` to ``last``: trades large and small, simultaneous ones, and at the very close."""
    steps = []
    for quarter in range(int(4 * first), int(4 * last)):
        when = quarter / 4
        steps += [trade(when + 0.05), trade(when + 0.05, name=f"twin-{quarter}"), trade(when + 0.1, "BBB", 500.0)]
        steps += [liquidation(when + 0.12), ticker(when + 0.15), trade(when + 0.2, "BBB")]
        if quarter % 4 == 3:
            steps += [trade(when + 0.25, name=f"close-{quarter}")]
    return steps


def publish_night(desk: Any, folder: Path) -> None:
    """A night of perpetuals with a fitted tgn, as its last step leaves it."""
    night = desk.night(FRIDAY, "perpetuals")
    write_features.fn(night)
    build_graphs.fn(night, **GRAPH)
    trial = train_model.fn(night, load_training_data.fn(night, RECIPE, ("tgn",)), "tgn", 0, RECIPE).trial_id
    write_night(night, state="published", settings="{}", settings_hash="", published_at=night.clock)
    champion = {"role": "champion", "model": "tgn", "trial_ids": [trial], "reason": "best"}
    with desk.warehouse.write("night") as con:
        keys = {**night.slice, "night": FRIDAY, "run_id": night.run_id}
        append(con, "store.model_registry", pa.Table.from_pylist([champion]), **keys)
        for table, later in LATER.items():
            where = f"universe = 'perpetuals' AND ts {later} '{MIDNIGHT}'"
            con.execute(f"COPY (SELECT * FROM store.{table} WHERE {where}) TO '{folder / table}.parquet'")
            con.execute(f"DELETE FROM store.{table} WHERE {where}")
    publish_copy(desk.warehouse, "recorded", "perpetuals")


@dataclass
class Place:
    """A desk with the published night, and what the exchange knows of the hours after it."""

    desk: Any
    folder: Path
    clients: list[Bybit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bars, self.settled = (pq.read_table(self.folder / f"{name}.parquet").to_pylist() for name in LATER)

    @property
    def universe(self) -> Universe:
        return self.desk.night(FRIDAY, "perpetuals").universe

    def tells(self, exchange: Exchange) -> None:
        """Has REST know the bars and the settlements after midnight."""
        exchange.klines, exchange.settled = {}, {}
        for bar in self.bars:
            numbers = [repr(bar[name]) for name in ("open", "high", "low", "close", "volume")]
            exchange.klines.setdefault(bar["symbol"], []).append([str(stamp_ms(bar)), *numbers, ""])
        for one in self.settled:
            exchange.settled.setdefault(one["symbol"], []).append((stamp_ms(one), repr(one["rate"])))

    def market(self, rest_url: str | None = None) -> LiveMarket:
        if rest_url is not None:
            self.clients.append(Bybit(datetime(2100, 1, 1, tzinfo=UTC), patience=NO_RETRY, url=rest_url))
        return LiveMarket(self.desk.warehouse, self.universe, "recorded", self.clients[-1] if rest_url else None)

    def network(self, rest_url: str | None = None, symbols: tuple[str, ...] = SYMBOLS) -> LiveNetwork:
        market = self.market(rest_url)
        return LiveNetwork(published_fold(market, "tgn"), market, symbols)

    def plays(
        self, steps: list[str], down: bool = False, symbols: tuple[str, ...] = SYMBOLS
    ) -> tuple[MarketStream, StreamReport]:
        """A stream that has gone through the script, and its report."""
        with Exchange(steps, topics_of(symbols)) as exchange:
            self.tells(exchange)
            exchange.rest_down = down
            stream = self.stream(exchange, symbols)
            return stream, asyncio.run(until_closed(stream, exchange))

    def name_universe(self) -> None:
        """Puts the universe into the warehouse, where the command line looks for it."""
        named = {name: getattr(self.universe, name) for name in COLUMNS} | {"description": "two perpetuals"}
        members = [{**vars(member), "membership_source": "test"} for member in self.universe.members]
        with self.desk.warehouse.write("universe") as con:
            append(con, "store.universes", pa.Table.from_pylist([named]), universe=self.universe.name)
            append(con, "store.universe_members", pa.Table.from_pylist(members), universe=self.universe.name)

    def stream(self, exchange: Exchange, symbols: tuple[str, ...] = SYMBOLS) -> MarketStream:
        job = StreamJob(self.desk.warehouse, "perpetuals", symbols, "recorded", exchange.url, model="tgn")
        job = replace(job, save_every_s=0.1, book_every_ms=100, timing=QUICK)
        return MarketStream(job, self.network(exchange.rest_url, symbols))

    def forecasts(self, columns: str = f"symbol, ts, horizon_bars, {', '.join(NUMBERS)}") -> list[tuple]:
        return self.desk.rows(f"SELECT {columns} FROM stream_forecasts ORDER BY ts, symbol, horizon_bars")

    def night_forecasts(self, bars: int) -> list[tuple]:
        """What predict_fold says of so many bars after midnight, with the events that are stored by now."""
        with self.desk.warehouse.write("the next night") as con:
            for table, rows in zip(LATER, (self.bars, self.settled), strict=True):
                append(con, f"store.{table}", pa.Table.from_pylist(rows))
        night = Night(SATURDAY, "recorded", self.universe, self.desk.warehouse, datetime.now(UTC))
        panel, (_, closes) = load_bars(night), bar_grid(night)
        features = compute_features(panel, closes)
        first = int(np.searchsorted(features.ts, np.datetime64(MIDNIGHT.replace(tzinfo=None), "us")))
        fold = published_fold(self.market(), "tgn")
        start = int(np.searchsorted(features.ts, fold.test_start))
        window = Fold(fold.fold, np.arange(0), 0, start, start + fold.test_bars, 0)
        graphs = load_snapshots(self.desk.night(FRIDAY, "perpetuals"), "correlation")
        around = SideInputs(graphs, load_bar_events(night)).events.of_bars(features.ts[: first + bars])
        (name,) = self.desk.rows(f"SELECT artifact FROM folds WHERE artifact_sha256 = '{fold.sha256}'")[0]
        artifact = self.desk.warehouse.artifacts / name
        made = predict_fold(artifact, features.rows(0, first + bars), SideInputs(graphs, around), window, first)
        return as_rows(made)


def stamp_ms(row: dict[str, Any]) -> int:
    return round(row["ts"].timestamp() * 1000)


def as_rows(made: Any) -> list[tuple]:
    rows = []
    for i, ts in enumerate(made.ts):
        for j, symbol in enumerate(made.symbols):
            for k, horizon in enumerate(made.horizons):
                numbers = (made.returns[i, j, k], made.volatility[i, j], *made.probabilities[i, j])
                rows.append((symbol, ts.astype(datetime).replace(tzinfo=UTC), horizon, *map(float, numbers)))
    return rows


async def until_closed(stream: MarketStream, exchange: Exchange) -> StreamReport:
    """Runs the stream until the script is at its end, nothing more has come for a while, and no close is under way."""
    stop = asyncio.Event()
    running = asyncio.create_task(stream.run(stop))
    seen, quiet = -1, 0
    async with asyncio.timeout(60):
        while not running.done() and quiet < 4:
            await asyncio.sleep(0.05)
            now, closes = stream.frames.counts["frames"] - stream.frames.counts["pongs"], stream.closes
            busy = closes._closing is not None or closes.memory.due() is not None
            quiet = quiet + 1 if exchange.done.is_set() and now == seen and not busy else 0
            seen = now
    stop.set()
    return await running
