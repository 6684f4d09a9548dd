"""Types of the fixtures with which the end-to-end tests run the command line and read a warehouse."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pyarrow as pa

StartProcess = Callable[..., subprocess.Popen[str]]  # (*arguments, **environment) → the running process
RunCommand = Callable[..., tuple[int, str]]  # (*arguments) → exit code and output
ReadContents = Callable[..., dict[str, pa.Table]]  # (warehouse file) → all rows by table
