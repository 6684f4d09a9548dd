"""Estimators: models that are fitted in one call to the rows of a fold, where the other networks use gradient descent.

They have the interface of networks: ``forward(batch) -> Forecast``, a state, a step. The fitted numbers are buffers,
which the model file stores like weights. A row is one bar of one asset.

Glossary: b chunks · l bars · n assets · f features · h horizons · t bars of a fold · k earlier bars (lags) ·
p = (k + 1)(f + 1) inputs of a forecast · r training rows · v validation rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.features.labels import UNKNOWN_CLASS
from models.layers.errors import SizeError
from models.nets.forecast import Batch, Forecast, check_batch
from models.nets.sequence import State, flatten_state

BarRange = tuple[int, int]  # the bars [start, stop)


class Samples(NamedTuple):
    """Inputs and known targets of one output: ``x`` (r, p) and ``y`` (r,) of the training rows, ``x_validation`` (v, p)
    and ``y_validation`` (v,) of the validation rows."""

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """The data of a fold that an estimator is fitted to.

    ``batch`` (1, t, n, f): the bars from the burn-in before the first training row to the last validation row.
    ``returns`` (t, n, h) and ``log_volatility`` (t, n): targets in the units of a Forecast, NaN where unknown.
    ``class_5`` (t, n) int64: target classes, UNKNOWN_CLASS where unknown.
    ``training_range``: the bars that the model is fitted to. ``validation_range``: the bars that only select the
    penalty and decide when a fit stops. ``columns``: names of the features. ``horizons``: bars ahead.
    """

    batch: Batch
    returns: Tensor
    log_volatility: Tensor
    class_5: Tensor
    training_range: BarRange
    validation_range: BarRange
    columns: tuple[str, ...]
    horizons: tuple[int, ...]
    seed: int

    def targets(self) -> Iterator[Tensor]:
        """The targets one by one, each (t, n): the return of every horizon, the log-volatility, the class."""
        yield from (*self.returns.unbind(-1), self.log_volatility, self.class_5)

    def with_targets(self, x: Tensor, target: Tensor) -> Samples:
        """The rows of x (t, n, p) in the two ranges whose ``target`` (t, n) is known."""
        is_known = target != UNKNOWN_CLASS if target.dtype == torch.int64 else ~torch.isnan(target)
        training = slice(*self.training_range)
        validation = slice(*self.validation_range)
        return Samples(
            x=x[training][is_known[training]],
            y=target[training][is_known[training]],
            x_validation=x[validation][is_known[validation]],
            y_validation=target[validation][is_known[validation]],
        )


class Estimator(nn.Module):
    """A network with ``fit_rows``.

    ``sized_by_data`` names the buffers whose sizes depend on the training data: a model file that is loaded determines
    their sizes. ``reads_scaled``: True if the model reads scaled features, False if it reads them unscaled.
    """

    reads_scaled = True
    sized_by_data: tuple[str, ...] = ()

    def fit_rows(self, rows: TrainingRows) -> None:
        """Fits the model in place. The same rows and seed give bit-identical buffers."""
        raise NotImplementedError

    @property
    def n_parameters(self) -> int:
        """The number of values that the fit determined."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *more: Any) -> None:
        for name in self.sized_by_data:
            stored = state_dict.get(prefix + name)
            buffer = self._buffers[name]
            if stored is not None and buffer is not None and stored.dim() == buffer.dim():
                self._buffers[name] = buffer.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *more)


class LaggedEstimator(Estimator):
    """An estimator whose inputs are a bar and the k bars before it. Its state holds those k bars, zeros before the
    first bar."""

    def __init__(self, n_features: int, lags: int) -> None:
        super().__init__()
        if lags < 0:
            raise SizeError(f"lags is {lags}; give the number of bars before the present one to read, 0 or more")
        self.lags = lags
        self.width = n_features + 1

    @property
    def n_inputs(self) -> int:
        """p, the number of inputs of a forecast."""
        return (self.lags + 1) * self.width

    def predict_lagged(self, x: Tensor) -> Forecast:
        """The forecast from lagged bars x (b, l, n, p)."""
        raise NotImplementedError

    def initial_state(self, b: int, n: int) -> State:
        """The k bars before the first one, all zeros (b, k, n, f + 1)."""
        return ((self._no_bars(b, n),),)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar. Raises ShapeError, DtypeError, NotFiniteError."""
        b, _, n, _ = batch.x.shape
        forecast, _ = self.step(batch, self.initial_state(b, n))
        return forecast

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of the next bars, one or more, and the state after them."""
        (earlier,) = flatten_state(state)
        bars = torch.cat([earlier, features_and_mask(batch)], dim=1)
        last_bars = bars[:, bars.shape[1] - self.lags :]
        return self.predict_lagged(self.lagged(bars)), ((last_bars,),)

    def lagged(self, bars: Tensor) -> Tensor:
        """(b, k + l, n, f + 1) → (b, l, n, p): each of the last l bars and the k bars before it, latest first."""
        length = bars.shape[1] - self.lags
        return torch.cat([bars[:, self.lags - j : self.lags - j + length] for j in range(self.lags + 1)], dim=-1)

    def inputs(self, batch: Batch) -> Tensor:
        """The lagged bars (b, l, n, p) of whole sequences."""
        b, _, n, _ = batch.x.shape
        return self.lagged(torch.cat([self._no_bars(b, n), features_and_mask(batch)], dim=1))

    def _no_bars(self, b: int, n: int) -> Tensor:
        return torch.zeros(b, self.lags, n, self.width, device=next(self.buffers()).device)


def features_and_mask(batch: Batch) -> Tensor:
    """(b, l, n, f) → (b, l, n, f + 1): the features, followed by the mask as 0 or 1.

    Missing bars have zeros as features. Raises ShapeError, DtypeError, NotFiniteError.
    """
    check_batch(batch, batch.x.shape[-1])
    mask = batch.mask[..., None]
    return torch.cat([torch.where(mask, batch.x, 0.0), mask.to(batch.x.dtype)], dim=-1)
