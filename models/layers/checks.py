"""Input checks that all layers share; each error names the shapes and what to do.

Glossary: b sequences · l bars · d channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from models.layers.errors import DtypeError, NotFiniteError, ShapeError, SizeError, StateError


def check_sequence(x: Tensor, d_model: int, gaps: Tensor | None = None, weights: Tensor | None = None) -> None:
    """Raises unless x is (b, l, d_model), not empty and floating, and gaps are (b, l), finite and 0 or more.

    With ``weights``, x must also have their dtype, unless autocast converts it. Raises ShapeError, DtypeError,
    NotFiniteError.
    """
    if x.dim() != 3 or x.shape[2] != d_model:
        raise ShapeError(f"x is {tuple(x.shape)}; give (sequences, bars, {d_model})")
    if not x.shape[0] or not x.shape[1]:
        raise ShapeError(f"x is {tuple(x.shape)}: no sequences, or none with bars; give one of each or more")
    _check_floating(x, weights)
    if gaps is None:
        return
    if gaps.shape != x.shape[:2]:
        raise ShapeError(f"gaps are {tuple(gaps.shape)}; give one per bar of x, {tuple(x.shape[:2])}")
    if not torch.compiler.is_exporting() and not ((gaps >= 0) & torch.isfinite(gaps)).all():
        raise NotFiniteError("a gap is negative or no finite number; sort the bars by time, and drop repeated ones")


def check_bar(x: Tensor, d_model: int, weights: Tensor | None = None) -> None:
    """Raises unless x is (b, d_model) and floating; ``weights`` as in check_sequence. ShapeError, DtypeError."""
    if x.dim() != 2 or x.shape[1] != d_model:
        raise ShapeError(
            f"one bar x is {tuple(x.shape)}; give (sequences, {d_model}), or call forward for whole sequences"
        )
    _check_floating(x, weights)


def check_gap(gap: Tensor, x: Tensor) -> None:
    """Raises ShapeError unless the gap of one bar is (b,)."""
    if gap.shape != x.shape[:1]:
        raise ShapeError(f"gap is {tuple(gap.shape)}; give one per sequence of x, ({len(x)},)")


def check_weights(weights: Tensor) -> None:
    """Raises DtypeError for weights in half precision, in which a recurrence over many bars loses its memory."""
    if weights.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"the layer's weights are {weights.dtype}; keep them in float32 and use torch.autocast")


def check_state(state: Sequence[Tensor] | None, expected: Sequence[Sequence[int]]) -> None:
    """Raises StateError unless the state's tensors have the ``expected`` shapes and are float32 or float64."""
    shapes = None if state is None else [tuple(part.shape) for part in state]
    if state is None or shapes != [tuple(shape) for shape in expected]:
        raise StateError(
            f"the state holds {shapes}, this layer keeps {[tuple(s) for s in expected]}; use the one that "
            "initial_state, forward or step of the same layer gave for the same sequences"
        )
    if not all(part.dtype in (torch.float32, torch.float64) for part in state):
        raise StateError(f"the state is {', '.join(str(part.dtype) for part in state)}; states are float32 or float64")


def check_even(d_state: int) -> None:
    """Raises SizeError for a state size that does not split into conjugate pairs."""
    if d_state < 2 or d_state % 2:
        raise SizeError(f"d_state is {d_state}; give an even number: its states come in conjugate pairs")


def check_positive(**sizes: int) -> None:
    """Raises SizeError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise SizeError(f"{name} is {size}; give 1 or more")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises SizeError for a value that is not one of ``choices``."""
    if value not in choices:
        raise SizeError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _check_floating(x: Tensor, weights: Tensor | None) -> None:
    if not torch.is_floating_point(x):
        raise DtypeError(f"x is {x.dtype}; give float32 (x.float())")
    if weights is not None and x.dtype != weights.dtype and not torch.is_autocast_enabled(x.device.type):
        raise DtypeError(
            f"x is {x.dtype}, the layer's weights are {weights.dtype}; make them one, x.to({weights.dtype})"
        )
