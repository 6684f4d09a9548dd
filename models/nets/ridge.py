"""Linear models of the bar and the bars before it: the first baseline that a network has to beat.

Hoerl and Kennard (1970), ridge regression, one for every return and for the log-volatility; for the classes the
multinomial logistic regression with the same penalty, whose probabilities are calibrated where a regression on
indicators is not. Each output takes the penalty with the least loss on the validated rows.

Glossary: p lagged features · r learned rows · v validated rows · λ penalty per row · u log(coming volatility ÷ σ).

Departure: exp of a mean of logs is below the volatility that squares average to, so the forecast of u is raised by
½ log mean exp(2 (u − û)) over the learned rows (Duan's smearing, 1983).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.nets.estimators import LaggedEstimator, TrainingRows
from models.nets.forecast import CLASSES, Forecast
from models.nets.spec import Spec

PENALTIES = (100.0, 10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)  # for features scaled to a deviation of about 1
ITERATIONS = 60


class Ridge(LaggedEstimator):
    """Options: lags, the number of bars read before the current one."""

    weight: Tensor
    bias: Tensor
    penalty: Tensor

    def __init__(self, spec: Spec, n_features: int, n_horizons: int, lags: int = 1) -> None:
        super().__init__(n_features, lags)
        self.sizes = [n_horizons, 1, CLASSES]
        self.register_buffer("weight", torch.zeros(self.n_inputs, sum(self.sizes)))
        self.register_buffer("bias", torch.zeros(sum(self.sizes)))
        self.register_buffer(
            "penalty", torch.zeros(n_horizons + 2)
        )  # the selected one of each output, stored for inspection

    @property
    def fitted_numbers(self) -> int:
        """The number of weights and biases."""
        return self.weight.numel() + self.bias.numel()

    def read(self, x: Tensor) -> Forecast:
        """The forecast of lagged bars x (b, l, n, p)."""
        returns, log_volatility, logits = (x @ self.weight + self.bias).split(self.sizes, dim=-1)
        return Forecast(returns, log_volatility[..., 0], logits)

    def fit_rows(self, rows: TrainingRows) -> None:
        """Fits every output to the rows where its target is known; an output without such rows stays 0."""
        x = self.inputs(rows.batch)[0].double()
        *regressed, classes = rows.targets()
        for k, target in enumerate(regressed):
            samples = rows.with_targets(x, target.double())
            if not len(samples[0]):
                continue
            self.weight[:, k], self.bias[k], self.penalty[k] = linear(*samples)
        if len((samples := rows.with_targets(x, rows.log_volatility.double()))[0]):
            k = len(regressed) - 1
            residual = samples[1] - samples[0] @ self.weight[:, k].double() - self.bias[k]
            self.bias[k] += 0.5 * (torch.logsumexp(2 * residual, 0) - math.log(len(residual)))
        if len((samples := rows.with_targets(x, classes))[0]):
            self.weight[:, -CLASSES:], self.bias[-CLASSES:], self.penalty[-1] = logistic(*samples)


def linear(x: Tensor, y: Tensor, x_validated: Tensor, y_validated: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weights (p,), bias and penalty of the fit with the least squared error on the validated rows; without validated
    rows, of the strongest penalty."""
    centre = x.mean(0)
    mean = y.mean()
    gram = (x - centre).T @ (x - centre) / len(x)
    cross = (x - centre).T @ (y - mean) / len(x)
    ridges = torch.tensor(PENALTIES, dtype=x.dtype)[:, None, None] * torch.eye(len(gram), dtype=x.dtype)
    weights = torch.linalg.solve(gram + ridges, cross.expand(len(PENALTIES), -1))
    biases = mean - weights @ centre
    cost = (x_validated @ weights.T + biases - y_validated[:, None]).square().sum(0)
    best = int(cost.argmin())  # the first of equals has the strongest penalty
    return weights[best], biases[best], PENALTIES[best]


def logistic(x: Tensor, y: Tensor, x_validated: Tensor, y_validated: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weights (p, 5), bias (5,) and penalty of the fit with the least cross-entropy on the validated rows.

    Penalties are tried from the strongest on. Every fit starts from the one before; the search ends at the first fit
    that is no better than the one before.
    """
    frequency = (torch.bincount(y, minlength=CLASSES) + 1.0).double()
    weight = torch.zeros(x.shape[1], CLASSES, dtype=x.dtype)
    bias = torch.log(frequency / frequency.sum())
    best = weight, bias, PENALTIES[0]
    least = math.inf
    for penalty in PENALTIES:
        weight, bias = _minimise(x, y, weight, bias, penalty)
        cost = float(cross_entropy(x_validated @ weight + bias, y_validated)) if len(y_validated) else 0.0
        if cost >= least:
            break
        best = weight, bias, penalty
        least = cost
    return best


def _minimise(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The weights and bias of least mean cross-entropy + ½ λ |weights|², by L-BFGS from ``weight`` and ``bias``."""
    weight = weight.clone().requires_grad_()
    bias = bias.clone().requires_grad_()
    search = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        search.zero_grad()
        loss = cross_entropy(x @ weight + bias, y) + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    search.step(cost)
    return weight.detach(), bias.detach()
