"""How much recorded trades and order books improve a network that also reads the bars made of them.

``python -m tests.benchmarks.events_table``. Six minutes of six Bitcoin and Ether instruments at Binance become bars of
one second. The steps of a night (the run for one as-of date) make features, labels, graphs and folds of them, and the
networks are fitted and forecast fold by fold, as in a night. The network ``tgn`` also reads every trade and every best
price as an event; ``tgn_without_events`` is the same network without events. The figures are means over the seconds
after the training windows, each with a 95% interval of a block bootstrap. Over six minutes the intervals are wide.
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
from models.scoring.bootstrap import resampled_means
from models.sessions import midnight_after
from models.training.config import TrainConfig
from models.training.fit import fit_fold, predict_fold
from models.zoo import Spec
from tasks.graphs import build_graphs, write_features
from tasks.ingest import ingest_bars
from tasks.night import Night
from tasks.train import TrainingData, load_training_data
from tasks.validate import validate_night
from tests.benchmarks.markdown import interval_cell, table
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.universes import load_universe

EVENTS = Path(__file__).parents[3] / "shared" / "data" / "events"
UNIVERSE = "binance_seconds"
BLOCK_BARS = 10  # seconds of a block of the bootstrap
WITHOUT = "tgn_without_events"
# the rows of the table: name and network of the zoo
NETWORKS = {
    "tgn": "tgn",
    WITHOUT: "tgn",
    "s4d": "s4d",
    "gnn": "gnn",
    "tgn_links": "tgn_links",
    "tgn_pretrained": "tgn_pretrained",
}
ALWAYS_UP = "always up"


class Score(NamedTuple):
    """The score of a network with one seed.

    ``direction`` (horizons, t): share of the moving instruments whose direction was forecast correctly, by test bar.
    ``losses``: the validation loss of each fold. ``parameters``: the number of parameters.
    """

    direction: np.ndarray
    losses: list[float]
    parameters: int


def recorded_data(folder: Path, scratch: Path) -> TrainingData:
    """The training data of a night on the recording in ``folder``; its warehouse is created in ``scratch``."""
    warehouse = Warehouse.from_url(scratch / "warehouse.duckdb")
    as_of = date(2024, 8, 8)
    migrate(warehouse)
    universe = load_universe(warehouse, UNIVERSE)
    profile = load_settings().profile(UNIVERSE)
    night = Night(as_of, "recorded", universe, warehouse, midnight_after(as_of), folder)
    ingest_bars.fn(night, overlap_bars=0, max_bad_fraction=0.0, threads=1)
    validate_night.fn(night)
    write_features.fn(night)
    build_graphs.fn(night, **profile.graph.model_dump())
    return load_training_data.fn(night, recipe_of(profile), list(NETWORKS.values()))


def score_network(data: TrainingData, name: str, seeds: int, epochs: int, folder: Path) -> list[Score]:
    """The network's score with each of ``seeds`` seeds, over the test windows of all folds."""
    spec = Spec(NETWORKS[name], d_model=16, n_layers=1)
    scores = []
    side_inputs = data.side_inputs_of(spec)
    if name == WITHOUT:
        side_inputs = SideInputs(side_inputs.snapshots)
    for seed in range(seeds):
        config = TrainConfig(
            epochs=epochs, chunk_bars=32, burn_in_bars=12, context_bars=24, batch_sequences=12, seed=seed
        )
        fits = []
        forecasts = []
        for fold in data.folds:
            artifact = folder / f"{name}_{seed}_{fold.index}.safetensors"
            fits.append(fit_fold(spec, config, data.features, data.labels, side_inputs, fold, artifact).fit_result)
            forecasts.append(predict_fold(artifact, data.features, side_inputs, fold).returns)
        losses = [fit.validation_loss for fit in fits]
        scores.append(Score(directional_accuracy(data, np.concatenate(forecasts)), losses, fits[0].parameters))
    return scores


def directional_accuracy(data: TrainingData, forecast: np.ndarray) -> np.ndarray:
    """Share (horizons, t) of the moving instruments whose direction was forecast correctly; NaN where none moved.

    ``forecast`` (t, n, horizons) starts with the first test bar.
    """
    start = data.folds[0].test_start
    realised = data.labels.returns[start : start + len(forecast)]
    has_moved = np.isfinite(realised) & (realised != 0) & np.isfinite(forecast)
    n_correct = (has_moved & (np.sign(forecast) == np.sign(realised))).sum(axis=1)
    n_moved = has_moved.sum(axis=1)
    return np.where(n_moved > 0, n_correct / np.maximum(n_moved, 1), np.nan).T


def page(data: TrainingData, scores: dict[str, list[Score]]) -> str:
    """The Markdown table: one row per network, and one for the forecast "up" at every bar."""
    shape = (scores[WITHOUT][0].direction.shape[1], len(data.features.symbols), len(data.labels.horizons))
    direction = {name: np.stack([score.direction for score in by_seed]) for name, by_seed in scores.items()}
    direction[ALWAYS_UP] = directional_accuracy(data, np.ones(shape))[None]
    rows = {name: [f"{name} ({by_seed[0].parameters:,})"] for name, by_seed in scores.items()} | {
        ALWAYS_UP: [ALWAYS_UP]
    }
    for k in range(len(data.labels.horizons)):
        has_moves = ~np.isnan(direction[WITHOUT][0, k])
        resampled = resampled_means([values[:, k, has_moves] for values in direction.values()], BLOCK_BARS)
        draws = dict(zip(direction, resampled, strict=True))
        mean = {name: values[:, k, has_moves].mean() for name, values in direction.items()}
        for name, cells in rows.items():
            cells.append(interval_cell(mean[name], draws[name], ".3f"))
            if name == WITHOUT:
                cells.append("-")
            else:
                cells.append(interval_cell(mean[name] - mean[WITHOUT], draws[name] - draws[WITHOUT], "+.3f"))
    for name, by_seed in scores.items():
        losses = [loss for score in by_seed for loss in score.losses]
        rows[name].append(f"{np.mean(losses):.4f} ({min(losses):.4f} … {max(losses):.4f})")
    rows[ALWAYS_UP].append("-")
    head = ["network (parameters)"]
    for horizon in data.labels.horizons:
        head += [f"direction, {horizon} s", f"over {WITHOUT}"]
    return table([*head, "validation loss"], rows.values())


def main() -> None:
    """Fits all networks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of fits of every network and fold")
    parser.add_argument("--epochs", type=int, default=15, help="maximum number of epochs of a fit")
    arguments = parser.parse_args()
    if not EVENTS.is_dir():
        sys.exit(f"no recorded events at {EVENTS}")
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        data = recorded_data(EVENTS, Path(folder))
        scores = {name: score_network(data, name, arguments.seeds, arguments.epochs, Path(folder)) for name in NETWORKS}
    print(page(data, scores))
    events = data.events
    print(
        f"{len(data.features)} bars of a second of {len(data.features.symbols)} instruments, "
        f"{0 if events is None else len(events.events):,} events; {len(data.folds)} folds, "
        f"{scores[WITHOUT][0].direction.shape[1]} test bars in blocks of {BLOCK_BARS}, {arguments.seeds} seeds, "
        f"{arguments.epochs} epochs; intervals contain 95% of the draws, for the loss its range over all fits; "
        f"{time.process_time() - started:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
