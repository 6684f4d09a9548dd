"""Models fitted in one go to the rows of a fold, where the other networks are trained by gradient.

To everything around them they are networks: ``forward(batch) -> Forecast``, a state, a step; what was fitted lies in
buffers and goes into the model file as weights do.

Glossary: b chunks · l bars · n assets · f features · h horizons · t bars of a fold · k lagged bars · p = (k + 1)(f + 1)
numbers that a forecast is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.features.labels import UNKNOWN
from models.layers.errors import SizeError
from models.nets.forecast import Batch, Forecast, check_batch
from models.nets.sequence import State

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """All that a fold lets a model see.

    ``batch`` (1, t, n, f) holds the bars from the burn-in before the first training row to the last one. Targets in a
    Forecast's units: ``returns`` (t, n, h) and ``log_volatility`` (t, n) are NaN, ``class_5`` (t, n) UNKNOWN, where
    unknown. The bars [start, stop) of ``learned`` are fitted to, those of ``validated`` only decide when to stop and
    how much to shrink. ``columns`` names the features, ``horizons`` are bars ahead.
    """

    batch: Batch
    returns: Tensor
    log_volatility: Tensor
    class_5: Tensor
    learned: Span
    validated: Span
    columns: tuple[str, ...]
    horizons: tuple[int, ...]
    seed: int

    def targets(self) -> Iterator[Tensor]:
        """Each target by itself (t, n): the return of every horizon, log-volatility, class."""
        yield from (*self.returns.unbind(-1), self.log_volatility, self.class_5)

    def known(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (t, n, p) and ``target`` where it is known: (r, p), (r,) of the learned and (v, p), (v,) of the validated
        bars."""
        there = target != UNKNOWN if target.dtype == torch.int64 else ~torch.isnan(target)
        learned, validated = slice(*self.learned), slice(*self.validated)
        return (
            x[learned][there[learned]],
            target[learned][there[learned]],
            x[validated][there[validated]],
            target[validated][there[validated]],
        )


class Estimator(nn.Module):
    """A network with ``fit_rows``. The sizes of the buffers named in ``sized_by_data`` follow from what it was fitted
    to, so a model file brings its own. Unless it is ``scaled`` it is given the features as they are."""

    scaled = True
    sized_by_data: tuple[str, ...] = ()

    def fit_rows(self, rows: TrainingRows) -> None:
        """Fits the model; the same rows and seed give the same numbers to the bit."""
        raise NotImplementedError

    @property
    def fitted_numbers(self) -> int:
        """How many numbers the fit decided."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *more: Any) -> None:
        for name in self.sized_by_data:
            stored, buffer = state_dict.get(prefix + name), self._buffers[name]
            if stored is not None and buffer is not None and stored.dim() == buffer.dim():
                self._buffers[name] = buffer.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *more)


class LaggedEstimator(Estimator):
    """A model of the bar and the k bars before it: its state is those bars, zeros before the first one."""

    def __init__(self, n_features: int, lags: int) -> None:
        super().__init__()
        if lags < 0:
            raise SizeError(f"lags is {lags}; give the number of bars before the present one to read, 0 or more")
        self.lags, self.width = lags, n_features + 1

    @property
    def n_inputs(self) -> int:
        """p, the numbers that a forecast is made of."""
        return (self.lags + 1) * self.width

    def read(self, x: Tensor) -> Forecast:
        """The forecast of lagged bars x (b, l, n, p)."""
        raise NotImplementedError

    def initial_state(self, b: int, n: int) -> State:
        """No bars (b, k, n, f + 1)."""
        return ((torch.zeros(b, self.lags, n, self.width, device=next(self.buffers()).device),),)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar."""
        b, _, n, _ = batch.x.shape
        return self.step(batch, self.initial_state(b, n))[0]

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of the next bars, one or more, and the state after them."""
        seen = torch.cat([state[0][0], embedded(batch)], dim=1)
        return self.read(self.lagged(seen)), ((seen[:, seen.shape[1] - self.lags :],),)

    def lagged(self, seen: Tensor) -> Tensor:
        """(b, k + l, n, f + 1) → (b, l, n, p): every bar with those before it beside it, the latest first."""
        bars = seen.shape[1] - self.lags
        return torch.cat([seen[:, self.lags - j : self.lags - j + bars] for j in range(self.lags + 1)], dim=-1)

    def inputs(self, batch: Batch) -> Tensor:
        """The lagged bars (b, l, n, p) of whole sequences."""
        b, _, n, _ = batch.x.shape
        return self.lagged(torch.cat([self.initial_state(b, n)[0][0], embedded(batch)], dim=1))


def embedded(batch: Batch) -> Tensor:
    """(b, l, n, f) → (b, l, n, f + 1): the features where there is a bar, zeros elsewhere, and the mask beside them.

    Raises ShapeError, DtypeError, NotFiniteError.
    """
    check_batch(batch, batch.x.shape[-1])
    mask = batch.mask[..., None]
    return torch.cat([torch.where(mask, batch.x, 0.0), mask.to(batch.x.dtype)], dim=-1)
