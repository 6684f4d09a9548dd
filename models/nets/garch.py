"""A volatility model of every asset by itself: GARCH(1, 1), Bollerslev (1986), equations 1 and 6.

Glossary, with Bollerslev's symbols in brackets: b chunks · l bars · n assets · t bars of a fold · m bars of one asset ·
k bars that the volatility label covers · r one-bar log return (ε) · v variance of a bar's return (h) ·
ω, α, β (α₀, α₁, β₁) · φ = α + β · σ trailing volatility per bar.

    v_{t+1} = ω + α r_t² + β v_t        E_t r²_{t+i} = ω (1 + φ + … + φ^{i−2}) + φ^{i−1} v_{t+1}

The mean of E_t r²_{t+i} over i = 1 … k is linear in v_{t+1}: level + carry · v_{t+1}. The forecast volatility is its
square root. The forecast returns are 0. The class probabilities are the class frequencies of the training rows.

The model reads unscaled features, because scaling clips returns at a few standard deviations. Before the first bar of
a chunk v is the unconditional variance. An asset with too few bars takes the median α and β of the other assets.

Departure: over a few hundred bars the likelihood is sometimes highest at ω ≈ 0, so that the forecast variance decays to
0. Where the fitted unconditional variance is more than 4 times the mean square of the training returns, or less than a
quarter of it, that mean square replaces it (variance targeting, Engle and Mezrich 1996).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from models.features.indicators import FeatureError
from models.layers.errors import ShapeError, StateError
from models.nets.estimators import Estimator, TrainingRows
from models.nets.forecast import N_CLASSES, Batch, Forecast, check_batch
from models.nets.sequence import State, flatten_state
from models.nets.spec import Spec

RETURN_COLUMN = "return_1"
SIGMA_COLUMN = "volatility_60"
TYPICAL_ALPHA_BETA = (0.05, 0.90)  # of daily returns; used where no asset has enough bars for a fit
MAX_VARIANCE_RATIO = 4.0  # between unconditional variance and mean square, in either direction
MIN_MEAN_SQUARE_BARS = 20  # an asset with fewer bars takes the median mean square of the others


class Garch(Estimator):
    """A GARCH(1, 1) for every asset.

    Option: ``min_bars``, the minimum number of training bars for a fit of α and β of an asset. Buffers (n,) float64:
    ``omega``, ``alpha``, ``beta``; ``start``, the unconditional variance; ``level`` and ``carry``. State: one part with
    one tensor, the variances v (b, n) float64 of the next bar. ``per_asset``: names of the buffers with one value for
    each asset.
    """

    reads_scaled = False
    per_asset = ("omega", "alpha", "beta", "start", "level", "carry")
    sized_by_data = per_asset
    omega: Tensor
    alpha: Tensor
    beta: Tensor
    start: Tensor
    level: Tensor
    carry: Tensor
    columns: Tensor
    prior: Tensor

    def __init__(self, spec: Spec, n_features: int, n_horizons: int, min_bars: int = 100) -> None:
        super().__init__()
        self.n_horizons = n_horizons
        self.min_bars = min_bars
        for name in self.per_asset:
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        self.register_buffer("columns", torch.zeros(2, dtype=torch.int64))  # feature positions of the return and of σ
        self.register_buffer("prior", torch.zeros(N_CLASSES))  # log class frequencies

    @property
    def n_parameters(self) -> int:
        """Three for every asset (ω, α, β), and one for every class frequency."""
        return 3 * len(self.omega) + N_CLASSES

    def initial_state(self, b: int, n: int) -> State:
        """The state before the first bar: the unconditional variances. Raises ShapeError unless ``n`` is the number of
        assets of the fit."""
        if n != len(self.start):
            raise ShapeError(f"{n} assets, but this GARCH was fitted to {len(self.start)}; fit it to these")
        return ((self.start.expand(b, n),),)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar. Raises the errors of ``check_batch`` and of ``initial_state``."""
        b, _, n, _ = batch.x.shape
        forecast, _ = self.step(batch, self.initial_state(b, n))
        return forecast

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of the next bars, one or more, and the state after them.

        A missing bar leaves v unchanged, and its forecast log-volatility is 0. Raises StateError for a state of another
        shape, and the errors of ``check_batch``.
        """
        check_batch(batch, batch.x.shape[-1])
        (v,) = flatten_state(state)
        b, _, n, _ = batch.x.shape
        if v.shape != (b, n):
            raise StateError(f"the state is {tuple(v.shape)} for {b} chunks of {n} assets; start from initial_state")
        returns, sigma = self._returns_and_sigma(batch)
        shock = self.omega + self.alpha * returns.square()
        variances = []
        for shock_t, mask_t in zip(shock.unbind(1), batch.mask.unbind(1), strict=True):
            v = torch.where(mask_t, shock_t + self.beta * v, v)
            variances.append(v)
        mean_variance = self.level + self.carry * torch.stack(variances, dim=1)
        is_defined = batch.mask & (sigma > 0) & (mean_variance > 0)
        log_ratio = torch.where(is_defined, mean_variance, 1.0).log() / 2 - torch.where(is_defined, sigma, 1.0).log()
        log_volatility = torch.where(is_defined, log_ratio, 0.0).float()
        zero_returns = log_volatility.new_zeros(*log_volatility.shape, self.n_horizons)
        return Forecast(zero_returns, log_volatility, self.prior.expand(*log_volatility.shape, N_CLASSES)), ((v,),)

    def fit_rows(self, rows: TrainingRows) -> None:
        """Fits ω, α and β to the training returns of every asset. Raises FeatureError if the features lack return_1 or
        volatility_60."""
        missing = [name for name in (RETURN_COLUMN, SIGMA_COLUMN) if name not in rows.feature_names]
        if missing:
            raise FeatureError(
                f"GARCH reads {RETURN_COLUMN} and {SIGMA_COLUMN}; the features have no {', '.join(missing)}"
            )
        self.columns = torch.tensor([rows.feature_names.index(name) for name in (RETURN_COLUMN, SIGMA_COLUMN)])
        batch_returns, batch_sigma = self._returns_and_sigma(rows.batch)
        returns = batch_returns[0].numpy()
        sigma = batch_sigma[0].numpy()
        mask = rows.batch.mask[0].numpy()
        training = slice(*rows.training_range)
        asset_returns = [r[has_bar] for r, has_bar in zip(returns[training].T, mask[training].T, strict=True)]
        variance, alpha, beta = fit_assets(asset_returns, self.min_bars)
        omega = np.maximum(1.0 - alpha - beta, 0.0) * variance
        squared_returns = np.where(mask, returns, np.nan)[training] ** 2
        label = rows.log_volatility[training].double().numpy()
        k = infer_label_horizon(squared_returns, label, sigma[training], rows.horizons)
        level, carry = mean_variance_coefficients(omega, alpha + beta, k)
        fitted_values = (omega, alpha, beta, variance, level, carry)
        for name, value in zip(self.per_asset, fitted_values, strict=True):
            self._buffers[name] = torch.from_numpy(np.array(value, dtype=np.float64))
        classes = rows.class_5[training]
        smoothed_counts = torch.bincount(classes[classes >= 0], minlength=N_CLASSES) + 1.0  # no class has probability 0
        self.prior = torch.log(smoothed_counts / smoothed_counts.sum())

    def _returns_and_sigma(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One-bar log returns and σ, each (b, l, n) float64, zeros where there is no bar."""
        returns, sigma = batch.x[..., self.columns].double().unbind(-1)
        return torch.where(batch.mask, returns, 0.0), torch.where(batch.mask, sigma, 0.0)


def fit_assets(returns: Sequence[np.ndarray], min_bars: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unconditional variance, α and β of every asset, each (n,).

    ``returns`` has one array (m,) for each asset: the returns of the bars that the asset has. An asset with fewer than
    ``min_bars`` returns, or whose returns are all 0, takes the median α and β of the fitted assets; if no asset is
    fitted, TYPICAL_ALPHA_BETA. An asset with fewer than MIN_MEAN_SQUARE_BARS returns, or whose returns are all 0, takes
    the median mean square of the other assets as its variance; if no other asset has a mean square, 1.
    """
    mean_square = np.array([np.mean(r**2) if len(r) >= MIN_MEAN_SQUARE_BARS else 0.0 for r in returns])
    mean_square[mean_square == 0] = np.median(mean_square[mean_square > 0]) if mean_square.any() else 1.0
    is_fitted = np.array([len(r) >= max(min_bars, MIN_MEAN_SQUARE_BARS) and r.any() for r in returns])
    parameters = np.array(
        [
            _fit_asset(r, square) if has_enough_bars else (1.0, *TYPICAL_ALPHA_BETA)
            for r, square, has_enough_bars in zip(returns, mean_square, is_fitted, strict=True)
        ]
    )
    if is_fitted.any():
        parameters[~is_fitted, 1:] = np.median(parameters[is_fitted, 1:], axis=0)
    variance_ratio, alpha, beta = parameters.T
    return variance_ratio * mean_square, alpha, beta


def _fit_asset(returns: np.ndarray, mean_square: float) -> tuple[float, float, float]:
    """Unconditional variance ÷ mean square, α and β that maximise the Gaussian quasi-likelihood of returns (m,).

    The returned ratio is 1 if the fitted ratio is above MAX_VARIANCE_RATIO or below 1 ÷ MAX_VARIANCE_RATIO.
    """
    from arch import arch_model  # imported here because it takes half a second, which a night without GARCH saves

    model = arch_model(returns / math.sqrt(mean_square), mean="Zero", vol="GARCH", p=1, q=1, rescale=False)
    omega, alpha, beta = model.fit(disp="off", show_warning=False).params
    one_minus_phi = 1.0 - alpha - beta  # the unconditional variance is ω ÷ (1 − φ)
    is_plausible = one_minus_phi / MAX_VARIANCE_RATIO < omega < one_minus_phi * MAX_VARIANCE_RATIO
    return omega / one_minus_phi if is_plausible else 1.0, alpha, beta


def mean_variance_coefficients(omega: np.ndarray, phi: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """level and carry, each (n,), with which the mean variance of the next k bars is level + carry · v_{t+1}.

    ``omega`` is ω (n,), ``phi`` is φ (n,).
    """
    constant = np.zeros_like(omega)
    factor = np.ones_like(omega)
    level = constant.copy()
    carry = factor.copy()
    for _ in range(k - 1):
        constant = omega + phi * constant
        factor = phi * factor
        level = level + constant
        carry = carry + factor
    return level / k, carry / k


def infer_label_horizon(
    squared_returns: np.ndarray, label: np.ndarray, sigma: np.ndarray, horizons: Sequence[int]
) -> int:
    """The number of bars that the volatility label covers, inferred from the returns because labels do not store it.

    For each horizon the label is computed from the squared returns. The function returns the horizon with the lowest
    mean absolute difference from ``label``, or the first horizon if no label can be compared. ``squared_returns``
    (t, n): squared one-bar returns, NaN where the asset has no bar. ``label`` (t, n): log(coming volatility ÷ σ), NaN
    where unknown. ``sigma`` (t, n): σ.
    """
    mean_differences = dict.fromkeys(horizons, math.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for k in (k for k in horizons if k < len(squared_returns)):
            realised_variance = sliding_window_view(squared_returns[1:], k, axis=0).mean(-1)
            difference = np.abs(0.5 * np.log(realised_variance) - np.log(sigma[:-k]) - label[:-k])
            finite_differences = difference[np.isfinite(difference)]
            if len(finite_differences):
                mean_differences[k] = finite_differences.mean()
    return min(mean_differences, key=mean_differences.__getitem__)
