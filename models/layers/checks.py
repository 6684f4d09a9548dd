"""Input checks that all layers share. Each error message contains the actual and the required shape or type.

Glossary: b sequences · l bars · d channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from models.layers.errors import DtypeError, NotFiniteError, ShapeError, SizeError, StateError


def check_sequence(x: Tensor, d_model: int, gaps: Tensor | None = None, weights: Tensor | None = None) -> None:
    """Checks whole sequences ``x`` and the ``gaps`` between their bars.

    Raises ShapeError unless x is (b, l, d_model) with b, l ≥ 1 and gaps are (b, l). Raises DtypeError unless x is
    floating and, with ``weights``, has their dtype; autocast lifts the second condition. Raises NotFiniteError if a gap
    is negative, NaN or infinite; an exported graph does not contain this check. The values of x are not checked.
    """
    if x.dim() != 3 or x.shape[2] != d_model:
        raise ShapeError(f"x is {tuple(x.shape)}; give (sequences, bars, {d_model})")
    if not x.shape[0] or not x.shape[1]:
        raise ShapeError(f"x is {tuple(x.shape)}: no sequences, or none with bars; give at least one of each")
    _check_floating(x, weights)
    if gaps is None:
        return
    if gaps.shape != x.shape[:2]:
        raise ShapeError(f"gaps are {tuple(gaps.shape)}; give one per bar of x, {tuple(x.shape[:2])}")
    if not torch.compiler.is_exporting() and not ((gaps >= 0) & torch.isfinite(gaps)).all():
        raise NotFiniteError("a gap is negative or not finite; sort the bars by time, and drop repeated bars")


def check_bar(x: Tensor, d_model: int, weights: Tensor | None = None) -> None:
    """Raises ShapeError unless one bar x is (b, d_model), and DtypeError as ``check_sequence``."""
    if x.dim() != 2 or x.shape[1] != d_model:
        raise ShapeError(
            f"one bar x is {tuple(x.shape)}; give (sequences, {d_model}), or call forward for whole sequences"
        )
    _check_floating(x, weights)


def check_gap(gap: Tensor, x: Tensor) -> None:
    """Raises ShapeError unless ``gap`` is (b,), for one bar x (b, d)."""
    if gap.shape != x.shape[:1]:
        raise ShapeError(f"gap is {tuple(gap.shape)}; give one per sequence of x, ({len(x)},)")


def check_weights(weights: Tensor) -> None:
    """Raises DtypeError unless the weights are float32 or float64.

    In half precision, a state loses small contributions to rounding over many bars.
    """
    if weights.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"the layer's weights are {weights.dtype}; keep them in float32 and use torch.autocast")


def check_state(state: Sequence[Tensor] | None, expected: Sequence[Sequence[int]]) -> None:
    """Raises StateError unless the state's tensors have the ``expected`` shapes and are float32 or float64."""
    shapes = None if state is None else [tuple(tensor.shape) for tensor in state]
    if state is None or shapes != [tuple(shape) for shape in expected]:
        raise StateError(
            f"the state has shapes {shapes}, this layer needs {[tuple(s) for s in expected]}; use a state that "
            "initial_state, forward or step of the same layer returned for the same sequences"
        )
    if not all(tensor.dtype in (torch.float32, torch.float64) for tensor in state):
        raise StateError(
            f"the state is {', '.join(str(tensor.dtype) for tensor in state)}; states are float32 or float64"
        )


def check_even(d_state: int) -> None:
    """Raises SizeError unless ``d_state`` is even and at least 2: its states come in conjugate pairs."""
    if d_state < 2 or d_state % 2:
        raise SizeError(f"d_state is {d_state}; give an even number: its states come in conjugate pairs")


def check_positive(**sizes: int) -> None:
    """Raises SizeError for a size below 1. Each keyword is the name of a size in the message."""
    for name, size in sizes.items():
        if size < 1:
            raise SizeError(f"{name} is {size}; give 1 or more")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises SizeError unless ``value``, of the option ``name``, is one of ``choices``."""
    if value not in choices:
        raise SizeError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _check_floating(x: Tensor, weights: Tensor | None) -> None:
    if not torch.is_floating_point(x):
        raise DtypeError(f"x is {x.dtype}; give float32 (x.float())")
    if weights is not None and x.dtype != weights.dtype and not torch.is_autocast_enabled(x.device.type):
        raise DtypeError(
            f"x is {x.dtype}, the layer's weights are {weights.dtype}; convert x with x.to({weights.dtype})"
        )
