"""Which volatility regime comes next, by networks that see the same macro-economic quarter (inventory SSF-07, SSF-08).

Every fold of a walk forward: thresholds, scaler and weights from its training rows alone, whose labels ended before the
test began. The last rows of the training span, behind a purge of their own, choose the epoch. All networks get the same
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

from models.features.regimes import REGIMES, coming_volatility, regimes, terciles, trailing_volatility
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
    """Sizes of the study, in sessions, and the budget that every network gets.

    Models learn from every ``stride_bars``-th training row: neighbours share 62 of 63 bars and 20 of 21 label days.
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
        """The network of that name; the Transformer's feed-forward part is as wide as makes its size the others'."""
        options = {"window": self.lookback_bars, "expand": 2} if name == "transformer" else {}
        return Spec(name, self.d_model, self.n_layers, dropout=self.dropout, options=options)


@dataclass(frozen=True, eq=False)
class RegimeStudy:
    """Test days ``dates`` (t,), what came, ``truth`` (t,), and by model name what was said, (s, t), one row a seed.

    ``folds``: those that were tested, with ``thresholds`` (folds, 2); ``parameters`` and ``seconds`` (fitting and
    forecasting, all folds and seeds) of each model.
    """

    dates: np.ndarray
    truth: np.ndarray
    said: dict[str, np.ndarray]
    folds: list[Fold]
    thresholds: np.ndarray
    parameters: dict[str, int]
    seconds: dict[str, float]

    def correct(self, name: str) -> np.ndarray:
        """Where a model was right, (s, t)."""
        return self.said[name] == self.truth


class RegimeNetwork(nn.Module):
    """(k, w, f) → logits of the regimes (k, 3), read off an encoder's last bar; starts without an opinion."""

    def __init__(self, spec: Spec, n_features: int, seed: int) -> None:
        super().__init__()
        encoder = build(spec, n_features, 1, seed).encoder
        assert isinstance(encoder, nn.Module)
        self.encoder = encoder
        self.weight = nn.Parameter(torch.zeros(len(REGIMES), spec.d_model))
        self.bias = nn.Parameter(torch.zeros(len(REGIMES)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (k, 3)."""
        there = torch.ones(x.shape[:2])
        h = self.encoder(Batch(x[:, :, None], there[:, :, None].bool(), there))
        return h[:, -1, 0] @ self.weight.T + self.bias


def study(
    dates: np.ndarray,
    features: np.ndarray,
    returns: np.ndarray,
    last_date: np.datetime64,
    config: RegimeConfig,
    on_fold: OnFold | None = None,
) -> RegimeStudy:
    """Every model on every fold of sessions ``dates`` (t,) datetime64[D] until ``last_date``, the features' last.

    ``features`` (t, f), known at each close, the last PRICE_FEATURES of the price alone; ``returns`` (t,) log, whose
    later ones are labels only. Raises ValueError where no fold has a test row.
    """
    coming = coming_volatility(returns, config.horizon_bars)
    trailing = trailing_volatility(returns, config.horizon_bars)
    folds = regime_folds(dates, coming, last_date, config)
    if not folds:
        raise ValueError(f"{len(dates)} sessions until {last_date} are too few for one fold of {config}")
    said: dict[str, list[np.ndarray]] = defaultdict(list)
    truth, tested, thresholds = [], [], []
    parameters: dict[str, int] = {"majority": 0, "persistence": 0}
    seconds: dict[str, float] = defaultdict(float)
    for done, (fold, test) in enumerate(folds):
        edges = terciles(coming[fold.train])
        labels = regimes(coming, edges)
        x = scaled(features, fold)
        windows = np.lib.stride_tricks.sliding_window_view(x, config.lookback_bars, axis=0).swapaxes(1, 2)
        rows = RegimeRows(torch.from_numpy(windows.copy()), torch.from_numpy(labels), config)
        most = np.bincount(labels[fold.train], minlength=len(REGIMES)).argmax()
        said["majority"].append(np.full((1, len(test)), most))
        said["persistence"].append(regimes(trailing, edges)[test][None])
        for name in ("logistic_price", "logistic", *NETWORKS):
            started = time.perf_counter()
            answers, parameters[name] = rows.answers(name, fold, test)
            said[name].append(answers)
            seconds[name] += time.perf_counter() - started
        truth.append(labels[test])
        tested.append(test)
        thresholds.append(edges)
        if on_fold is not None:
            on_fold(done + 1, len(folds))
    return RegimeStudy(
        dates[np.concatenate(tested)],
        np.concatenate(truth),
        {name: np.concatenate(said[name], axis=1) for name in (*BASELINES, *NETWORKS)},
        [fold for fold, _ in folds],
        np.array(thresholds),
        parameters,
        {"majority": 0.0, "persistence": 0.0, **seconds},
    )


def regime_folds(
    dates: np.ndarray, coming: np.ndarray, last_date: np.datetime64, config: RegimeConfig
) -> list[tuple[Fold, np.ndarray]]:
    """Folds with their test rows: those until ``last_date`` whose label is known by now."""
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
    asked = ~np.isnan(coming) & (dates <= last_date)
    pairs = [(fold, np.arange(fold.test_start, min(fold.test_stop, len(dates)))) for fold in folds]
    return [(fold, test[asked[test]]) for fold, test in pairs if asked[test].any()]


def scaled(features: np.ndarray, fold: Fold) -> np.ndarray:
    """Features (t, f) scaled by the training rows of ``fold``, float32."""
    cube = features[fold.train][:, None]
    names = [str(k) for k in range(features.shape[1])]
    return Scaler.fit(cube, np.ones(cube.shape[:2], dtype=bool), names).transform(features)


class RegimeRows:
    """The quarter before every session and the regime after it, to fit a model on some rows and ask it on others."""

    def __init__(self, windows: Tensor, labels: Tensor, config: RegimeConfig) -> None:
        """``windows`` (t − w + 1, w, f): that at i ends with session i + w − 1; ``labels`` (t,)."""
        self.windows, self.labels, self.config = windows, labels, config

    def at(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Windows (k, w, f) that end at ``rows`` (k,), and their labels (k,)."""
        at = torch.from_numpy(rows)
        return self.windows[at - (self.config.lookback_bars - 1)], self.labels[at]

    def answers(self, name: str, fold: Fold, test: np.ndarray) -> tuple[np.ndarray, int]:
        """What the model says of the rows ``test``, (s, k), and how many parameters it has."""
        learned, held_out = validation_split(fold.train, self.config)
        known, validated, (asked, _) = self.at(learned), self.at(held_out), self.at(test)
        if name.startswith("logistic"):
            first = asked.shape[-1] - PRICE_FEATURES if name == "logistic_price" else 0
            x, x_validated, x_asked = (summarised(windows[..., first:]) for windows in (known[0], validated[0], asked))
            weight, bias, _ = logistic(x, known[1], x_validated, validated[1])
            weight, bias = weight[:, : len(REGIMES)], bias[: len(REGIMES)]
            return (x_asked @ weight + bias).argmax(-1).numpy()[None], weight.numel() + bias.numel()
        networks = [fitted(name, seed, known, validated, self.config) for seed in self.config.seeds]
        with torch.no_grad():
            said = np.stack([network(asked).argmax(-1).numpy() for network in networks])
        return said, sum(p.numel() for p in networks[0].parameters())


def summarised(windows: Tensor) -> Tensor:
    """What a linear model reads of a quarter: its last bar and its mean, (k, 2 f) float64."""
    return torch.cat([windows[:, -1], windows.mean(1)], dim=-1).double()


def validation_split(train: np.ndarray, config: RegimeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Training rows to learn from, and the later ones to choose the epoch by; no label of the first reaches these."""
    held_out = math.ceil(config.validation_fraction * len(train))
    learned = len(train) - held_out - config.horizon_bars
    if learned < 1:
        raise ValueError(f"{len(train)} training rows leave none to learn from; raise train_bars")
    return train[: learned : config.stride_bars], train[-held_out:]


def fitted(
    name: str, seed: int, learned: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], config: RegimeConfig
) -> RegimeNetwork:
    """A network with the weights of the epoch that costs least on the rows held out, ready to be asked."""
    x, y = learned
    network = RegimeNetwork(config.spec(name), x.shape[-1], seed)
    settings = TrainConfig(lr=config.lr, weight_decay=config.weight_decay)
    optimiser = FoldModule(network, settings).configure_optimizers()
    order = torch.Generator().manual_seed(seed)
    least, best, best_epoch = math.inf, copy.deepcopy(network.state_dict()), 0
    for epoch in range(config.epochs):
        network.train()
        reseed(network, seed, epoch)
        for rows in torch.randperm(len(x), generator=order).split(config.batch_rows):
            optimiser.zero_grad()
            cross_entropy(network(x[rows]), y[rows]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            optimiser.step()
        network.eval()
        with torch.no_grad():
            loss = float(cross_entropy(network(held_out[0]), held_out[1]))
        if loss < least:
            least, best, best_epoch = loss, copy.deepcopy(network.state_dict()), epoch
        if epoch - best_epoch >= config.patience:
            break
    network.load_state_dict(best)
    return network.eval()
