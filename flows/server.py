"""The local Prefect server, and every other Prefect process that this program starts.

This module does not import Prefect at the top. Prefect reads its environment when it is first imported, and the address
of the server is not known before the server is started.

    ServerError   a Prefect process did not start, ended by itself, or failed; has the last lines of its log
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
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0

PREFECT_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_COLORS": "false",
    # Log lines of this program's packages are shown on the run's page in the UI. A log line outside a run is no error.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks,models,warehouse",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
# A server for a single night schedules nothing and shows nothing; without these services it starts 2 s faster.
ONE_NIGHT_ENVIRONMENT = {
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
    """A Prefect process did not start, ended by itself or failed; the message ends with the last lines of its log."""


class Child:
    """One ``prefect …`` process with its own log file. It ends when this process ends or is killed.

    ``environment`` is added to this process's environment.
    """

    def __init__(self, *arguments: str, log: Path, **environment: str) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.command = " ".join(["prefect", *arguments])
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.prefect_child", *arguments],
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops its children in the right order
            )

    def raise_if_ended(self) -> None:
        """Raises ServerError when the process has ended."""
        exit_code = self.process.poll()
        if exit_code is not None:
            last_lines = "\n  ".join(self.log.read_text(errors="replace").strip().splitlines()[-15:])
            raise ServerError(f"`{self.command}` ended with code {exit_code}; the end of {self.log}:\n  {last_lines}")

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Terminates the process, and kills it after ``timeout_s``. Does nothing when it has ended."""
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Server:
    """A Prefect API server. ``child`` is its process, or None for a server that this process did not start."""

    def __init__(self, api_url: str, child: Child | None = None) -> None:
        self.api_url = api_url
        self.child = child
        self.is_ready = child is None

    @property
    def ui_url(self) -> str:
        """Address of the server's UI."""
        return self.api_url.removesuffix("/api")

    def wait_until_ready(self) -> None:
        """Waits until the API answers. Raises ServerError if the server's process ends first, or after two minutes."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_answering(self.api_url):
            if self.child is not None:
                self.child.raise_if_ended()
            if time.monotonic() > deadline:
                raise ServerError(f"no Prefect server at {self.api_url} after {START_TIMEOUT_S:g} s")
            time.sleep(0.1)
        self.is_ready = True


def get_json(api_url: str, path: str) -> Any:
    """The parsed JSON response of the API to a GET. Raises OSError without a response, or for an HTTP error status."""
    handlers = [urllib.request.ProxyHandler({})] if LOOPBACK in api_url else []  # no proxy to this machine
    with urllib.request.build_opener(*handlers).open(f"{api_url}{path}", timeout=5) as response:
        return json.load(response)


def is_answering(api_url: str) -> bool:
    """True when a Prefect API, behind a login or not, answers at the address."""
    try:
        get_json(api_url, "/health")
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def local_server(
    home: Path, port: int | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Server]:
    """A Prefect server for use in a ``with`` block; it may not answer yet, see ``Server.wait_until_ready``.

    A running server is used if it exists: the server at PREFECT_API_URL, or `nightgraph serve` in the same home.
    Otherwise a server is started on the loopback interface and stopped after the block. Its database is in ``home``,
    its ``port`` is by default a free one, and ``environment`` is added to its environment. Raises ServerError when
    ``port`` is in use. The block sets this process's environment, so enter it before Prefect is imported.
    """
    with _environment(PREFECT_ENVIRONMENT, NO_PROXY=_without_proxy("NO_PROXY"), no_proxy=_without_proxy("no_proxy")):
        running_url = find_running_api(home)
        if running_url:
            with _environment({}, PREFECT_API_URL=running_url):
                yield Server(running_url)
            return
        if port and not is_port_free(port):
            raise ServerError(f"port {port} of {LOOPBACK} is taken by another program; choose another port")
        with _locked_home(home) as locked_home:
            port = port or free_port()
            url = f"http://{LOOPBACK}:{port}/api"
            with _environment({}, PREFECT_HOME=str(locked_home), PREFECT_API_URL=url):
                arguments = ("server", "start", "--host", LOOPBACK, "--port", str(port))
                child = Child(*arguments, log=locked_home / "server.log", **environment)
                server = Server(url, child)
                try:
                    yield server
                finally:
                    if server.is_ready:
                        flush_to_server()
                    child.stop(STOP_TIMEOUT_S if server.is_ready else 0.0)  # a starting server ignores SIGTERM


def find_running_api(home: Path) -> str | None:
    """Address of a running API, or None.

    It is PREFECT_API_URL if that server answers, else the address of `nightgraph serve` in ``home``.
    """
    configured = os.environ.get("PREFECT_API_URL")
    url_file = home / "server.url"
    if configured and is_answering(configured):
        return configured
    if configured:
        logger.warning("PREFECT_API_URL=%s does not answer; using a local Prefect server instead", configured)
    url = url_file.read_text() if url_file.exists() else ""
    return url if url and is_answering(url) else None


def free_port() -> int:
    """A TCP port of the loopback interface that is not in use at the moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def is_port_free(port: int) -> bool:
    """True when no program listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) != 0


def flush_to_server() -> None:
    """Waits until the server has received the last events and log lines of this process."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        EventsWorker.drain_all(timeout=STOP_TIMEOUT_S)
        APILogWorker.drain_all(timeout=STOP_TIMEOUT_S)


@contextlib.contextmanager
def _locked_home(home: Path) -> Iterator[Path]:
    """``home``, locked for the block; a temporary folder when another process's server holds the lock.

    Two servers cannot share one SQLite database.
    """
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
    """Sets this process's environment for the block; ``defaults`` apply only to variables that are not set."""
    before = dict(os.environ)
    os.environ.update({**defaults, **before, **values})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _without_proxy(name: str) -> str:
    """The value of the variable ``name`` (a list of hosts that need no proxy) with the loopback address added."""
    return ",".join(filter(None, (os.environ.get(name), LOOPBACK)))
