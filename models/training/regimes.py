"""Forecasts of the next volatility regime by networks that read a quarter of macroeconomic data (SSF-07, SSF-08).

Every walk-forward fold fits thresholds, scaler and weights on its training rows alone, whose labels ended before the
test began. The last rows of the training span, after a purge of their own, select the epoch. All networks have the same
width, depth, steps, optimiser and seeds.

Glossary: t sessions · f features · k rows · w = lookback_bars.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.features.regimes import REGIMES, future_volatility, regimes, terciles, trailing_volatility
from models.features.scaling import Scaler
from models.layers.dropout import reseed
from models.nets.forecast import Batch
from models.nets.ridge import logistic
from models.scoring.folds import Fold, walk_forward
from models.training.config import TrainConfig
from models.training.module import FoldModule
from models.zoo import Spec, build

NETWORKS = ("lstm", "transformer", "mamba")
BASELINES = ("majority", "persistence", "logistic_price", "logistic")
PRICE_FEATURES = 2
OnFold = Callable[[int, int], None]


@dataclass(frozen=True)
class RegimeConfig:
    """Sizes of the study, in sessions, and the training budget of every network.

    Models are trained on every ``stride_bars``-th training row, because neighbouring rows share 62 of 63 bars and 20 of
    21 label days.
    """

    lookback_bars: int = 63
    horizon_bars: int = 21
    train_bars: int = 756
    test_bars: int = 126
    embargo_bars: int = 5
    d_model: int = 32
    n_layers: int = 2
    stride_bars: int = 3
    epochs: int = 20
    patience: int = 5
    batch_rows: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    validation_fraction: float = 0.15
    seeds: tuple[int, ...] = (0, 1, 2)

    def spec(self, name: str) -> Spec:
        """The spec of the network ``name``; the Transformer's feed-forward width makes all networks similar in size."""
        options = {"window": self.lookback_bars, "expand": 2} if name == "transformer" else {}
        return Spec(name, self.d_model, self.n_layers, dropout=self.dropout, options=options)


@dataclass(frozen=True, eq=False)
class RegimeStudy:
    """Results on the test days ``dates`` (t,): the true regimes ``truth`` (t,) and, by model name, the ``predictions``
    (s, t), one row per seed.

    ``folds``: the tested folds, with ``thresholds`` (folds, 2). By model name: the number of ``parameters``, and the
    ``seconds`` of fitting and forecasting over all folds and seeds.
    """

    dates: np.ndarray
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    folds: list[Fold]
    thresholds: np.ndarray
    parameters: dict[str, int]
    seconds: dict[str, float]

    def correct(self, name: str) -> np.ndarray:
        """True where the model's prediction was right, (s, t)."""
        return self.predictions[name] == self.truth


class RegimeNetwork(nn.Module):
    """(k, w, f) → logits of the regimes (k, 3), a linear map of an encoder's last bar; all 0 before the fit."""

    def __init__(self, spec: Spec, n_features: int, seed: int) -> None:
        super().__init__()
        encoder = build(spec, n_features, 1, seed).encoder
        assert isinstance(encoder, nn.Module)
        self.encoder = encoder
        self.weight = nn.Parameter(torch.zeros(len(REGIMES), spec.d_model))
        self.bias = nn.Parameter(torch.zeros(len(REGIMES)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (k, 3)."""
        ones = torch.ones(x.shape[:2])
        h = self.encoder(Batch(x[:, :, None], ones[:, :, None].bool(), ones))
        return h[:, -1, 0] @ self.weight.T + self.bias


def study(
    dates: np.ndarray,
    features: np.ndarray,
    returns: np.ndarray,
    last_date: np.datetime64,
    config: RegimeConfig,
    on_fold: OnFold | None = None,
) -> RegimeStudy:
    """The results of every model on every fold of the sessions ``dates`` (t,) datetime64[D].

    Test days end at ``last_date``, the last date with features. ``features`` (t, f) are known at each close; the last
    PRICE_FEATURES columns are computed from the price alone. ``returns`` (t,) log; those after ``last_date`` serve as
    labels only. ``on_fold(done, folds)`` is called after each fold. Raises ValueError if no fold has a test row.
    """
    future = future_volatility(returns, config.horizon_bars)
    trailing = trailing_volatility(returns, config.horizon_bars)
    folds = regime_folds(dates, future, last_date, config)
    if not folds:
        raise ValueError(f"{len(dates)} sessions until {last_date} are too few for one fold of {config}")
    predictions: dict[str, list[np.ndarray]] = defaultdict(list)
    truth = []
    test_rows = []
    thresholds = []
    parameters: dict[str, int] = {"majority": 0, "persistence": 0}
    seconds: dict[str, float] = defaultdict(float)
    for done, (fold, test) in enumerate(folds):
        edges = terciles(future[fold.train])
        labels = regimes(future, edges)
        x = scale_features(features, fold)
        windows = np.lib.stride_tricks.sliding_window_view(x, config.lookback_bars, axis=0).swapaxes(1, 2)
        rows = RegimeRows(torch.from_numpy(windows.copy()), torch.from_numpy(labels), config)
        majority = np.bincount(labels[fold.train], minlength=len(REGIMES)).argmax()
        predictions["majority"].append(np.full((1, len(test)), majority))
        predictions["persistence"].append(regimes(trailing, edges)[test][None])
        for name in ("logistic_price", "logistic", *NETWORKS):
            started = time.perf_counter()
            fold_predictions, parameters[name] = rows.fit_and_predict(name, fold, test)
            predictions[name].append(fold_predictions)
            seconds[name] += time.perf_counter() - started
        truth.append(labels[test])
        test_rows.append(test)
        thresholds.append(edges)
        if on_fold is not None:
            on_fold(done + 1, len(folds))
    return RegimeStudy(
        dates[np.concatenate(test_rows)],
        np.concatenate(truth),
        {name: np.concatenate(predictions[name], axis=1) for name in (*BASELINES, *NETWORKS)},
        [fold for fold, _ in folds],
        np.array(thresholds),
        parameters,
        {"majority": 0.0, "persistence": 0.0, **seconds},
    )


def regime_folds(
    dates: np.ndarray, future: np.ndarray, last_date: np.datetime64, config: RegimeConfig
) -> list[tuple[Fold, np.ndarray]]:
    """Folds with their test rows: the rows up to ``last_date`` whose label, from ``future`` (t,), is not NaN."""
    ends = np.full((len(dates), 1), np.datetime64("NaT"), dtype="datetime64[D]")
    ends[: len(dates) - config.horizon_bars, 0] = dates[config.horizon_bars :]
    folds = walk_forward(
        dates,
        ends,
        warmup_bars=config.lookback_bars + config.horizon_bars,
        train_bars=config.train_bars,
        test_bars=config.test_bars,
        embargo_bars=config.embargo_bars,
    )
    is_test = ~np.isnan(future) & (dates <= last_date)
    pairs = [(fold, np.arange(fold.test_start, min(fold.test_stop, len(dates)))) for fold in folds]
    return [(fold, test[is_test[test]]) for fold, test in pairs if is_test[test].any()]


def scale_features(features: np.ndarray, fold: Fold) -> np.ndarray:
    """Features (t, f) scaled by statistics of the training rows of ``fold``, float32."""
    cube = features[fold.train][:, None]
    names = [str(k) for k in range(features.shape[1])]
    return Scaler.fit(cube, np.ones(cube.shape[:2], dtype=bool), names).transform(features)


class RegimeRows:
    """The window of features before every session and the regime after it; a model is fitted on some rows and predicts
    others."""

    def __init__(self, windows: Tensor, labels: Tensor, config: RegimeConfig) -> None:
        """``windows`` (t − w + 1, w, f): window i ends with session i + w − 1; ``labels`` (t,)."""
        self.windows = windows
        self.labels = labels
        self.config = config

    def select(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Windows (k, w, f) that end at ``rows`` (k,), and their labels (k,)."""
        index = torch.from_numpy(rows)
        return self.windows[index - (self.config.lookback_bars - 1)], self.labels[index]

    def fit_and_predict(self, name: str, fold: Fold, test: np.ndarray) -> tuple[np.ndarray, int]:
        """The model's predictions on the rows ``test``, (s, k), and its number of parameters."""
        train_rows, validation_rows = validation_split(fold.train, self.config)
        train = self.select(train_rows)
        validation = self.select(validation_rows)
        x_test, _ = self.select(test)
        if name.startswith("logistic"):
            first = x_test.shape[-1] - PRICE_FEATURES if name == "logistic_price" else 0
            inputs = (summarise(windows[..., first:]) for windows in (train[0], validation[0], x_test))
            linear_train, linear_validation, linear_test = inputs
            weight, bias, _ = logistic(linear_train, train[1], linear_validation, validation[1])
            weight = weight[:, : len(REGIMES)]
            bias = bias[: len(REGIMES)]
            return (linear_test @ weight + bias).argmax(-1).numpy()[None], weight.numel() + bias.numel()
        networks = [fit_network(name, seed, train, validation, self.config) for seed in self.config.seeds]
        with torch.no_grad():
            predictions = np.stack([network(x_test).argmax(-1).numpy() for network in networks])
        return predictions, sum(p.numel() for p in networks[0].parameters())


def summarise(windows: Tensor) -> Tensor:
    """The inputs of a linear model: each window's last bar and its mean, (k, 2 f) float64."""
    return torch.cat([windows[:, -1], windows.mean(1)], dim=-1).double()


def validation_split(train: np.ndarray, config: RegimeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and later rows to validate on; no label of the former reaches the latter."""
    validation_count = math.ceil(config.validation_fraction * len(train))
    train_count = len(train) - validation_count - config.horizon_bars
    if train_count < 1:
        raise ValueError(f"{len(train)} training rows leave none to learn from; raise train_bars")
    return train[: train_count : config.stride_bars], train[-validation_count:]


def fit_network(
    name: str, seed: int, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], config: RegimeConfig
) -> RegimeNetwork:
    """A fitted network in evaluation mode, with the weights of the epoch of least validation loss."""
    x, y = train
    network = RegimeNetwork(config.spec(name), x.shape[-1], seed)
    settings = TrainConfig(lr=config.lr, weight_decay=config.weight_decay)
    optimiser = FoldModule(network, settings).configure_optimizers()
    generator = torch.Generator().manual_seed(seed)
    best_loss = math.inf
    best_epoch = 0
    best_weights = copy.deepcopy(network.state_dict())
    for epoch in range(config.epochs):
        network.train()
        reseed(network, seed, epoch)
        for rows in torch.randperm(len(x), generator=generator).split(config.batch_rows):
            optimiser.zero_grad()
            cross_entropy(network(x[rows]), y[rows]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            optimiser.step()
        network.eval()
        with torch.no_grad():
            loss = float(cross_entropy(network(validation[0]), validation[1]))
        if loss < best_loss:
            best_loss = loss
            best_epoch = epoch
            best_weights = copy.deepcopy(network.state_dict())
        if epoch - best_epoch >= config.patience:
            break
    network.load_state_dict(best_weights)
    return network.eval()
