"""A local Prefect server, and every other Prefect process this program starts.

Nothing here imports Prefect at the top: Prefect reads its environment when it is first imported, and the address of the
server is known only once it has been started.

    ServerError   a Prefect process did not start, stopped by itself, or refused its work; the end of its log says why
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[1]
LOOPBACK = "127.0.0.1"
START_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 20.0

ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_COLORS": "false",
    # The rooms' own loggers go to the run's page in the UI; outside a run there is no page, and that is fine.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks,models,warehouse",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
# A server that lives for one night schedules nothing and shows nothing; without all this it starts 2 s sooner.
ONE_NIGHT = {
    f"PREFECT_SERVER_{name}": "false"
    for name in (
        "UI_ENABLED",
        "REGISTER_BLOCKS_ON_START",
        "SERVICES_SCHEDULER_ENABLED",
        "SERVICES_LATE_RUNS_ENABLED",
        "SERVICES_FOREMAN_ENABLED",
        "SERVICES_CANCELLATION_CLEANUP_ENABLED",
        "SERVICES_TRIGGERS_ENABLED",
        "SERVICES_PAUSE_EXPIRATIONS_ENABLED",
        "SERVICES_REPOSSESSOR_ENABLED",
        "SERVICES_CLEANUP_RECONCILER_ENABLED",
    )
}


class ServerError(RuntimeError):
    """A Prefect process that is not doing its work; the message ends with the last lines of its log."""


class Child:
    """One ``prefect …`` process with a log file of its own; it ends when this process does, whatever ends that."""

    def __init__(self, *arguments: str, log: Path, **environment: str) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.command, self.log = " ".join(["prefect", *arguments]), log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.prefect_child", *arguments],
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process; it stops its children in the right order
            )

    def check(self) -> None:
        """Raises ServerError when the process has ended."""
        if (code := self.process.poll()) is not None:
            last = "\n  ".join(self.log.read_text(errors="replace").strip().splitlines()[-15:])
            raise ServerError(f"`{self.command}` ended with code {code}; the end of {self.log}:\n  {last}")

    def stop(self, patience_s: float = STOP_TIMEOUT_S) -> None:
        """Ends the process: asked kindly at first, killed after ``patience_s``. Ending it twice is a no-op."""
        self.process.terminate()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Server:
    """A Prefect API: one that was running already, or a child of this process."""

    def __init__(self, api_url: str, child: Child | None = None) -> None:
        self.api_url, self.child, self.ready = api_url, child, child is None

    @property
    def ui_url(self) -> str:
        """Where its UI is."""
        return self.api_url.removesuffix("/api")

    def wait(self) -> None:
        """Returns once the API answers; ServerError if its process ends first, or after two minutes."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(self.api_url):
            if self.child is not None:
                self.child.check()
            if time.monotonic() > deadline:
                raise ServerError(f"no Prefect server at {self.api_url} after {START_TIMEOUT_S:g} s")
            time.sleep(0.1)
        self.ready = True


def ask(api_url: str, path: str) -> Any:
    """What the API answers to a GET, parsed; OSError when it does not."""
    around = [urllib.request.ProxyHandler({})] if LOOPBACK in api_url else []  # no proxy between us and ourselves
    with urllib.request.build_opener(*around).open(f"{api_url}{path}", timeout=5) as answer:
        return json.load(answer)


def answers(api_url: str) -> bool:
    """True when a Prefect API, behind a login or not, answers at the address."""
    try:
        ask(api_url, "/health")
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def local_server(
    home: Path, port: int | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Server]:
    """A server on loopback with its database in ``home``, started but perhaps not yet answering: see ``Server.wait``.

    Sets this process's environment for the block, so enter it before Prefect is imported. Uses the running server that
    PREFECT_API_URL names, or the one `nightgraph serve` keeps in the same home; else starts one on ``port`` (default: a
    free one) with ``environment`` and stops it after the block.
    """
    with _environment(ENVIRONMENT, NO_PROXY=_unproxied("NO_PROXY"), no_proxy=_unproxied("no_proxy")):
        if url := running(home):
            with _environment({}, PREFECT_API_URL=url):
                yield Server(url)
            return
        if port and not free(port):
            raise ServerError(f"port {port} of {LOOPBACK} is taken by another program; choose another port")
        with _owned(home) as owned:
            port = port or free_port()
            url = f"http://{LOOPBACK}:{port}/api"
            with _environment({}, PREFECT_HOME=str(owned), PREFECT_API_URL=url):
                start = ("server", "start", "--host", LOOPBACK, "--port", str(port))
                child = Child(*start, log=owned / "server.log", **environment)
                server = Server(url, child)
                try:
                    yield server
                finally:
                    if server.ready:
                        send_what_is_left()
                    child.stop(STOP_TIMEOUT_S if server.ready else 0.0)  # one that is still starting does not listen


def running(home: Path) -> str | None:
    """Address of the API to use instead of an own one: PREFECT_API_URL, or that of the server kept in ``home``."""
    asked, kept = os.environ.get("PREFECT_API_URL"), home / "server.url"
    if asked and answers(asked):
        return asked
    if asked:
        logger.warning("PREFECT_API_URL=%s does not answer; using a local Prefect server instead", asked)
    url = kept.read_text() if kept.exists() else ""
    return url if url and answers(url) else None


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def free(port: int) -> bool:
    """True when nobody listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) != 0


def send_what_is_left() -> None:
    """Returns once the last events and log lines of this process are with the server."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        EventsWorker.drain_all(timeout=STOP_TIMEOUT_S)
        APILogWorker.drain_all(timeout=STOP_TIMEOUT_S)


@contextlib.contextmanager
def _owned(home: Path) -> Iterator[Path]:
    """``home`` under a lock; a temporary folder while another process's server has it, for SQLite serves one."""
    home.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(home / "server.lock").acquire(timeout=0)
    except Timeout:
        temporary = Path(tempfile.mkdtemp(prefix="nightgraph-prefect-"))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    with lock:
        yield home


@contextlib.contextmanager
def _environment(defaults: dict[str, str], **values: str) -> Iterator[None]:
    """This process's environment with ``values``, and with ``defaults`` where it says nothing, for the block."""
    before = dict(os.environ)
    os.environ.update({**defaults, **before, **values})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _unproxied(name: str) -> str:
    return ",".join(filter(None, (os.environ.get(name), LOOPBACK)))
