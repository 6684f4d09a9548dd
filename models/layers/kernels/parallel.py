"""Runs compiled kernels in parallel threads, as many as torch uses. A kernel must release the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

# numba may reorder the terms of a sum, and may contract a product and a sum into one fused multiply-add
FASTMATH_FLAGS = {"reassoc", "contract"}


def as_array(x: torch.Tensor) -> np.ndarray:
    """The values of a contiguous CPU tensor as a one-dimensional array that shares its memory."""
    return x.detach().numpy().reshape(-1, copy=False)


def as_arrays(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
    """``as_array`` of each tensor."""
    return tuple(as_array(x) for x in tensors)


def parallel_for(kernel: Callable[..., None], n_items: int, *arguments: Any) -> None:
    """Calls ``kernel(*arguments, first, stop)`` once per thread, with ranges [first, stop) that split [0, n_items)
    evenly.

    Returns when all calls have returned. Raises the exception of a call that failed.
    """
    n_threads = min(torch.get_num_threads(), n_items)
    if n_threads <= 1:
        kernel(*arguments, 0, n_items)
        return
    bounds = [n_items * k // n_threads for k in range(n_threads + 1)]
    futures = [_pool().submit(kernel, *arguments, bounds[k], bounds[k + 1]) for k in range(1, n_threads)]
    kernel(*arguments, bounds[0], bounds[1])
    for future in futures:
        future.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="kernel")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child inherits the pool object but not its threads
