"""The process's memory allocator, set up for tensors that come and go."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def tune_allocator() -> bool:
    """True when glibc now keeps freed memory instead of giving every large block back to the kernel.

    Touching a fresh page costs far more than the arithmetic on it. The process stays at its peak size from then on, so
    only a program that trains should ask for it. False, and no change, where the C library is another.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
