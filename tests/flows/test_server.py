"""The local Prefect server: it answers inside its ``with`` block and is stopped after it, whatever ends the block.

The fixture ``api`` starts an HTTP server with given responses, see conftest.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from filelock import FileLock

from flows import server
from flows.server import (
    ONE_NIGHT_ENVIRONMENT,
    Child,
    ServerError,
    find_running_api,
    free_port,
    get_json,
    is_answering,
    local_server,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect home, whose database is migrated once for all tests of this file."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(autouse=True)
def no_api_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts without PREFECT_API_URL."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def stops_answering(api_url: str, within_s: float) -> bool:
    """True when the API stops answering within so many seconds."""
    deadline = time.monotonic() + within_s
    while is_answering(api_url) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not is_answering(api_url)


def test_the_server_answers_in_the_block_and_is_stopped_after_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment_before = dict(os.environ)
    with local_server(home, environment=ONE_NIGHT_ENVIRONMENT) as started:
        started.wait_until_ready()
        assert get_json(started.api_url, "/health") is True
        assert os.environ["PREFECT_API_URL"] == started.api_url
        assert os.environ["PREFECT_HOME"] == str(home)
        assert "127.0.0.1" in os.environ["NO_PROXY"]
        with server._locked_home(home) as second_home:  # of a second night at the same time
            assert second_home != home
        assert not second_home.exists()
    assert not is_answering(started.api_url)
    assert dict(os.environ) == environment_before
    assert "Traceback" not in (home / "server.log").read_text()


def test_the_server_stops_when_its_parent_is_killed(home: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from flows.server import ONE_NIGHT_ENVIRONMENT, local_server
with local_server(Path(sys.argv[1]), environment=ONE_NIGHT_ENVIRONMENT) as started:
    started.wait_until_ready()
    print(started.api_url, flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", program, str(home)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        api_url = parent.stdout.readline().strip()
        assert is_answering(api_url)
        parent.send_signal(signal.SIGKILL)
    assert stops_answering(api_url, within_s=15)


def test_a_running_server_is_used_and_not_stopped(
    home: Path, monkeypatch: pytest.MonkeyPatch, api: Callable[..., str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", api({"/health": True}))
    with local_server(home) as used:
        used.wait_until_ready()
        assert used.child is None
    assert is_answering(used.api_url)


def test_the_server_of_nightgraph_serve_in_the_same_home_is_used(tmp_path: Path, api: Callable[..., str]) -> None:
    (tmp_path / "server.url").write_text(api({"/health": True}))
    assert find_running_api(tmp_path) == (tmp_path / "server.url").read_text()


def test_a_stale_address_and_a_dead_api_url_are_ignored_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dead_url = f"http://127.0.0.1:{free_port()}/api"
    (tmp_path / "server.url").write_text(dead_url)
    monkeypatch.setenv("PREFECT_API_URL", dead_url)
    assert find_running_api(tmp_path) is None
    assert f"PREFECT_API_URL={dead_url} does not answer" in caplog.text


def test_an_api_behind_a_login_counts_as_answering(api: Callable[..., str]) -> None:
    assert is_answering(api({}, status=401))
    assert not is_answering(api({}, status=500))


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path, api: Callable[..., str]) -> None:
    port = urlsplit(api({})).port
    assert port is not None
    with pytest.raises(ServerError, match=f"port {port} of 127.0.0.1 is taken"), local_server(tmp_path, port):
        pass
    assert not (tmp_path / "server.log").exists()


def test_a_process_that_ends_by_itself_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    child = Child("server", "start", "--port", "no_port", log=tmp_path / "server.log")
    child.process.wait(60)
    with pytest.raises(ServerError, match=r"(?s)`prefect server start --port no_port` ended with code \d.*no_port"):
        child.raise_if_ended()


def test_a_home_in_use_is_replaced_by_a_temporary_one(tmp_path: Path) -> None:
    with FileLock(tmp_path / "server.lock"), server._locked_home(tmp_path) as used_home:
        assert used_home != tmp_path
    with server._locked_home(tmp_path) as used_home:
        assert used_home == tmp_path
