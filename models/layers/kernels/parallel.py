"""Runs kernels that release the interpreter's lock in several threads, as many as torch uses."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

FAST = {"reassoc", "contract"}  # fastmath flags: sums may be reordered, a product and a sum may become one fma


def as_array(x: torch.Tensor) -> np.ndarray:
    """The values of a contiguous tensor as a flat array that shares its memory."""
    return x.detach().numpy().reshape(-1, copy=False)


def as_arrays(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
    """``as_array`` of each tensor."""
    return tuple(as_array(x) for x in tensors)


def parallel_for(kernel: Callable[..., None], items: int, *arguments: Any) -> None:
    """Calls ``kernel(*arguments, first, stop)`` for items [0, items), split into even spans, one per thread."""
    threads = min(torch.get_num_threads(), items)
    if threads <= 1:
        kernel(*arguments, 0, items)
        return
    bounds = [items * k // threads for k in range(threads + 1)]
    futures = [_pool().submit(kernel, *arguments, *bounds[k : k + 2]) for k in range(1, threads)]
    kernel(*arguments, *bounds[:2])
    for future in futures:
        future.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="kernel")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child inherits the pool object but not its threads
