"""A small market with a planted signal: features, labels, snapshots and folds of five assets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from models.features.labels import Labels
from models.graphs.snapshot import Snapshot
from models.panel import Panel
from models.scoring.folds import Fold, walk_forward
from models.training.config import TrainConfig
from models.zoo import Spec

T, N, HORIZONS = 190, 5, (1, 5)
FOLDS = {"warmup_bars": 20, "train_bars": 110, "test_bars": 25, "embargo_bars": 2}
CONFIG = TrainConfig(
    epochs=3, chunk_bars=24, burn_in_bars=8, context_bars=12, batch_sequences=15, validation_fraction=0.2
)


@dataclass(frozen=True, eq=False)
class Market:
    """``features`` (signal, noise, volatility_60), labels that follow the signal, snapshots every ten bars."""

    features: Panel
    labels: Labels
    snapshots: list[Snapshot]

    @property
    def folds(self) -> list[Fold]:
        return walk_forward(self.features.ts, self.labels.end, **FOLDS)

    def until(self, stop: int) -> Market:
        """The market as it looked at the close of bar ``stop`` − 1: labels that had not ended are unknown."""
        labels = self.labels.rows(0, stop)
        unknown = np.isnat(labels.end) | (labels.end > self.features.ts[stop - 1])
        cut = replace(
            labels,
            returns=np.where(unknown[:, None, :], np.nan, labels.returns),
            volatility=np.where(unknown[:, 1:], np.nan, labels.volatility),
            class_5=np.where(unknown[:, 1:], -1, labels.class_5),
            end=np.where(unknown, np.datetime64("NaT"), labels.end),
        )
        features = self.features.rows(0, stop)
        return Market(features, cut, [s for s in self.snapshots if s.as_of <= features.ts[-1]])

    def arguments(self, model: str = "s4d", fold: int = 0, config: TrainConfig = CONFIG) -> dict:
        """What fit_fold and fold_key take, for a small network."""
        spec = Spec(model, d_model=8, n_layers=1, d_state=4)
        return {
            "spec": spec,
            "config": config,
            "features": self.features,
            "labels": self.labels,
            "snapshots": self.snapshots,
            "fold": self.folds[fold],
        }


@pytest.fixture(scope="session")
def market() -> Market:
    rng = np.random.default_rng(0)
    ts = np.datetime64("2024-01-01", "us") + np.arange(T) * np.timedelta64(1, "D")
    mask = rng.random((T, N)) < 0.95
    mask[:60, 4] = False  # lists late
    signal, sigma = rng.normal(size=(T, N)), np.exp(rng.normal(-4, 0.3, (T, N)))
    sigma[:25, :4] = np.nan  # warming up
    values = np.stack([signal, rng.normal(size=(T, N)), sigma], axis=-1)
    features = Panel(
        ts, tuple("ABCDE"), ("signal", "noise", "volatility_60"), np.where(mask[..., None], values, np.nan), mask
    )
    end = np.full((T, 2), np.datetime64("NaT"), dtype="datetime64[us]")
    for k, h in enumerate(HORIZONS):
        end[: T - 1 - h, k] = ts[1 + h :]
    scale = np.nan_to_num(sigma, nan=0.02)[..., None] * np.sqrt(HORIZONS)
    returns = scale * (0.8 * signal[..., None] + 0.3 * rng.normal(size=(T, N, 2)))
    returns[np.isnat(end)[:, None].repeat(N, axis=1) | (rng.random((T, N, 2)) < 0.02)] = np.nan
    ratio = returns[..., 1] / scale[..., 1]
    with np.errstate(invalid="ignore"):
        classes = np.where(np.isnan(ratio), -1, np.digitize(ratio, [-1, -0.25, 0.25, 1]))
    labels = Labels(HORIZONS, returns, np.abs(returns[..., 1]) + 1e-3, classes.astype(np.int8), end)
    snapshots = [
        Snapshot("correlation", ts[i], ts[i - 10], *np.triu_indices(N, 2), rng.random(6), tuple("ABCDE"))
        for i in range(10, T, 10)
    ]
    return Market(features, labels, snapshots)
