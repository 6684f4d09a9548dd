"""``python -m flows.child ARGUMENTS``: the Prefect command line, ended as soon as the process that started it is gone.

The parent keeps the other end of standard input. The operating system closes it however the parent dies, so a killed
``nightgraph`` leaves no server and no worker behind.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE_S = 10.0


def end_with_parent() -> None:
    """Returns never: waits for the end of standard input, asks this process to stop, then stops it."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv[0] = "prefect"
    runpy.run_module("prefect", run_name="__main__")
