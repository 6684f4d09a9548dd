"""Models fitted in one call to the rows of a fold, where the other networks are trained by gradient.

They have the interface of networks: ``forward(batch) -> Forecast``, a state, a step. The fitted numbers are buffers,
which the model file stores like weights.

Glossary: b chunks · l bars · n assets · f features · h horizons · t bars of a fold · k lagged bars · p = (k + 1)(f + 1)
inputs of a forecast · r learned rows · v validated rows.
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
    """The training data of a fold.

    ``batch`` (1, t, n, f) holds the bars from the burn-in before the first training row to the last one. Targets in the
    units of a Forecast: unknown ``returns`` (t, n, h) and ``log_volatility`` (t, n) are NaN, unknown ``class_5`` (t, n)
    are UNKNOWN. A model is fitted to the bars [start, stop) of ``learned``; those of ``validated`` only decide when to
    stop and how strong the penalty is. ``columns`` names the features, ``horizons`` are bars ahead.
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
        """The targets one by one, each (t, n): the return of every horizon, log-volatility, class."""
        yield from (*self.returns.unbind(-1), self.log_volatility, self.class_5)

    def with_targets(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows of x (t, n, p) whose ``target`` (t, n) is known, with their targets: (r, p), (r,) of the learned
        bars and (v, p), (v,) of the validated bars."""
        is_known = target != UNKNOWN if target.dtype == torch.int64 else ~torch.isnan(target)
        learned = slice(*self.learned)
        validated = slice(*self.validated)
        return (
            x[learned][is_known[learned]],
            target[learned][is_known[learned]],
            x[validated][is_known[validated]],
            target[validated][is_known[validated]],
        )


class Estimator(nn.Module):
    """A network with ``fit_rows``.

    ``sized_by_data`` names the buffers whose sizes depend on the training data; loading a model file takes the sizes
    from the file. ``scaled``: it reads scaled features; otherwise it reads features without scaling.
    """

    scaled = True
    sized_by_data: tuple[str, ...] = ()

    def fit_rows(self, rows: TrainingRows) -> None:
        """Fits the model; the same rows and seed give the same numbers to the bit."""
        raise NotImplementedError

    @property
    def fitted_numbers(self) -> int:
        """The count of numbers that the fit determined."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *more: Any) -> None:
        for name in self.sized_by_data:
            stored = state_dict.get(prefix + name)
            buffer = self._buffers[name]
            if stored is not None and buffer is not None and stored.dim() == buffer.dim():
                self._buffers[name] = buffer.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *more)


class LaggedEstimator(Estimator):
    """A model that reads the bar and the k bars before it. Its state holds those k bars, zeros before the first one."""

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

    def read(self, x: Tensor) -> Forecast:
        """The forecast of lagged bars x (b, l, n, p)."""
        raise NotImplementedError

    def initial_state(self, b: int, n: int) -> State:
        """Zeros in place of earlier bars (b, k, n, f + 1)."""
        return ((torch.zeros(b, self.lags, n, self.width, device=next(self.buffers()).device),),)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar."""
        b, _, n, _ = batch.x.shape
        return self.step(batch, self.initial_state(b, n))[0]

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of the next bars, one or more, and the state after them."""
        bars = torch.cat([state[0][0], embedded(batch)], dim=1)
        return self.read(self.lagged(bars)), ((bars[:, bars.shape[1] - self.lags :],),)

    def lagged(self, bars: Tensor) -> Tensor:
        """(b, k + l, n, f + 1) → (b, l, n, p): every bar joined with the k bars before it, the latest first."""
        length = bars.shape[1] - self.lags
        return torch.cat([bars[:, self.lags - j : self.lags - j + length] for j in range(self.lags + 1)], dim=-1)

    def inputs(self, batch: Batch) -> Tensor:
        """The lagged bars (b, l, n, p) of whole sequences."""
        b, _, n, _ = batch.x.shape
        return self.lagged(torch.cat([self.initial_state(b, n)[0][0], embedded(batch)], dim=1))


def embedded(batch: Batch) -> Tensor:
    """(b, l, n, f) → (b, l, n, f + 1): the features where there is a bar, zeros elsewhere, followed by the mask.

    Raises ShapeError, DtypeError, NotFiniteError.
    """
    check_batch(batch, batch.x.shape[-1])
    mask = batch.mask[..., None]
    return torch.cat([torch.where(mask, batch.x, 0.0), mask.to(batch.x.dtype)], dim=-1)
