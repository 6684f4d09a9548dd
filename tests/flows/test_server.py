"""The local server: it answers in the block and is stopped after it, whatever ends the block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from flows import server
from flows.server import ONE_NIGHT, Child, ServerError, find_running, free_port, get_json, is_answering, local_server

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect home whose database is migrated once for all tests here."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(autouse=True)
def no_api_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def stops_answering(api_url: str, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while is_answering(api_url) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not is_answering(api_url)


def test_the_server_answers_in_the_block_and_is_stopped_after_it(home, monkeypatch):
    before = dict(os.environ)
    with local_server(home, environment=ONE_NIGHT) as started:
        started.wait()
        assert get_json(started.api_url, "/health") is True
        assert os.environ["PREFECT_API_URL"] == started.api_url
        assert os.environ["PREFECT_HOME"] == str(home)
        assert "127.0.0.1" in os.environ["NO_PROXY"]
        with server._locked_home(home) as other:  # a second night at the same time
            assert other != home
        assert not other.exists()
    assert not is_answering(started.api_url)
    assert dict(os.environ) == before
    assert "Traceback" not in (home / "server.log").read_text()


def test_the_server_stops_when_its_parent_is_killed(home):
    program = """
import sys, time
from pathlib import Path
from flows.server import ONE_NIGHT, local_server
with local_server(Path(sys.argv[1]), environment=ONE_NIGHT) as started:
    started.wait()
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


def test_a_running_server_is_used_and_left_running(home, monkeypatch, api):
    monkeypatch.setenv("PREFECT_API_URL", api({"/health": True}))
    with local_server(home) as used:
        used.wait()
        assert used.child is None
    assert is_answering(used.api_url)


def test_the_server_of_nightgraph_serve_in_the_same_home_is_used(tmp_path, api):
    (tmp_path / "server.url").write_text(api({"/health": True}))
    assert find_running(tmp_path) == (tmp_path / "server.url").read_text()


def test_a_stale_address_and_a_dead_api_url_are_ignored_with_a_warning(tmp_path, monkeypatch, caplog):
    dead = f"http://127.0.0.1:{free_port()}/api"
    (tmp_path / "server.url").write_text(dead)
    monkeypatch.setenv("PREFECT_API_URL", dead)
    assert find_running(tmp_path) is None
    assert f"PREFECT_API_URL={dead} does not answer" in caplog.text


def test_an_api_behind_a_login_counts_as_answering(api):
    assert is_answering(api({}, status=401))
    assert not is_answering(api({}, status=500))


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path, api):
    port = int(api({}).split(":")[2].split("/")[0])
    with pytest.raises(ServerError, match=f"port {port} of 127.0.0.1 is taken"), local_server(tmp_path, port):
        pass
    assert not (tmp_path / "server.log").exists()


def test_a_process_that_ends_by_itself_is_reported_with_the_end_of_its_log(tmp_path):
    child = Child("server", "start", "--port", "no_port", log=tmp_path / "server.log")
    child.process.wait(60)
    with pytest.raises(ServerError, match=r"(?s)`prefect server start --port no_port` ended with code \d.*no_port"):
        child.check()


def test_a_home_in_use_is_left_alone(tmp_path):
    with FileLock(tmp_path / "server.lock"), server._locked_home(tmp_path) as other:
        assert other != tmp_path
    with server._locked_home(tmp_path) as mine:
        assert mine == tmp_path
