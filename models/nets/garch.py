"""A volatility model of every asset by itself: GARCH(1, 1), Bollerslev (1986), equations 1 and 6.

Glossary: b chunks · l bars · n assets · k bars ahead · r one-bar log return (ε) · v variance of the next bar (h) ·
ω, α, β (α₀, α₁, β₁) · φ = α + β.

    v_{t+1} = ω + α r_t² + β v_t        E_t r²_{t+i} = ω (1 + φ + … + φ^{i−2}) + φ^{i−1} v_{t+1}

The forecast is the root of the mean of the latter over the k bars that the volatility label covers, which is linear in
v_{t+1}: level + carry · v_{t+1}. Its returns are 0, and its classes have the frequencies of the learned rows.

It reads unscaled features, because scaling clips returns at a few deviations. A chunk starts from the unconditional
variance. An asset with too few bars takes the median α and β of the others.

Departure: over a few hundred bars the likelihood sometimes prefers ω = 0 and β close to 1, a variance that dies out.
Where its unconditional variance is more than 4 times the mean square of the learned returns, or less than a quarter,
that mean square takes its place (variance targeting, Engle and Mezrich 1996).
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
from models.nets.forecast import CLASSES, Batch, Forecast, check_batch
from models.nets.sequence import State, flatten_state
from models.nets.spec import Spec

RETURN = "return_1"
SIGMA = "volatility_60"
TYPICAL_ALPHA_BETA = (0.05, 0.90)  # of daily returns, where no asset has enough bars
MAX_VARIANCE_RATIO = 4.0  # of unconditional variance and mean square, in both directions
MEAN_SQUARE_BARS = 20  # fewest bars that a mean square is computed from


class Garch(Estimator):
    """Options: min_bars, the number of learned bars from which α and β of an asset are fitted."""

    scaled = False
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
        self.register_buffer("columns", torch.zeros(2, dtype=torch.int64))  # positions of the return and of σ
        self.register_buffer("prior", torch.zeros(CLASSES))

    @property
    def fitted_numbers(self) -> int:
        """The number of ω, α, β of every asset and of class frequencies."""
        return 3 * len(self.omega) + CLASSES

    def initial_state(self, b: int, n: int) -> State:
        """The unconditional variances (b, n). Raises ShapeError for another number of assets than the fit had."""
        if n != len(self.start):
            raise ShapeError(f"{n} assets, but this GARCH was fitted to {len(self.start)}; fit it to these")
        return ((self.start.expand(b, n),),)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar."""
        b, _, n, _ = batch.x.shape
        return self.step(batch, self.initial_state(b, n))[0]

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of the next bars, one or more, and the variances (b, n) after them. Raises StateError."""
        check_batch(batch, batch.x.shape[-1])
        (v,) = flatten_state(state)
        b, _, n, _ = batch.x.shape
        if v.shape != (b, n):
            raise StateError(f"the state is {tuple(v.shape)} for {b} chunks of {n} assets; start from initial_state")
        returns, sigma = self._read(batch)
        shock = self.omega + self.alpha * returns.square()
        variances = []
        for shock_t, mask_t in zip(shock.unbind(1), batch.mask.unbind(1), strict=True):
            v = torch.where(mask_t, shock_t + self.beta * v, v)
            variances.append(v)
        ahead = self.level + self.carry * torch.stack(variances, dim=1)
        is_defined = batch.mask & (sigma > 0) & (ahead > 0)
        ratio = torch.where(is_defined, ahead, 1.0).log() / 2 - torch.where(is_defined, sigma, 1.0).log()
        log_volatility = torch.where(is_defined, ratio, 0.0).float()
        no_returns = log_volatility.new_zeros(*log_volatility.shape, self.n_horizons)
        return Forecast(no_returns, log_volatility, self.prior.expand(*log_volatility.shape, CLASSES)), ((v,),)

    def fit_rows(self, rows: TrainingRows) -> None:
        """Fits ω, α and β to the learned returns of every asset. Raises FeatureError without return_1 or
        volatility_60."""
        missing = [name for name in (RETURN, SIGMA) if name not in rows.columns]
        if missing:
            raise FeatureError(f"GARCH reads {RETURN} and {SIGMA}; the features have no {', '.join(missing)}")
        self.columns = torch.tensor([rows.columns.index(name) for name in (RETURN, SIGMA)])
        returns, sigma = (v[0].numpy() for v in self._read(rows.batch))
        mask = rows.batch.mask[0].numpy()
        start, stop = rows.learned
        asset_returns = [r[has_bar] for r, has_bar in zip(returns[start:stop].T, mask[start:stop].T, strict=True)]
        variance, alpha, beta = fit_assets(asset_returns, self.min_bars)
        omega = np.maximum(1.0 - alpha - beta, 0.0) * variance
        squares = np.where(mask, returns, np.nan)[start:stop] ** 2
        label = rows.log_volatility[start:stop].double().numpy()
        k = label_bars(squares, label, sigma[start:stop], rows.horizons)
        level, carry = mean_ahead(omega, alpha + beta, k)
        fitted = (omega, alpha, beta, variance, level, carry)
        for name, value in zip(self.per_asset, fitted, strict=True):
            self._buffers[name] = torch.from_numpy(np.array(value, dtype=np.float64))
        classes = rows.class_5[start:stop]
        count = torch.bincount(classes[classes >= 0], minlength=CLASSES) + 1.0
        self.prior = torch.log(count / count.sum())

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns and σ (b, l, n), zeros where there is no bar."""
        columns = batch.x[..., self.columns].double()
        return tuple(torch.where(batch.mask, v, 0.0) for v in columns.unbind(-1))  # type: ignore[return-value]


def fit_assets(returns: Sequence[np.ndarray], min_bars: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unconditional variance, α and β (n,) of every asset; ``returns`` holds one array (m,) for each asset, its bars
    only."""
    square = np.array([np.mean(r**2) if len(r) >= MEAN_SQUARE_BARS else 0.0 for r in returns])
    square[square == 0] = np.median(square[square > 0]) if square.any() else 1.0
    is_fitted = np.array([len(r) >= max(min_bars, MEAN_SQUARE_BARS) and r.any() for r in returns])
    fitted = np.array(
        [
            _fit(r, v) if has_fit else (1.0, *TYPICAL_ALPHA_BETA)
            for r, v, has_fit in zip(returns, square, is_fitted, strict=True)
        ]
    )
    if is_fitted.any():
        fitted[~is_fitted, 1:] = np.median(fitted[is_fitted, 1:], axis=0)
    ratio, alpha, beta = fitted.T
    return ratio * square, alpha, beta


def _fit(returns: np.ndarray, square: float) -> tuple[float, float, float]:
    """Unconditional variance ÷ mean square, α, β of greatest Gaussian quasi-likelihood of returns (m,)."""
    from arch import arch_model  # takes half a second, which a night without GARCH saves

    model = arch_model(returns / math.sqrt(square), mean="Zero", vol="GARCH", p=1, q=1, rescale=False)
    omega, alpha, beta = model.fit(disp="off", show_warning=False).params
    rest = 1.0 - alpha - beta
    is_plausible = rest / MAX_VARIANCE_RATIO < omega < rest * MAX_VARIANCE_RATIO
    return omega / rest if is_plausible else 1.0, alpha, beta


def mean_ahead(omega: np.ndarray, phi: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """level, carry (n,): the mean variance of the next k bars is level + carry · v_{t+1}. ``omega`` is ω, ``phi`` φ."""
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


def label_bars(squares: np.ndarray, label: np.ndarray, sigma: np.ndarray, horizons: Sequence[int]) -> int:
    """The number of bars that the volatility label (t, n), log(coming volatility ÷ σ), covers: the one of ``horizons``
    over which the mean of the squared returns (t, n) comes closest to the label. Labels list their horizons but do not
    name the one of the volatility."""
    differences = dict.fromkeys(horizons, math.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for k in (k for k in horizons if k < len(squares)):
            realised = sliding_window_view(squares[1:], k, axis=0).mean(-1)
            difference = np.abs(0.5 * np.log(realised) - np.log(sigma[:-k]) - label[:-k])
            finite = difference[np.isfinite(difference)]
            if len(finite):
                differences[k] = finite.mean()
    return min(differences, key=differences.__getitem__)
