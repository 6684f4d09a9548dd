"""Forecasts of the next volatility regime by networks that read a quarter of macroeconomic data.

Implements SSF-07 and SSF-08 (ids: .github/sources.md).

Every walk-forward fold fits thresholds, scaler and weights on its training rows alone. The labels of these rows ended
before the test window began. The last training rows are validation rows, which select the epoch; the rows before them
are purged. All networks have the same width, depth, number of steps, optimiser and seeds.

Glossary: t sessions · f features · w = lookback_bars · k rows · s seeds. A row is one session: its input is the window
of the w sessions that ends with it, its label the volatility regime of the sessions after it.
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

from models.features.regimes import REGIMES, assign_regimes, future_volatility, tercile_thresholds, trailing_volatility
from models.features.scaling import Scaler
from models.layers.dropout import reseed
from models.nets.forecast import Batch
from models.nets.ridge import fit_logistic
from models.scoring.folds import Fold, walk_forward
from models.training.config import TrainConfig
from models.training.module import FoldModule
from models.zoo import Spec, build

NETWORKS = ("lstm", "transformer", "mamba")
BASELINES = ("majority", "persistence", "logistic_price", "logistic")
N_PRICE_FEATURES = 2  # the last columns of the features
OnFold = Callable[[int, int], None]  # (number of finished folds, number of folds)


@dataclass(frozen=True)
class RegimeConfig:
    """Sizes of the study, in sessions, and the training budget of every network.

    Models are trained on every ``stride_bars``-th training row, because neighbouring rows share 62 of 63 input sessions
    and 20 of 21 label sessions.
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
        """The spec of the network ``name``. The Transformer's feed-forward width gives it the size of the others."""
        options = {"window": self.lookback_bars, "expand": 2} if name == "transformer" else {}
        return Spec(name, self.d_model, self.n_layers, dropout=self.dropout, options=options)


@dataclass(frozen=True, eq=False)
class RegimeStudy:
    """Results of all models on the same test days.

    ``dates`` (t,) datetime64[D]: the test days. ``truth`` (t,): their true regimes. ``predictions``: model name →
    predicted regimes (s, t), one row per seed; a model without randomness has one row. ``folds``: the folds with test
    days. ``thresholds`` (folds, 2): daily volatilities between the regimes. ``parameters``: model name → number of
    parameters. ``seconds``: model name → time of fitting and forecasting, over all folds and seeds.
    """

    dates: np.ndarray
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    folds: list[Fold]
    thresholds: np.ndarray
    parameters: dict[str, int]
    seconds: dict[str, float]

    def is_correct(self, name: str) -> np.ndarray:
        """True where the prediction of the model ``name`` is the true regime, (s, t)."""
        return self.predictions[name] == self.truth


class RegimeNetwork(nn.Module):
    """A sequence encoder and a linear map of its output at the last session: (k, w, f) → logits (k, 3) of REGIMES.

    All logits are 0 before the fit.
    """

    def __init__(self, spec: Spec, n_features: int, seed: int) -> None:
        super().__init__()
        encoder = build(spec, n_features, 1, seed).encoder
        assert isinstance(encoder, nn.Module)
        self.encoder = encoder
        self.weight = nn.Parameter(torch.zeros(len(REGIMES), spec.d_model))
        self.bias = nn.Parameter(torch.zeros(len(REGIMES)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (k, 3) of the windows x (k, w, f)."""
        gaps = torch.ones(x.shape[:2])
        mask = gaps[:, :, None].bool()
        h = self.encoder(Batch(x[:, :, None], mask, gaps))  # each window is one asset without a missing bar
        return h[:, -1, 0] @ self.weight.T + self.bias


def run_study(
    dates: np.ndarray,
    features: np.ndarray,
    returns: np.ndarray,
    last_date: np.datetime64,
    config: RegimeConfig,
    on_fold: OnFold | None = None,
) -> RegimeStudy:
    """The results of every model on every fold of the sessions ``dates`` (t,) datetime64[D], ascending.

    ``features`` (t, f) are known at each close; the last N_PRICE_FEATURES columns are computed from prices alone.
    ``returns`` (t,) are daily log returns. ``last_date`` is the last test day: later returns serve as labels only.
    ``on_fold`` is called after each fold. Raises ValueError if no fold has a test day.
    """
    future = future_volatility(returns, config.horizon_bars)
    trailing = trailing_volatility(returns, config.horizon_bars)
    folds = regime_folds(dates, future, last_date, config)
    if not folds:
        raise ValueError(f"{len(dates)} sessions until {last_date} are too few for one fold of {config}")
    predictions: dict[str, list[np.ndarray]] = defaultdict(list)
    truth = []
    thresholds = []
    parameters: dict[str, int] = {"majority": 0, "persistence": 0}
    seconds: dict[str, float] = defaultdict(float)
    for n_finished, (fold, test_rows) in enumerate(folds, start=1):
        fold_thresholds = tercile_thresholds(future[fold.train])
        labels = assign_regimes(future, fold_thresholds)
        scaled = scale_features(features, fold)
        windows = np.lib.stride_tricks.sliding_window_view(scaled, config.lookback_bars, axis=0).swapaxes(1, 2)
        data = RegimeRows(torch.from_numpy(windows.copy()), torch.from_numpy(labels), config)
        majority = np.bincount(labels[fold.train], minlength=len(REGIMES)).argmax()
        predictions["majority"].append(np.full((1, len(test_rows)), majority))
        predictions["persistence"].append(assign_regimes(trailing, fold_thresholds)[test_rows][None])
        for name in ("logistic_price", "logistic", *NETWORKS):
            start_time = time.perf_counter()
            fold_predictions, parameters[name] = data.fit_and_predict(name, fold, test_rows)
            predictions[name].append(fold_predictions)
            seconds[name] += time.perf_counter() - start_time
        truth.append(labels[test_rows])
        thresholds.append(fold_thresholds)
        if on_fold is not None:
            on_fold(n_finished, len(folds))
    return RegimeStudy(
        dates=dates[np.concatenate([test_rows for _, test_rows in folds])],
        truth=np.concatenate(truth),
        predictions={name: np.concatenate(predictions[name], axis=1) for name in (*BASELINES, *NETWORKS)},
        folds=[fold for fold, _ in folds],
        thresholds=np.array(thresholds),
        parameters=parameters,
        seconds={"majority": 0.0, "persistence": 0.0, **seconds},
    )


def regime_folds(
    dates: np.ndarray, future: np.ndarray, last_date: np.datetime64, config: RegimeConfig
) -> list[tuple[Fold, np.ndarray]]:
    """Pairs of a fold and its test rows (k,), oldest first; folds without a test row are dropped.

    Test rows are the rows of the test window up to ``last_date`` whose future volatility, ``future`` (t,), is not NaN.
    """
    label_end = np.full((len(dates), 1), np.datetime64("NaT"), dtype="datetime64[D]")
    label_end[: len(dates) - config.horizon_bars, 0] = dates[config.horizon_bars :]
    folds = walk_forward(
        dates,
        label_end,
        warmup_bars=config.lookback_bars + config.horizon_bars,
        train_bars=config.train_bars,
        test_bars=config.test_bars,
        embargo_bars=config.embargo_bars,
    )
    has_label = ~np.isnan(future) & (dates <= last_date)
    pairs = []
    for fold in folds:
        window = np.arange(fold.test_start, min(fold.test_stop, len(dates)))
        test_rows = window[has_label[window]]
        if len(test_rows):
            pairs.append((fold, test_rows))
    return pairs


def scale_features(features: np.ndarray, fold: Fold) -> np.ndarray:
    """Features (t, f) scaled by statistics of the training rows of ``fold``, (t, f) float32."""
    train_values = features[fold.train][:, None]  # of a single asset
    has_bar = np.ones(train_values.shape[:2], dtype=bool)
    names = [str(k) for k in range(features.shape[1])]
    return Scaler.fit(train_values, has_bar, names).transform(features)


class RegimeRows:
    """The rows of all sessions; a model is fitted on some of them and predicts others."""

    def __init__(self, windows: Tensor, labels: Tensor, config: RegimeConfig) -> None:
        """``windows`` (t − w + 1, w, f): window i ends with session i + w − 1. ``labels`` (t,): indices of REGIMES."""
        self.windows = windows
        self.labels = labels
        self.config = config

    def select(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The windows (k, w, f) and the labels (k,) of the sessions at the positions ``rows`` (k,)."""
        index = torch.from_numpy(rows)
        return self.windows[index - (self.config.lookback_bars - 1)], self.labels[index]

    def fit_and_predict(self, name: str, fold: Fold, test_rows: np.ndarray) -> tuple[np.ndarray, int]:
        """The predictions (s, k) of the model ``name`` for ``test_rows`` (k,), and its number of parameters."""
        train_rows, validation_rows = split_validation(fold.train, self.config)
        x_train, y_train = self.select(train_rows)
        x_validation, y_validation = self.select(validation_rows)
        x_test, _ = self.select(test_rows)
        if name.startswith("logistic"):
            first_feature = x_test.shape[-1] - N_PRICE_FEATURES if name == "logistic_price" else 0
            linear_train = summarise(x_train[..., first_feature:])
            linear_validation = summarise(x_validation[..., first_feature:])
            linear_test = summarise(x_test[..., first_feature:])
            weight, bias, _ = fit_logistic(linear_train, y_train, linear_validation, y_validation)
            weight = weight[:, : len(REGIMES)]
            bias = bias[: len(REGIMES)]
            return (linear_test @ weight + bias).argmax(-1).numpy()[None], weight.numel() + bias.numel()
        train = (x_train, y_train)
        validation = (x_validation, y_validation)
        networks = [fit_network(name, seed, train, validation, self.config) for seed in self.config.seeds]
        with torch.no_grad():
            predictions = np.stack([network(x_test).argmax(-1).numpy() for network in networks])
        return predictions, sum(p.numel() for p in networks[0].parameters())


def summarise(windows: Tensor) -> Tensor:
    """The inputs of a linear model: the last session and the mean of each window (k, w, f), (k, 2 f) float64."""
    return torch.cat([windows[:, -1], windows.mean(1)], dim=-1).double()


def split_validation(rows: np.ndarray, config: RegimeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Every ``stride_bars``-th of the earlier ``rows`` (k,) for training, and the last rows for validation.

    ``rows`` are the training rows of a fold, ascending. Between the two parts ``horizon_bars`` rows are purged, so
    every label of a training row ends before the first validation row. Raises ValueError if no training row remains.
    """
    n_validation = math.ceil(config.validation_fraction * len(rows))
    n_train = len(rows) - n_validation - config.horizon_bars
    if n_train < 1:
        raise ValueError(f"{len(rows)} training rows leave none to train on; raise train_bars")
    return rows[: n_train : config.stride_bars], rows[-n_validation:]


def fit_network(
    name: str, seed: int, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], config: RegimeConfig
) -> RegimeNetwork:
    """A fitted network in evaluation mode, with the weights of the epoch of the lowest validation loss.

    ``train`` and ``validation`` are windows (k, w, f) and labels (k,). The fit ends ``patience`` epochs after the best
    one.
    """
    x, y = train
    x_validation, y_validation = validation
    network = RegimeNetwork(config.spec(name), x.shape[-1], seed)
    train_config = TrainConfig(lr=config.lr, weight_decay=config.weight_decay)
    optimiser = FoldModule(network, train_config).configure_optimizers()
    generator = torch.Generator().manual_seed(seed)
    best_loss = math.inf
    best_epoch = 0
    best_weights = copy.deepcopy(network.state_dict())
    for epoch in range(config.epochs):
        network.train()
        reseed(network, seed, epoch)
        for batch in torch.randperm(len(x), generator=generator).split(config.batch_rows):
            optimiser.zero_grad()
            cross_entropy(network(x[batch]), y[batch]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), train_config.clip_norm)
            optimiser.step()
        network.eval()
        with torch.no_grad():
            loss = float(cross_entropy(network(x_validation), y_validation))
        if loss < best_loss:
            best_loss = loss
            best_epoch = epoch
            best_weights = copy.deepcopy(network.state_dict())
        if epoch - best_epoch >= config.patience:
            break
    network.load_state_dict(best_weights)
    return network.eval()
