"""How much time has passed, as a vector.

Papers: Xu et al. 2020, 2002.07962, equation 5 (functional); Kazemi et al. 2019, 1907.05321, equation 1 (Time2Vec).
Glossary: t elapsed time in the caller's unit, any shape · d numbers of the encoding · ω frequency · φ phase.
Departs from the papers: the frequencies start spread evenly in their logarithm between two periods, not at random, and
it is their logarithm that is learned: a step that moves a wave of a second a little would throw one of a month far off.
Time2Vec's linear term counts in the longest period.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.layers.checks import check_choice, check_even
from models.layers.errors import SizeError
from models.layers.kernels.parallel import as_array, parallel_for
from models.layers.kernels.time_encoding_cpu import fill

MILLISECOND_TO_DAY = (1e-3, 1.0, 60.0, 3600.0, 86400.0)  # seconds


class Functional(nn.Module):
    """√(2/d) [cos ωt, sin ωt], (…) → (…, d): its product with itself at another time depends on the difference only.

    ``shortest`` and ``longest`` period that the frequencies start between. Raises SizeError for an odd d.
    """

    def __init__(self, d: int, shortest: float = 1.0, longest: float = 1e6) -> None:
        super().__init__()
        check_even(d)
        _check_periods(shortest, longest)
        self.log_frequency = nn.Parameter(_frequencies(d // 2, shortest, longest).log())
        self.scale = math.sqrt(2 / d)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.log_frequency]

    @property
    def frequency(self) -> Tensor:
        """ω (d / 2,)."""
        return self.log_frequency.exp()

    def forward(self, t: Tensor) -> Tensor:
        """The encoding of t."""
        return _Waves.apply(t, self.frequency, self.scale)

    def reference(self, t: Tensor) -> Tensor:
        """The same as the paper writes it, with the gradients that torch finds."""
        return waves(t, self.frequency)


def waves(t: Tensor, frequency: Tensor) -> Tensor:
    """√(2/d) [cos ωt, sin ωt] (…, d) of t (…) and d / 2 frequencies; nothing where there are none."""
    angle = t[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1) * max(len(frequency), 1) ** -0.5


class _Waves(Function):
    """[cos ωt, sin ωt] scaled; each is the other's slope, so the backward pass works out neither again. t has no
    gradient."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, frequency: Tensor, scale: float) -> Tensor:
        told = _told(t.contiguous(), frequency, scale)
        ctx.save_for_backward(t, told)
        return told

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        t, told = ctx.saved_tensors
        (cos, sin), (of_cos, of_sin) = (x.reshape(-1, x.shape[-1]).chunk(2, dim=-1) for x in (told, g))
        slope = torch.addcmul(of_sin * cos, of_cos, sin, value=-1.0)
        return None, t.flatten().to(slope.dtype) @ slope, None


def _told(t: Tensor, frequency: Tensor, scale: float) -> Tensor:
    if t.device.type == "cpu" and t.dtype == frequency.dtype == torch.float32:
        out = t.new_empty(*t.shape, 2 * len(frequency))
        parallel_for(fill, t.numel(), as_array(t), as_array(frequency), np.float32(scale), as_array(out))
        return out
    return waves(t, frequency)


class Time2Vec(nn.Module):
    """[ω₀t + φ₀, sin(ωt + φ)], (…) → (…, d): one linear term, d − 1 periodic ones with a phase each."""

    def __init__(self, d: int, shortest: float = 1.0, longest: float = 1e6) -> None:
        super().__init__()
        if d < 2:
            raise SizeError(f"d is {d}; Time2Vec needs its linear term and one wave or more, 2")
        _check_periods(shortest, longest)
        self.log_frequency = nn.Parameter(_frequencies(d - 1, shortest, longest).log())
        self.phase = nn.Parameter(2 * torch.pi * torch.rand(d - 1))
        self.slope, self.offset = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.longest = longest

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.log_frequency, self.phase, self.slope, self.offset]

    def forward(self, t: Tensor) -> Tensor:
        """The encoding of t."""
        t = t[..., None]
        return torch.cat(
            [t / self.longest * self.slope + self.offset, torch.sin(t * self.log_frequency.exp() + self.phase)], -1
        )


class MultiScale(nn.Module):
    """A Functional encoding at every scale side by side, (…) → (…, d), each seeing the time in its own unit.

    ``scales`` in the unit of t, ascending; a scale's periods start between it and the next. Raises SizeError when d has
    no two numbers for each.
    """

    def __init__(self, d: int, scales: Sequence[float] = MILLISECOND_TO_DAY) -> None:
        super().__init__()
        check_even(d)
        if d < 2 * len(scales):
            raise SizeError(f"d is {d}; {len(scales)} scales need two numbers each, {2 * len(scales)} or more")
        pairs = [d // 2 // len(scales) + (i < d // 2 % len(scales)) for i in range(len(scales))]
        ends = [*scales[1:], 30 * scales[-1]]
        self.scales = tuple(scales)
        self.encodings = nn.ModuleList(
            Functional(2 * k, 1.0, end / scale) for k, scale, end in zip(pairs, scales, ends, strict=True)
        )

    def forward(self, t: Tensor) -> Tensor:
        """The encoding of t."""
        return torch.cat([e(t / scale) for e, scale in zip(self.encodings, self.scales, strict=True)], dim=-1)


def time_encoding(kind: str, d: int, shortest: float, longest: float) -> nn.Module:
    """The encoding of that name for elapsed times between ``shortest`` and ``longest``. Raises SizeError."""
    check_choice("encoding", kind, ("functional", "time2vec", "multi_scale"))
    if kind == "multi_scale":
        _check_periods(shortest, longest)
        # as many scales as have room, from the shortest to the longest
        count = max(1, min(len(MILLISECOND_TO_DAY), d // 2))
        return MultiScale(d, torch.logspace(math.log10(shortest), math.log10(longest), count + 1)[:-1].tolist())
    return (Functional if kind == "functional" else Time2Vec)(d, shortest, longest)


def _frequencies(count: int, shortest: float, longest: float) -> Tensor:
    """Angular frequencies of periods spread evenly in their logarithm."""
    return 2 * torch.pi / torch.logspace(math.log10(shortest), math.log10(longest), count)


def _check_periods(shortest: float, longest: float) -> None:
    if not 0 < shortest < longest:
        raise SizeError(f"periods from {shortest} to {longest}; give two times above 0, the shorter first")
