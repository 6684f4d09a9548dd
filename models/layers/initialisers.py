"""Initial values of parameters that several layers share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.layers.errors import SizeError


def draw_log_steps(count: int, dt_min: float, dt_max: float) -> Tensor:
    """Natural logarithms of step sizes (count,), drawn log-uniformly from [dt_min, dt_max]. Raises SizeError."""
    if not 0 < dt_min <= dt_max:
        raise SizeError(f"dt_min is {dt_min} and dt_max {dt_max}; give 0 < dt_min ≤ dt_max")
    return torch.rand(count) * math.log(dt_max / dt_min) + math.log(dt_min)


def inverse_softplus(x: Tensor) -> Tensor:
    """The value v with softplus(v) = x, element by element, for x > 0."""
    return x + torch.log(-torch.expm1(-x))
