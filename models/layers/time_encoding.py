"""Encodings of elapsed time as a vector.

Papers: Xu et al. 2020, 2002.07962, equation 5 (functional); Kazemi et al. 2019, 1907.05321, equation 1 (Time2Vec).
Glossary: t elapsed time in the caller's unit, any shape · d numbers of the encoding · ω frequency · φ phase.

Departs from the papers: the initial frequencies are not drawn at random; their logarithms are spaced evenly between two
periods. The logarithm is learned, not the frequency: the same step of a frequency would be small for a period of a
second and large for a period of a month. Time2Vec's linear term is t in units of the longest period.
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
from models.layers.kernels.time_encoding_cpu import encode_all

SCALES_SECONDS = (1e-3, 1.0, 60.0, 3600.0, 86400.0)  # a millisecond, second, minute, hour and day


class Functional(nn.Module):
    """√(2/d) [cos ωt, sin ωt], (…) → (…, d); the dot product of two encodings depends on the time difference only.

    The initial periods lie in [shortest, longest], in the unit of t. Raises SizeError for an odd d, and unless 0 <
    shortest < longest.
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
        """The angular frequencies ω (d / 2,), in radians per unit of t."""
        return self.log_frequency.exp()

    def forward(self, t: Tensor) -> Tensor:
        """The encoding (…, d) of t (…)."""
        return _Waves.apply(t, self.frequency, self.scale)

    def reference(self, t: Tensor) -> Tensor:
        """The same values as the paper writes them, with gradients by torch's autograd."""
        return waves(t, self.frequency)


def waves(t: Tensor, frequency: Tensor) -> Tensor:
    """√(2/d) [cos ωt, sin ωt] (…, d) of t (…) and ``frequency`` (d / 2,); (…, 0) if ``frequency`` is empty."""
    angle = t[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1) * max(len(frequency), 1) ** -0.5


class _Waves(Function):
    """[cos ωt, sin ωt] · scale. The backward pass reuses both: each is ± the other's derivative. t gets no gradient."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, frequency: Tensor, scale: float) -> Tensor:
        encoding = _encode(t.contiguous(), frequency, scale)
        ctx.save_for_backward(t, encoding)
        return encoding

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        t, encoding = ctx.saved_tensors
        cos, sin = encoding.reshape(-1, encoding.shape[-1]).chunk(2, dim=-1)
        g_cos, g_sin = g.reshape(-1, g.shape[-1]).chunk(2, dim=-1)
        g_angle = torch.addcmul(g_sin * cos, g_cos, sin, value=-1.0)
        return None, t.flatten().to(g_angle.dtype) @ g_angle, None


def _encode(t: Tensor, frequency: Tensor, scale: float) -> Tensor:
    """[cos ωt, sin ωt] · scale, by the kernel for float32 on a CPU."""
    if t.device.type == "cpu" and t.dtype == frequency.dtype == torch.float32:
        out = t.new_empty(*t.shape, 2 * len(frequency))
        parallel_for(encode_all, t.numel(), as_array(t), as_array(frequency), np.float32(scale), as_array(out))
        return out
    return waves(t, frequency)


class Time2Vec(nn.Module):
    """[ω₀ t / longest + φ₀, sin(ωt + φ)], (…) → (…, d): one linear term and d − 1 sines, each with a phase.

    The initial periods lie in [shortest, longest], in the unit of t. Raises SizeError for d below 2, and unless 0 <
    shortest < longest.
    """

    def __init__(self, d: int, shortest: float = 1.0, longest: float = 1e6) -> None:
        super().__init__()
        if d < 2:
            raise SizeError(f"d is {d}; Time2Vec needs its linear term and one wave or more, 2")
        _check_periods(shortest, longest)
        self.log_frequency = nn.Parameter(_frequencies(d - 1, shortest, longest).log())
        self.phase = nn.Parameter(2 * torch.pi * torch.rand(d - 1))
        self.slope = nn.Parameter(torch.ones(1))
        self.offset = nn.Parameter(torch.zeros(1))
        self.longest = longest

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.log_frequency, self.phase, self.slope, self.offset]

    def forward(self, t: Tensor) -> Tensor:
        """The encoding (…, d) of t (…)."""
        t = t[..., None]
        return torch.cat(
            [t / self.longest * self.slope + self.offset, torch.sin(t * self.log_frequency.exp() + self.phase)], -1
        )


class MultiScale(nn.Module):
    """A Functional encoding for each scale, side by side, (…) → (…, d); each receives the time divided by its scale.

    ``scales``: in the unit of t, ascending. The initial periods of a scale lie between this scale and the next one,
    those of the last scale between it and 30 times it. Raises SizeError for an odd d, and if d has less than two
    numbers a scale.
    """

    def __init__(self, d: int, scales: Sequence[float] = SCALES_SECONDS) -> None:
        super().__init__()
        check_even(d)
        if d < 2 * len(scales):
            raise SizeError(f"d is {d}; {len(scales)} scales need two numbers each, {2 * len(scales)} or more")
        n_waves = [d // 2 // len(scales) + (i < d // 2 % len(scales)) for i in range(len(scales))]
        longest_periods = [*scales[1:], 30 * scales[-1]]
        self.scales = tuple(scales)
        self.encodings = nn.ModuleList(
            Functional(2 * n, 1.0, longest / scale)
            for n, scale, longest in zip(n_waves, scales, longest_periods, strict=True)
        )

    def forward(self, t: Tensor) -> Tensor:
        """The encoding (…, d) of t (…)."""
        return torch.cat([e(t / scale) for e, scale in zip(self.encodings, self.scales, strict=True)], dim=-1)


def make_time_encoding(kind: str, d: int, shortest: float, longest: float) -> nn.Module:
    """The encoding named ``kind``, of d numbers: "functional", "time2vec" or "multi_scale". Raises SizeError.

    Its periods start between ``shortest`` and ``longest``, in the unit of the elapsed times; the last scale of
    "multi_scale" also has longer periods.
    """
    check_choice("encoding", kind, ("functional", "time2vec", "multi_scale"))
    if kind == "multi_scale":
        _check_periods(shortest, longest)
        # at most as many scales as the default, and at most as many as d has room for, two numbers each
        n_scales = max(1, min(len(SCALES_SECONDS), d // 2))
        return MultiScale(d, torch.logspace(math.log10(shortest), math.log10(longest), n_scales + 1)[:-1].tolist())
    return (Functional if kind == "functional" else Time2Vec)(d, shortest, longest)


def _frequencies(count: int, shortest: float, longest: float) -> Tensor:
    """Angular frequencies (count,) of periods from ``shortest`` to ``longest`` with evenly spaced logarithms."""
    return 2 * torch.pi / torch.logspace(math.log10(shortest), math.log10(longest), count)


def _check_periods(shortest: float, longest: float) -> None:
    if not 0 < shortest < longest:
        raise SizeError(f"periods from {shortest} to {longest}; give two times above 0, the shorter first")
