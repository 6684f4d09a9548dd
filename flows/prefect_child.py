"""``python -m flows.prefect_child ARGUMENTS``: the Prefect command line as a process that ends with its parent.

The parent holds the other end of this process's standard input. The operating system closes it however the parent
ends, so a killed ``nightgraph`` leaves no server, no worker and no flow run behind.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import threading

import psutil

GRACE_S = 5.0


def end_with_parent() -> None:
    """Waits for the end of standard input, then ends this process and all its descendants. Never returns.

    Each process receives SIGTERM, and SIGKILL when it still runs after ``GRACE_S`` seconds.
    """
    while os.read(0, 4096):
        pass
    descendants = psutil.Process().children(recursive=True)  # a worker puts each flow run into a session of its own
    for process in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    os.kill(os.getpid(), signal.SIGTERM)
    _, still_running = psutil.wait_procs(descendants, timeout=GRACE_S)
    for process in still_running:
        process.kill()
    threading.Event().wait(GRACE_S)  # after SIGTERM this process has usually ended by now
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv[0] = "prefect"
    runpy.run_module("prefect", run_name="__main__")
