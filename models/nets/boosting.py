"""Gradient-boosted trees on the bar and the bars before it.

Friedman (2001), as LightGBM (Ke et al. 2017) grows them: a regression with Huber's loss for every return, one for the
volatility, and a classifier of the five classes, each stopped at the least loss on the validated rows.

Glossary: b chunks · l bars · n assets · p lagged features · r rows · o outputs · u log(coming volatility ÷ σ).

The volatility is a gamma regression of exp(2 u) with score s = 2 û: its loss exp(2 u − s) + s is twice the Gaussian one
that networks are trained with, so exp(û) is a volatility here too. Trees are stored as LightGBM's text format, one
uint8 buffer for each output; loading them runs no stored code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.nets.estimators import LaggedEstimator, TrainingRows
from models.nets.forecast import CLASSES, Forecast
from models.nets.spec import Spec

if TYPE_CHECKING:
    import lightgbm

HUBER_DELTA = 1.0  # as in the loss of the networks
FIXED = {
    "num_threads": 1,  # with the next two: the same trees to the bit, whatever the machine
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
}


class GradientBoosting(LaggedEstimator):
    """Options: lags (number of bars read before the current one), rounds, leaves, rate, min_rows (of a leaf), patience
    (rounds without gain until the fit stops)."""

    def __init__(
        self,
        spec: Spec,
        n_features: int,
        n_horizons: int,
        lags: int = 1,
        rounds: int = 300,
        leaves: int = 15,
        rate: float = 0.05,
        min_rows: int = 50,
        patience: int = 20,
    ) -> None:
        super().__init__(n_features, lags)
        self.tree_settings = {**FIXED, "num_leaves": leaves, "learning_rate": rate, "min_data_in_leaf": min_rows}
        self.rounds = rounds
        self.patience = patience
        self.sized_by_data = (*(f"return_{k}" for k in range(n_horizons)), "log_volatility", "classes")
        for name in self.sized_by_data:
            self.register_buffer(name, torch.empty(0, dtype=torch.uint8))
        self._boosters: dict[str, Any] = {}

    @property
    def fitted_numbers(self) -> int:
        """The number of leaves of all trees."""
        lines = [line for name in self.sized_by_data for line in self._text(name).splitlines()]
        return sum(int(line.partition("=")[2]) for line in lines if line.startswith("num_leaves="))

    def read(self, x: Tensor) -> Forecast:
        """The forecast of lagged bars x (b, l, n, p)."""
        rows = x.flatten(0, 2).double().cpu().numpy()
        scores = [torch.from_numpy(self._score(name, rows)).to(x.device, torch.float32) for name in self.sized_by_data]
        *returns, log_variance, logits = (score.reshape(*x.shape[:3], -1) for score in scores)
        return Forecast(torch.cat(returns, dim=-1), 0.5 * log_variance[..., 0], logits)

    def fit_rows(self, rows: TrainingRows) -> None:
        """Fits the trees of every output that has known targets in both the learned and the validated rows; the other
        outputs stay without trees."""
        x = self.inputs(rows.batch)[0]
        *returns, log_volatility, classes = rows.targets()
        for name, target in zip(self.sized_by_data[:-2], returns, strict=True):
            self._fit(name, rows, x, target, {"objective": "huber", "alpha": HUBER_DELTA})
        self._fit("log_volatility", rows, x, torch.exp(2 * log_volatility), {"objective": "gamma"})
        self._fit("classes", rows, x, classes, {"objective": "multiclass", "num_class": CLASSES})

    def _fit(self, name: str, rows: TrainingRows, x: Tensor, target: Tensor, objective: dict[str, Any]) -> None:
        import lightgbm  # takes a second, which a night without trees saves

        learned_x, learned_y, validated_x, validated_y = (v.numpy() for v in rows.with_targets(x, target))
        if not (len(learned_y) and len(validated_y)):
            return
        settings = {**self.tree_settings, **objective, "seed": rows.seed}
        learned = lightgbm.Dataset(learned_x, learned_y, params=settings)
        validated = lightgbm.Dataset(validated_x, validated_y, reference=learned, params=settings)
        stop = lightgbm.early_stopping(self.patience, verbose=False)
        booster = lightgbm.train(settings, learned, self.rounds, valid_sets=[validated], callbacks=[stop])
        text = booster.model_to_string(num_iteration=booster.best_iteration)
        self._buffers[name] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        self._boosters.pop(name, None)

    def _score(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Raw scores (r, o) of rows (r, p), zeros for an output without trees."""
        outputs = CLASSES if name == "classes" else 1
        if not self._text(name):
            return np.zeros((len(rows), outputs))
        scores = self._trees(name).predict(rows, raw_score=True, num_threads=1)
        return np.asarray(scores).reshape(len(rows), outputs)

    def _trees(self, name: str) -> lightgbm.Booster:
        import lightgbm

        if name not in self._boosters:
            self._boosters[name] = lightgbm.Booster(model_str=self._text(name))
        return self._boosters[name]

    def _text(self, name: str) -> str:
        return self.get_buffer(name).cpu().numpy().tobytes().decode()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._boosters.clear()
        super()._load_from_state_dict(*arguments)
