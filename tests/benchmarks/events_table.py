"""What recorded trades and books tell a network beyond the bars made of them: ``python -m
tests.benchmarks.events_table``.

Six minutes of six Bitcoin and Ether instruments at Binance become bars of one second, with features, labels, graphs and
folds, by the steps of a night; networks are fitted and forecast fold by fold, as in one. ``tgn`` also reads every trade
and best price as an event, ``tgn_without_events`` is the same network without. Figures are over the seconds after the
training windows, each with a 95% interval over them drawn in blocks; six minutes tell little, and the intervals say so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flows.settings import load_settings
from flows.train import recipe_of
from models.graphs.context import SideInputs
from models.scoring.bootstrap import interval, resampled_means
from models.sessions import midnight_after
from models.training.config import TrainConfig
from models.training.fit import fit_fold, predict_fold
from models.zoo import Spec
from tasks.graphs import build_graphs, write_features
from tasks.ingest import ingest_bars
from tasks.night import Night
from tasks.train import TrainingData, load_training_data
from tasks.validate import validate_night
from tests.benchmarks.markdown import table
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.universes import load_universe

EVENTS = Path(__file__).parents[3] / "shared" / "data" / "events"
UNIVERSE, BLOCK_BARS = "binance_seconds", 10
WITHOUT = "tgn_without_events"
NETWORKS = {"tgn": "tgn", WITHOUT: "tgn", "s4d": "s4d", "gnn": "gnn"}
NETWORKS |= {name: name for name in ("tgn_links", "tgn_pretrained")}
UP = "always up"


class Score(NamedTuple):
    """``direction`` (horizons, seconds): share of the moved instruments whose direction was right."""

    direction: np.ndarray
    losses: list[float]
    parameters: int


def recorded_data(folder: Path, scratch: Path) -> TrainingData:
    """What a night of the recording in ``folder`` trains on; ``scratch`` is for its warehouse."""
    warehouse, as_of = Warehouse.from_url(scratch / "warehouse.duckdb"), date(2024, 8, 8)
    migrate(warehouse)
    universe, profile = load_universe(warehouse, UNIVERSE), load_settings().profile(UNIVERSE)
    night = Night(as_of, "recorded", universe, warehouse, midnight_after(as_of), folder)
    ingest_bars.fn(night, overlap_bars=0, max_bad_fraction=0.0, threads=1)
    validate_night.fn(night)
    write_features.fn(night)
    build_graphs.fn(night, **profile.graph.model_dump())
    return load_training_data.fn(night, recipe_of(profile), list(NETWORKS.values()))


def scored(data: TrainingData, name: str, seeds: int, epochs: int, folder: Path) -> list[Score]:
    """The network's score of each seed, over the test windows of all folds."""
    spec, found = Spec(NETWORKS[name], d_model=16, n_layers=1), []
    around = data.side_inputs_of(spec)
    if name == WITHOUT:
        around = SideInputs(around.snapshots)
    for seed in range(seeds):
        config = TrainConfig(
            epochs=epochs, chunk_bars=32, burn_in_bars=12, context_bars=24, batch_sequences=12, seed=seed
        )
        fits, made = [], []
        for fold in data.folds:
            artifact = folder / f"{name}_{seed}_{fold.index}.safetensors"
            fits.append(fit_fold(spec, config, data.features, data.labels, around, fold, artifact).fit_result)
            made.append(predict_fold(artifact, data.features, around, fold).returns)
        losses = [fit.validation_loss for fit in fits]
        found.append(Score(right_ways(data, np.concatenate(made)), losses, fits[0].parameters))
    return found


def right_ways(data: TrainingData, forecast: np.ndarray) -> np.ndarray:
    """Direction (horizons, seconds) of forecasts (t, n, horizons) from the first test bar on; NaN where none moved."""
    start = data.folds[0].test_start
    realised = data.labels.returns[start : start + len(forecast)]
    moved = np.isfinite(realised) & (realised != 0) & np.isfinite(forecast)
    right = (moved & (np.sign(forecast) == np.sign(realised))).sum(axis=1)
    count = moved.sum(axis=1)
    return np.where(count > 0, right / np.maximum(count, 1), np.nan).T


def page(data: TrainingData, scores: dict[str, list[Score]]) -> str:
    """The table, a row for each network, and what always saying "up" comes to."""
    shape = (scores[WITHOUT][0].direction.shape[1], len(data.features.symbols), len(data.labels.horizons))
    direction = {name: np.stack([one.direction for one in of]) for name, of in scores.items()}
    direction[UP] = right_ways(data, np.ones(shape))[None]
    told = {name: [f"{name} ({of[0].parameters:,})"] for name, of in scores.items()} | {UP: [UP]}
    for k in range(len(data.labels.horizons)):
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
    for horizon in data.labels.horizons:
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
    with tempfile.TemporaryDirectory() as folder:
        data = recorded_data(EVENTS, Path(folder))
        scores = {name: scored(data, name, asked.seeds, asked.epochs, Path(folder)) for name in NETWORKS}
    print(page(data, scores))
    events = data.events
    print(
        f"{len(data.features)} bars of a second of {len(data.features.symbols)} instruments, "
        f"{0 if events is None else len(events.events):,} events; {len(data.folds)} folds, "
        f"{scores[WITHOUT][0].direction.shape[1]} test bars in blocks of {BLOCK_BARS}, {asked.seeds} seeds, "
        f"{asked.epochs} epochs; intervals hold 95% of the draws, those of the loss its least and most of all fits; "
        f"{time.process_time() - began:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
