"""The process's memory allocator, tuned for tensors that are allocated and freed often."""

from __future__ import annotations

import ctypes
import platform

# parameter numbers of mallopt, from malloc.h
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4


def tune_allocator() -> bool:
    """Makes glibc keep freed memory instead of returning every large block to the kernel; True if it accepted.

    The first access to a new page costs far more than the arithmetic on it. From this call on the process keeps its
    peak size, so only a program that trains should call it. With another C library it does nothing and returns False.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    values = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}  # the last two in bytes
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in values.items())
