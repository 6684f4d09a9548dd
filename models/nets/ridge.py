"""Linear models of the bar and the bars before it: the baseline that other networks have to beat.

The return of each horizon and the log-volatility have one ridge regression each (Hoerl and Kennard 1970). The classes
have a multinomial logistic regression with an L2 penalty, because its probabilities are calibrated; the outputs of a
linear regression on class indicators are not. Each output selects its own penalty by the lowest loss on the validation
rows: squared error for a ridge regression, cross-entropy for the logistic regression.

Glossary: b chunks · l bars · n assets · p inputs of a forecast · r training rows · v validation rows · λ L2 penalty,
relative to the mean loss of a row · σ trailing volatility per bar · u log(coming volatility per bar ÷ σ) · û its fit.

Departure: the exponential of a mean of logarithms is below the root mean square. The forecast of u is therefore raised
by ½ log mean exp(2 (u − û)) over the training rows (smearing, Duan 1983).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.nets.estimators import LaggedEstimator, TrainingRows
from models.nets.forecast import N_CLASSES, Forecast
from models.nets.spec import Spec

PENALTIES = (100.0, 10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)  # for features with a standard deviation of about 1
MAX_ITERATIONS = 60  # of the logistic regression, for each penalty


class Ridge(LaggedEstimator):
    """One ridge regression per return and volatility, one logistic regression for the classes.

    Option: ``lags``, the number of bars read before the current one.
    """

    weight: Tensor
    bias: Tensor
    penalty: Tensor

    def __init__(self, spec: Spec, n_features: int, n_horizons: int, lags: int = 1) -> None:
        super().__init__(n_features, lags)
        self.sizes = [n_horizons, 1, N_CLASSES]
        self.register_buffer("weight", torch.zeros(self.n_inputs, sum(self.sizes)))
        self.register_buffer("bias", torch.zeros(sum(self.sizes)))
        # the selected penalty of every return, the volatility and the classes: no forecast reads it
        self.register_buffer("penalty", torch.zeros(n_horizons + 2))

    @property
    def n_parameters(self) -> int:
        """The number of weights and biases."""
        return self.weight.numel() + self.bias.numel()

    def predict_lagged(self, x: Tensor) -> Forecast:
        """The forecast of every bar from its lagged inputs ``x`` (b, l, n, p)."""
        returns, log_volatility, logits = (x @ self.weight + self.bias).split(self.sizes, dim=-1)
        return Forecast(returns, log_volatility[..., 0], logits)

    def fit_rows(self, rows: TrainingRows) -> None:
        """Fits each output to the training rows where its target is known. An output without such rows forecasts 0."""
        x = self.lagged_inputs(rows.batch)[0].double()
        *regression_targets, classes = rows.targets()
        for output, target in enumerate(regression_targets):
            samples = rows.known_samples(x, target.double())
            if len(samples.y):
                self.weight[:, output], self.bias[output], self.penalty[output] = fit_ridge(*samples)
        samples = rows.known_samples(x, rows.log_volatility.double())
        if len(samples.y):
            output = len(regression_targets) - 1
            residual = samples.y - samples.x @ self.weight[:, output].double() - self.bias[output]
            self.bias[output] += 0.5 * (torch.logsumexp(2 * residual, 0) - math.log(len(residual)))
        samples = rows.known_samples(x, classes)
        if len(samples.y):
            self.weight[:, -N_CLASSES:], self.bias[-N_CLASSES:], self.penalty[-1] = fit_logistic(*samples)


def fit_ridge(x: Tensor, y: Tensor, x_validation: Tensor, y_validation: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weights (p,), bias () and penalty of the ridge regression with the lowest squared error on the validation rows.

    ``x`` (r, p), ``y`` (r,), ``x_validation`` (v, p), ``y_validation`` (v,), r ≥ 1. Minimises the mean squared error +
    λ |weights|² on the training rows. Ties select the strongest penalty; so do zero validation rows.
    """
    x_mean = x.mean(0)
    y_mean = y.mean()
    gram = (x - x_mean).T @ (x - x_mean) / len(x)
    covariance = (x - x_mean).T @ (y - y_mean) / len(x)
    ridges = torch.tensor(PENALTIES, dtype=x.dtype)[:, None, None] * torch.eye(len(gram), dtype=x.dtype)
    weights = torch.linalg.solve(gram + ridges, covariance.expand(len(PENALTIES), -1))
    biases = y_mean - weights @ x_mean
    squared_errors = (x_validation @ weights.T + biases - y_validation[:, None]).square().sum(0)
    best_index = int(squared_errors.argmin())  # the first of equal errors, and PENALTIES begins with the strongest
    return weights[best_index], biases[best_index], PENALTIES[best_index]


def fit_logistic(x: Tensor, y: Tensor, x_validation: Tensor, y_validation: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weights (p, 5), bias (5,) and penalty of the multinomial logistic regression with the lowest cross-entropy on the
    validation rows.

    Inputs as in ``fit_ridge``, with ``y`` and ``y_validation`` int64 classes in [0, 5). Penalties are tried from the
    strongest to the weakest, each fit with a warm start from the fit before. The first fit that does not lower the
    validation loss ends the selection. Without validation rows the strongest penalty is selected.
    """
    smoothed_counts = (torch.bincount(y, minlength=N_CLASSES) + 1.0).double()  # Laplace: no class has probability 0
    weight = torch.zeros(x.shape[1], N_CLASSES, dtype=x.dtype)
    bias = torch.log(smoothed_counts / smoothed_counts.sum())
    best_fit = (weight, bias, PENALTIES[0])
    lowest_loss = math.inf
    for penalty in PENALTIES:
        weight, bias = _minimise_cross_entropy(x, y, weight, bias, penalty)
        validation_loss = 0.0
        if len(y_validation):
            validation_loss = float(cross_entropy(x_validation @ weight + bias, y_validation))
        if validation_loss >= lowest_loss:
            break
        best_fit = (weight, bias, penalty)
        lowest_loss = validation_loss
    return best_fit


def _minimise_cross_entropy(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float
) -> tuple[Tensor, Tensor]:
    """The weights and bias with the lowest mean cross-entropy + ½ λ |weights|² on the training rows, by L-BFGS from the
    given ``weight`` and ``bias``."""
    weight = weight.clone().requires_grad_()
    bias = bias.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=MAX_ITERATIONS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def penalised_loss() -> Tensor:
        optimiser.zero_grad()
        loss = cross_entropy(x @ weight + bias, y) + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(penalised_loss)
    return weight.detach(), bias.detach()
