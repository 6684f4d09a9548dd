"""Gradient-boosted trees on the bar and the bars before it.

Friedman (2001), as implemented by LightGBM (Ke et al. 2017). Every return has a regression with Huber's loss, the
volatility a gamma regression, the classes one classifier. Each of them keeps the number of boosting rounds with the
lowest loss on the validation rows (early stopping).

The gamma regression has the target exp(2 u) and the score s = 2 û. Its loss exp(2 u − s) + s is twice the Gaussian loss
that networks are trained with, so exp(û) · σ is a volatility here too. Trees are stored in LightGBM's text format, one
uint8 buffer for each output; loading them runs no stored code.

Glossary: b chunks · l bars · n assets · p inputs of a forecast · r rows · o scores of an output: 5 for the classes, 1
for any other · σ trailing volatility per bar · u log(coming volatility per bar ÷ σ) · û its forecast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.nets.estimators import LaggedEstimator, TrainingRows
from models.nets.forecast import N_CLASSES, Forecast
from models.nets.spec import Spec

if TYPE_CHECKING:
    import lightgbm

HUBER_DELTA = 1.0  # as in the loss of the networks
FIXED_TREE_SETTINGS = {
    "num_threads": 1,  # this and the next two settings make the trees bit-identical on every machine
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
}


class GradientBoosting(LaggedEstimator):
    """Boosted trees, one ensemble for each output.

    Options: ``lags``, the number of bars read before the current one; ``rounds``, the maximum number of boosting
    rounds; ``leaves``, the maximum number of leaves of a tree; ``rate``, the learning rate; ``min_rows``, the minimum
    number of training rows in a leaf; ``patience``, the number of rounds without a lower validation loss after which a
    fit stops. Buffers: the trees of each output as uint8 text, named by ``sized_by_data``.
    """

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
        self.tree_settings = {
            **FIXED_TREE_SETTINGS,
            "num_leaves": leaves,
            "learning_rate": rate,
            "min_data_in_leaf": min_rows,
        }
        self.rounds = rounds
        self.patience = patience
        self.sized_by_data = (*(f"return_{k}" for k in range(n_horizons)), "log_volatility", "classes")
        for output in self.sized_by_data:
            self.register_buffer(output, torch.empty(0, dtype=torch.uint8))
        self._boosters: dict[str, Any] = {}

    @property
    def n_parameters(self) -> int:
        """The number of leaves of all trees."""
        lines = [line for output in self.sized_by_data for line in self._model_text(output).splitlines()]
        return sum(int(line.partition("=")[2]) for line in lines if line.startswith("num_leaves="))

    def predict_lagged(self, x: Tensor) -> Forecast:
        """The forecast of every bar from its lagged inputs ``x`` (b, l, n, p)."""
        inputs = x.flatten(0, 2).double().cpu().numpy()
        scores = [
            torch.from_numpy(self._score(output, inputs)).to(x.device, torch.float32) for output in self.sized_by_data
        ]
        *returns, log_variance, logits = (score.reshape(*x.shape[:3], -1) for score in scores)
        return Forecast(torch.cat(returns, dim=-1), 0.5 * log_variance[..., 0], logits)

    def fit_rows(self, rows: TrainingRows) -> None:
        """Fits the trees of every output whose target is known in at least one training row and one validation row. The
        other outputs have no trees and forecast 0."""
        x = self.lagged_inputs(rows.batch)[0]
        *returns, log_volatility, classes = rows.targets()
        for output, target in zip(self.sized_by_data[:-2], returns, strict=True):
            self._fit(output, rows, x, target, {"objective": "huber", "alpha": HUBER_DELTA})
        self._fit("log_volatility", rows, x, torch.exp(2 * log_volatility), {"objective": "gamma"})
        self._fit("classes", rows, x, classes, {"objective": "multiclass", "num_class": N_CLASSES})

    def _fit(self, output: str, rows: TrainingRows, x: Tensor, target: Tensor, objective: dict[str, Any]) -> None:
        """Fits the trees of one output and stores them in its buffer. ``objective``: LightGBM settings of the loss."""
        import lightgbm  # imported here because the import takes a second, which a night without trees saves

        samples = rows.known_samples(x, target)
        if not (len(samples.y) and len(samples.y_validation)):
            return
        settings = {**self.tree_settings, **objective, "seed": rows.seed}
        training_set = lightgbm.Dataset(samples.x.numpy(), samples.y.numpy(), params=settings)
        validation_set = lightgbm.Dataset(
            samples.x_validation.numpy(), samples.y_validation.numpy(), reference=training_set, params=settings
        )
        early_stopping = lightgbm.early_stopping(self.patience, verbose=False)
        booster = lightgbm.train(
            settings, training_set, self.rounds, valid_sets=[validation_set], callbacks=[early_stopping]
        )
        text = booster.model_to_string(num_iteration=booster.best_iteration)
        self._buffers[output] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        self._boosters.pop(output, None)

    def _score(self, output: str, inputs: np.ndarray) -> np.ndarray:
        """Raw scores (r, o) of one output for r rows of ``inputs`` (r, p), zeros for an output without trees."""
        n_scores = N_CLASSES if output == "classes" else 1
        if not self._model_text(output):
            return np.zeros((len(inputs), n_scores))
        scores = self._booster(output).predict(inputs, raw_score=True, num_threads=1)
        return np.asarray(scores).reshape(len(inputs), n_scores)

    def _booster(self, output: str) -> lightgbm.Booster:
        """The trees of an output, parsed once and then cached."""
        import lightgbm

        if output not in self._boosters:
            self._boosters[output] = lightgbm.Booster(model_str=self._model_text(output))
        return self._boosters[output]

    def _model_text(self, output: str) -> str:
        """The trees of an output in LightGBM's text format, empty for an output without trees."""
        return self.get_buffer(output).cpu().numpy().tobytes().decode()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._boosters.clear()
        super()._load_from_state_dict(*arguments)
