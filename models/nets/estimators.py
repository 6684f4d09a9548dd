"""Estimators: networks that one call of ``fit_rows`` fits to a fold; all other networks are fitted by gradient descent.

An estimator has the interface of every network: ``forward(batch) -> Forecast``, a state, a step. Its fitted numbers are
buffers, which the model file stores like weights. A row is one bar of one asset.

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
    """Inputs and targets of one output, without the rows whose target is unknown.

    ``x`` (r, p) and ``y`` (r,): the training rows. ``x_validation`` (v, p) and ``y_validation`` (v,): the validation
    rows.
    """

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """All bars of a fold that an estimator needs: burn-in, training rows and validation rows.

    ``batch`` (1, t, n, f): the bars from the burn-in before the first training row to the last validation row.
    ``returns`` (t, n, h) and ``log_volatility`` (t, n): targets in the units of a Forecast, NaN where unknown.
    ``class_5`` (t, n) int64: target classes, UNKNOWN_CLASS where unknown.
    ``training_range``, ``validation_range``: bars [start, stop), counted from the first bar of ``batch``. The model is
    fitted to the training bars; the validation bars only select a penalty or the number of boosting rounds.
    ``feature_names``: names of the f features. ``horizons``: bars ahead, one number for each of the h horizons.
    """

    batch: Batch
    returns: Tensor
    log_volatility: Tensor
    class_5: Tensor
    training_range: BarRange
    validation_range: BarRange
    feature_names: tuple[str, ...]
    horizons: tuple[int, ...]
    seed: int

    def targets(self) -> Iterator[Tensor]:
        """Yields h + 2 targets, each (t, n): the return of every horizon, then the log-volatility, then the class."""
        yield from (*self.returns.unbind(-1), self.log_volatility, self.class_5)

    def known_samples(self, x: Tensor, target: Tensor) -> Samples:
        """The training and validation rows of ``x`` (t, n, p) and ``target`` (t, n), without the rows whose target is
        unknown."""
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
    """A network that is fitted by one call of ``fit_rows`` instead of by gradient descent.

    ``sized_by_data``: names of the buffers whose sizes depend on the training data. Loading a model file resizes them
    to the sizes in the file. ``reads_scaled``: True if the model reads scaled features, False if it reads unscaled
    ones.
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
    """An estimator whose inputs are a bar and the k = ``lags`` bars before it.

    State: one part with one tensor (b, k, n, f + 1), the last k bars; bars before the first one are zeros. Raises
    SizeError for negative ``lags``.
    """

    def __init__(self, n_features: int, lags: int) -> None:
        super().__init__()
        if lags < 0:
            raise SizeError(f"lags is {lags}; give the number of bars before the present one to read, 0 or more")
        self.lags = lags
        self.n_values_per_bar = n_features + 1  # the features and the mask

    @property
    def n_inputs(self) -> int:
        """p, the number of inputs of a forecast."""
        return (self.lags + 1) * self.n_values_per_bar

    def predict_lagged(self, x: Tensor) -> Forecast:
        """The forecast of every bar from its lagged inputs ``x`` (b, l, n, p)."""
        raise NotImplementedError

    def initial_state(self, b: int, n: int) -> State:
        """The state before the first bar: k bars of zeros."""
        return ((self._zero_bars(b, n),),)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar. Raises the errors of ``check_batch``."""
        b, _, n, _ = batch.x.shape
        forecast, _ = self.step(batch, self.initial_state(b, n))
        return forecast

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of the next bars, one or more, and the state after them. Raises the errors of
        ``check_batch``."""
        (earlier,) = flatten_state(state)
        bars = torch.cat([earlier, features_and_mask(batch)], dim=1)
        last_bars = bars[:, bars.shape[1] - self.lags :]
        return self.predict_lagged(self.stack_lags(bars)), ((last_bars,),)

    def stack_lags(self, bars: Tensor) -> Tensor:
        """(b, k + l, n, f + 1) → (b, l, n, p): the values of each of the last l bars, followed by the values of the k
        bars before it, latest first."""
        n_bars = bars.shape[1] - self.lags
        return torch.cat([bars[:, self.lags - j : self.lags - j + n_bars] for j in range(self.lags + 1)], dim=-1)

    def lagged_inputs(self, batch: Batch) -> Tensor:
        """The inputs (b, l, n, p) of every bar of a batch that starts at the first bar."""
        b, _, n, _ = batch.x.shape
        return self.stack_lags(torch.cat([self._zero_bars(b, n), features_and_mask(batch)], dim=1))

    def _zero_bars(self, b: int, n: int) -> Tensor:
        """Zeros (b, k, n, f + 1) in place of the bars before the first one."""
        return torch.zeros(b, self.lags, n, self.n_values_per_bar, device=next(self.buffers()).device)


def features_and_mask(batch: Batch) -> Tensor:
    """The features of every bar, followed by the mask as 0 or 1: (b, l, n, f + 1).

    Missing bars have zeros as features. Raises the errors of ``check_batch``: ShapeError for inconsistent shapes,
    DtypeError unless x is float32, NotFiniteError for a NaN or infinite feature of an existing bar.
    """
    check_batch(batch, batch.x.shape[-1])
    mask = batch.mask[..., None]
    return torch.cat([torch.where(mask, batch.x, 0.0), mask.to(batch.x.dtype)], dim=-1)
