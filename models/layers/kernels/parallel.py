"""Threads for kernels that release the interpreter's lock: as many as torch computes with."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

FAST = {"reassoc", "contract"}  # what a kernel's compiler may do: sum in another order, and multiply and add in one


def as_array(x: torch.Tensor) -> np.ndarray:
    """The values of a contiguous tensor as one row that shares its memory."""
    return x.detach().numpy().reshape(-1, copy=False)


def as_arrays(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
    """``as_array`` of each."""
    return tuple(as_array(x) for x in tensors)


def parallel_for(kernel: Callable[..., None], items: int, *arguments: Any) -> None:
    """``kernel(*arguments, first, stop)`` over items [0, items), cut into even spans, one a thread."""
    threads = min(torch.get_num_threads(), items)
    if threads <= 1:
        kernel(*arguments, 0, items)
        return
    bounds = [items * k // threads for k in range(threads + 1)]
    others = [_pool().submit(kernel, *arguments, *bounds[k : k + 2]) for k in range(1, threads)]
    kernel(*arguments, *bounds[:2])
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="kernel")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has the pool's record but none of its threads
