"""Initial values of parameters that several layers share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.layers.errors import SizeError


def log_steps(count: int, dt_min: float, dt_max: float) -> Tensor:
    """Logarithms of step sizes (count,), log-uniform in [dt_min, dt_max]. Raises SizeError."""
    if not 0 < dt_min <= dt_max:
        raise SizeError(f"dt_min is {dt_min} and dt_max {dt_max}; give 0 < dt_min ≤ dt_max")
    return torch.rand(count) * math.log(dt_max / dt_min) + math.log(dt_min)


def inverse_softplus(x: Tensor) -> Tensor:
    """The value that softplus maps to x > 0."""
    return x + torch.log(-torch.expm1(-x))
