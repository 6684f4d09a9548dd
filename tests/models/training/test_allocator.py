"""With glibc the allocator keeps freed memory; with another C library nothing changes."""

import platform
import subprocess
import sys

from models.training.allocator import tune_allocator

CHECK_PROGRAM = """
import ctypes
import resource
from models.training.allocator import tune_allocator
BLOCK_BYTES = 256 << 20
assert tune_allocator()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
block = libc.malloc(BLOCK_BYTES)
ctypes.memset(block, 1, BLOCK_BYTES)
libc.free(block)
_, resident_pages, *_ = open("/proc/self/statm").read().split()
resident_bytes = int(resident_pages) * resource.getpagesize()
assert resident_bytes > BLOCK_BYTES, resident_bytes
"""


def test_freed_blocks_stay_with_the_process() -> None:
    if platform.libc_ver()[0] != "glibc":
        assert not tune_allocator()
        return
    subprocess.run([sys.executable, "-c", CHECK_PROGRAM], check=True)
