"""What recorded trades and books tell a network beyond the bars made of them: ``python -m
tests.benchmarks.events_table``.

Six minutes of six Bitcoin and Ether instruments at Binance become bars of one second, with the product's own features
and labels of them; networks are fitted and forecast fold by fold, as in a night. ``tgn`` also reads every trade and
best price as an event, ``tgn_without_events`` is the same network without. Figures are over the seconds after the
training windows, each with a 95% interval over them drawn in blocks; six minutes tell little, and the intervals say so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from models.features.indicators import BAR_COLUMNS, compute_features
from models.features.labels import Labels, compute_labels
from models.graphs.correlation import CorrelationRule, correlation_snapshots
from models.graphs.market_stream import MarketEvents
from models.graphs.surroundings import BarEvents, Surroundings
from models.panel import Panel
from models.scoring.bootstrap import interval, resampled_means
from models.scoring.folds import Fold, walk_forward
from models.sessions import bar_closes
from models.training.config import TrainConfig
from models.training.fit import fit_fold, predict_fold
from models.zoo import Spec
from tasks.events import market_rows
from tasks.markets.recorded_events import RecordedEvents
from tests.benchmarks.markdown import table

EVENTS = Path(__file__).parents[3] / "shared" / "data" / "events"
HORIZONS, BLOCK_BARS = (1, 5), 10
FOLDS = {"warmup_bars": 61, "train_bars": 160, "test_bars": 60, "embargo_bars": 6}
WITHOUT = "tgn_without_events"
NETWORKS = {"tgn": "tgn", WITHOUT: "tgn", "s4d": "s4d", "gnn": "gnn"}
NETWORKS |= {name: name for name in ("tgn_links", "tgn_pretrained")}
UP = "always up"


class Market(NamedTuple):
    """A recording in bars of one second."""

    features: Panel
    labels: Labels
    surroundings: Surroundings
    folds: list[Fold]


class Score(NamedTuple):
    """``direction`` (horizons, seconds): share of the moved instruments whose direction was right."""

    direction: np.ndarray
    losses: list[float]
    parameters: int


def recorded_market(folder: Path) -> Market:
    """The recording in ``folder``, as a night of it has it."""
    recorded = RecordedEvents(folder)
    symbols, span = recorded.symbols, (recorded.first, recorded.last)
    rows = pa.concat_tables([recorded.events(symbol, *span) for symbol in symbols]).sort_by("ts")
    traded = pa.concat_tables([recorded.bars(symbol, "1s", *span) for symbol in symbols])
    prices = Panel.from_table(traded, BAR_COLUMNS[:5], symbols)
    unpaid = np.where(prices.mask, 0.0, np.nan)[:, :, None]
    change = np.full_like(unpaid, np.nan)
    change[1:, :, 0] = prices.column("close")[1:] / prices.column("close")[:-1] - 1
    values = np.concatenate([prices.values, change, unpaid], axis=2)
    bars = Panel(prices.ts, symbols, BAR_COLUMNS, values, prices.mask)
    closes = bar_closes("24/7", "1s", bars.ts)
    features = compute_features(bars, closes)
    labels = compute_labels(bars, features.column("volatility_60"), HORIZONS, HORIZONS[-1])
    rule = CorrelationRule(window_bars=60, min_correlation=0.3, top_k=3, every_bars=10)
    events = BarEvents.of(MarketEvents(symbols)(market_rows(rows, symbols)), bars.ts, closes)
    around = Surroundings(correlation_snapshots(bars, rule), events)
    return Market(features, labels, around, walk_forward(features.ts, labels.end, **FOLDS))


def scored(market: Market, name: str, seeds: int, epochs: int, folder: Path) -> list[Score]:
    """The network's score of each seed, over the test windows of all folds."""
    around = Surroundings(market.surroundings.snapshots) if name == WITHOUT else market.surroundings
    spec, found = Spec(NETWORKS[name], d_model=16, n_layers=1), []
    for seed in range(seeds):
        config = TrainConfig(
            epochs=epochs, chunk_bars=32, burn_in_bars=12, context_bars=24, batch_sequences=12, seed=seed
        )
        fits, made = [], []
        for fold in market.folds:
            artifact = folder / f"{name}_{seed}_{fold.index}.safetensors"
            fits.append(fit_fold(spec, config, market.features, market.labels, around, fold, artifact).outcome)
            made.append(predict_fold(artifact, market.features, around, fold).returns)
        losses = [fit.validation_loss for fit in fits]
        found.append(Score(right_ways(market, np.concatenate(made)), losses, fits[0].parameters))
    return found


def right_ways(market: Market, forecast: np.ndarray) -> np.ndarray:
    """Direction (horizons, seconds) of forecasts (t, n, horizons) from the first test bar on; NaN where none moved."""
    start = market.folds[0].test_start
    realised = market.labels.returns[start : start + len(forecast)]
    moved = np.isfinite(realised) & (realised != 0) & np.isfinite(forecast)
    right = (moved & (np.sign(forecast) == np.sign(realised))).sum(axis=1)
    count = moved.sum(axis=1)
    return np.where(count > 0, right / np.maximum(count, 1), np.nan).T


def page(market: Market, scores: dict[str, list[Score]]) -> str:
    """The table, a row for each network, and what always saying "up" comes to."""
    shape = (scores[WITHOUT][0].direction.shape[1], len(market.features.symbols), len(HORIZONS))
    direction = {name: np.stack([one.direction for one in of]) for name, of in scores.items()}
    direction[UP] = right_ways(market, np.ones(shape))[None]
    told = {name: [f"{name} ({of[0].parameters:,})"] for name, of in scores.items()} | {UP: [UP]}
    for k in range(len(HORIZONS)):
        known = ~np.isnan(direction[WITHOUT][0, k])
        drawn = resampled_means([of[:, k, known] for of in direction.values()], BLOCK_BARS)
        draws = dict(zip(direction, drawn, strict=True))
        mean = {name: of[:, k, known].mean() for name, of in direction.items()}
        for name, cells in told.items():
            cells.append(words(mean[name], draws[name], ".3f"))
            gained, apart = mean[name] - mean[WITHOUT], draws[name] - draws[WITHOUT]
            cells.append("-" if name == WITHOUT else words(gained, apart, "+.3f"))
    for name, of in scores.items():
        losses = [loss for one in of for loss in one.losses]
        told[name].append(f"{np.mean(losses):.4f} ({min(losses):.4f} … {max(losses):.4f})")
    told[UP].append("-")
    head = ["network (parameters)"]
    for horizon in HORIZONS:
        head += [f"direction, {horizon} s", f"over {WITHOUT}"]
    return table([*head, "validation loss"], told.values())


def words(value: float, draws: np.ndarray, form: str) -> str:
    low, high = interval(draws)
    return f"{value:{form}} ({low:{form}} … {high:{form}})"


def main() -> None:
    """Fits all networks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="fits of every network and fold")
    parser.add_argument("--epochs", type=int, default=15, help="most epochs of a fit")
    asked = parser.parse_args()
    if not EVENTS.is_dir():
        sys.exit(f"no recorded events at {EVENTS}")
    began = time.process_time()
    market = recorded_market(EVENTS)
    with tempfile.TemporaryDirectory() as folder:
        scores = {name: scored(market, name, asked.seeds, asked.epochs, Path(folder)) for name in NETWORKS}
    print(page(market, scores))
    events = market.surroundings.events
    print(
        f"{len(market.features)} bars of a second of {len(market.features.symbols)} instruments, "
        f"{0 if events is None else len(events.events):,} events; {len(market.folds)} folds, "
        f"{scores[WITHOUT][0].direction.shape[1]} test bars in blocks of {BLOCK_BARS}, {asked.seeds} seeds, "
        f"{asked.epochs} epochs; intervals hold 95% of the draws, those of the loss its least and most of all fits; "
        f"{time.process_time() - began:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
