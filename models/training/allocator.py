"""The process's memory allocator, tuned for tensors that are allocated and freed often."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD = -1  # parameter numbers from malloc.h
M_TOP_PAD = -2
M_MMAP_MAX = -4


def tune_allocator() -> bool:
    """True when glibc now keeps freed memory instead of returning every large block to the kernel.

    The first access to a fresh page costs far more than the arithmetic on it. The process stays at its peak size from
    then on, so only a program that trains should call this. With another C library nothing changes; returns False.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
