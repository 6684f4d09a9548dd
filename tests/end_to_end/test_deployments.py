"""`nightgraph serve` as users run it: server, workers and deployments, driven through the REST API like the UI.

A night is the run for one as-of date.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest

from flows.server import free_port
from tests.end_to_end.command_line import RunCommand, StartProcess

pytestmark = pytest.mark.slow
RUN_STARTS_WITHIN_S = 180.0
NIGHT_ENDS_WITHIN_S = 900.0
PROCESSES_END_WITHIN_S = 30.0
API_RESPONDS_WITHIN_S = 60.0
NIGHT_PARAMETERS = {
    "source": "simulated",
    "as_of": "2024-06-28",
    "universes": ["demo_stocks"],
    "models": ["s4d", "buy_and_hold"],
}
FINAL_STATES = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Server:
    """A running `nightgraph serve`: its process, the address of its REST API and its warehouse file."""

    process: subprocess.Popen[str]
    api: str
    warehouse: Path

    def call(self, path: str, body: object = None, method: str | None = None) -> Any:
        """The API's response, parsed from JSON; ``path`` starts with a slash.

        The default method is GET without a body and POST with a body. Retries while the API responds with 503.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.api}{path}",
            data,
            {"Content-Type": "application/json"},
            method=method or ("POST" if data else "GET"),
        )
        deadline = time.monotonic() + API_RESPONDS_WITHIN_S
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return json.loads(response.read() or "null")
            except urllib.error.HTTPError as error:  # Prefect's server returns 503 while its database is locked
                if error.code != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(1.0)

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by flow and name, such as nightly/nightly."""
        return self.call(f"/deployments/name/{name}")

    def run_nightly(self, night: dict[str, Any]) -> dict[str, Any]:
        """Creates a run of the deployment `nightly` like the UI's "Run" button; returns the API's record of it."""
        deployment_id = self.deployment("nightly/nightly")["id"]
        return self.call(f"/deployments/{deployment_id}/create_flow_run", {"parameters": {"night": night}})

    def wait_for_state(self, run_id: str, states: set[str], within_s: float) -> dict[str, Any]:
        """The run's state as soon as its type is one of ``states``; fails after ``within_s`` seconds."""
        deadline = time.monotonic() + within_s
        while (state := self.call(f"/flow_runs/{run_id}")["state"])["type"] not in states:
            assert time.monotonic() < deadline, f"still {state} after {within_s} s"
            time.sleep(0.5)
        return state

    def logs(self, run_id: str) -> str:
        """The log messages of a run, one per line."""
        lines = self.call("/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"})
        return "\n".join(line["message"] for line in lines)


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the shared server's warehouse file."""
    return tmp_path_factory.mktemp("server") / "warehouse.duckdb"


def serve(start: StartProcess, warehouse: Path, **environment: str) -> Server:
    """Starts `nightgraph serve` on a free port and returns it when it accepts requests."""
    port = free_port()
    process = start("serve", "--port", str(port), "--warehouse", str(warehouse), **environment)
    output_lines = []
    for line in process.stdout:
        output_lines.append(line)
        if line.startswith("Schedules:"):
            return Server(process, f"http://127.0.0.1:{port}/api", warehouse)
    pytest.fail("".join(output_lines))


@pytest.fixture(scope="module")
def server(start: StartProcess, warehouse: Path) -> Iterator[Server]:
    """A server that all tests of this module share."""
    running = serve(start, warehouse)
    yield running
    running.process.send_signal(signal.SIGINT)
    output, _ = running.process.communicate(timeout=60)
    assert running.process.returncode == 0, output
    assert "Traceback" not in output


def test_every_flow_is_a_deployment_on_its_pool(server: Server) -> None:
    deployments = {
        f"{d['entrypoint']} {d['name']}": d["work_pool_name"] for d in server.call("/deployments/filter", {})
    }
    flows = ("ingest", "validate", "graphs", "train", "backtest", "audit", "publish", "events", "stream")
    expected = {f"flows.{flow}:{flow} {flow}": "gpu" if flow == "train" else "default" for flow in flows}
    nights = ("nightly", "stocks_after_close", "crypto_after_midnight")
    assert deployments == expected | {f"flows.nightly:nightly {name}": "default" for name in nights}


def test_the_form_of_nightly_has_descriptions_and_bounds(server: Server) -> None:
    schema = server.deployment("nightly/nightly")["parameter_openapi_schema"]
    fields = schema["definitions"]["NightParameters"]["properties"]
    assert all(field.get("description") for field in fields.values())
    assert fields["source"]["enum"] == ["simulated", "recorded", "live"]
    assert fields["seeds"]["anyOf"][0]["maxItems"] == 16


@pytest.mark.parametrize(
    ("night", "message"),
    [
        ({"source": "martian"}, "'martian' is not one of"),
        ({"seeds": list(range(17))}, "is too long"),
        ({"as_off": "2024-06-28"}, "'as_off' was unexpected"),
        ({"universes": "demo_stocks"}, "is not of type 'array'"),
    ],
)
def test_parameters_out_of_bounds_are_refused_by_the_api(server: Server, night: dict[str, Any], message: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        server.run_nightly(night)
    assert error.value.code == 409
    assert message in json.loads(error.value.read())["detail"]


def test_schedules_are_inactive_at_first_and_have_the_parameters_of_their_night(server: Server) -> None:
    expected = {
        "stocks_after_close": ("30 17 * * 1-5", "America/New_York", "us_stocks"),
        "crypto_after_midnight": ("10 0 * * *", "UTC", "crypto"),
    }
    for name, (cron, timezone, universe) in expected.items():
        before = server.deployment(f"nightly/{name}")
        (schedule,) = before["schedules"]
        assert not schedule["active"]
        assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == (cron, timezone)
        switch = f"/deployments/{before['id']}/schedules/{schedule['id']}"
        server.call(switch, {"active": True}, "PATCH")  # the request of the UI's switch
        assert server.deployment(f"nightly/{name}")["schedules"][0]["active"]
        assert server.deployment(f"nightly/{name}")["parameters"] == {
            "night": {"source": "live", "universes": [universe]}
        }
        server.call(switch, {"active": False}, "PATCH")


def test_a_night_triggered_like_in_the_ui_ends_in_signals_that_can_be_queried(server: Server) -> None:
    run = server.run_nightly(NIGHT_PARAMETERS)
    state = server.wait_for_state(run["id"], FINAL_STATES, NIGHT_ENDS_WITHIN_S)
    assert state["type"] == "COMPLETED", f"{state['message']}\n{server.logs(run['id'])}"
    copy = server.warehouse.with_name("warehouse.published.duckdb")
    with duckdb.connect(str(copy), read_only=True) as con:
        signals = con.execute("SELECT universe, for_session::VARCHAR, count(*) FROM signals_next_day GROUP BY ALL")
        assert signals.fetchall() == [("demo_stocks", "2024-07-01", 12)]
        night = con.execute("SELECT source, state FROM nights").fetchall()
    assert night == [("simulated", "published")]
    keys = {artifact["key"] for artifact in server.call("/artifacts/filter", {})}
    assert keys == {f"{name}-demo-stocks-simulated" for name in ("leaderboard", "signals", "checks", "equity")}
    n_tasks = server.call("/task_runs/count", {"flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}}})
    assert 7 <= n_tasks <= 7 * 10  # seven flows with one to about ten tasks each


def test_an_impossible_night_is_a_failed_run_with_the_reason_and_starts_no_step(server: Server) -> None:
    run = server.run_nightly({**NIGHT_PARAMETERS, "as_of": "1999-01-01"})
    state = server.wait_for_state(run["id"], FINAL_STATES, NIGHT_ENDS_WITHIN_S)
    assert state["type"] == "FAILED"
    assert "demo_stocks begins on" in state["message"]
    assert server.call("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}}}) == []
    time.sleep(3)  # log lines are sent in batches
    assert "demo_stocks begins on" in server.logs(run["id"])


def test_a_second_serve_prints_the_address_of_the_first(server: Server, nightgraph: RunCommand) -> None:
    code, printed = nightgraph("serve", "--port", str(free_port()), "--warehouse", str(server.warehouse))
    assert code == 1
    assert f"error: running already at {server.api.removesuffix('/api')}" in printed


def test_a_night_from_the_command_line_runs_on_the_server_already_running(
    server: Server, nightgraph: RunCommand
) -> None:
    code, printed = nightgraph(
        *("night", "--as-of", "2024-06-28", "--universe", "demo_stocks", "--model", "s4d", "--model", "buy_and_hold"),
        *("--warehouse", str(server.warehouse)),
    )
    assert code == 0, printed
    assert "was published before: nothing to do" in printed
    runs = server.call("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert (runs[0]["deployment_id"], runs[0]["state_type"]) == (None, "COMPLETED")


def test_no_process_outlives_a_killed_serve_and_the_next_serve_marks_its_run_as_crashed(
    start: StartProcess, tmp_path: Path
) -> None:
    home = {"PREFECT_HOME": str(tmp_path / "prefect")}
    first = serve(start, tmp_path / "warehouse.duckdb", **home)
    run = first.run_nightly(NIGHT_PARAMETERS)
    first.wait_for_state(run["id"], {"RUNNING"}, RUN_STARTS_WITHIN_S)
    children = psutil.Process(first.process.pid).children(recursive=True)
    assert len(children) >= 4  # server, two workers, the run
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    _, alive = psutil.wait_procs(children, timeout=PROCESSES_END_WITHIN_S)
    assert alive == []
    second = serve(start, tmp_path / "warehouse.duckdb", **home)
    try:
        state = second.call(f"/flow_runs/{run['id']}")["state"]
        assert (state["type"], "server was stopped" in state["message"]) == ("CRASHED", True)
    finally:
        second.process.send_signal(signal.SIGINT)
        second.process.communicate(timeout=60)
