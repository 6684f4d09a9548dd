"""The allocator's settings take effect where the C library is glibc."""

import platform
import subprocess
import sys

from models.training.allocator import tune_allocator

PROBE = """
import ctypes
from models.training.allocator import tune_allocator
assert tune_allocator()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
block = libc.malloc(256 << 20)
ctypes.memset(block, 1, 256 << 20)
libc.free(block)
resident = int(open("/proc/self/statm").read().split()[1]) * 4096
assert resident > 256 << 20, resident
"""


def test_freed_blocks_stay_with_the_process() -> None:
    if platform.libc_ver()[0] != "glibc":
        assert not tune_allocator()
        return
    subprocess.run([sys.executable, "-c", PROBE], check=True)
