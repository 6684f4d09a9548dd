"""The findings of `nightgraph doctor` on machines and warehouses that have one fault each.

The fixtures are in conftest.py: ``empty_warehouse`` has no nights, ``published_warehouse`` has one published night,
``write_night`` writes a night, ``api`` starts an HTTP server with given responses.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import pytest

from flows import doctor
from flows.doctor import Finding
from flows.server import free_port
from warehouse.connect import Warehouse

REPOSITORY = Path(__file__).parents[2]
HOLD_LOCK = """
import sys
from warehouse.connect import Warehouse
with Warehouse.from_url(sys.argv[1]).write("training"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def single_finding(findings: Iterable[Finding]) -> Finding:
    """The only element of ``findings``; fails when there are none or several."""
    (finding,) = findings
    return finding


def test_a_missing_warehouse_is_a_warning(tmp_path: Path) -> None:
    finding = single_finding(doctor.check_warehouse_and_nights(Warehouse.from_url(tmp_path / "none.duckdb")))
    assert (finding.state, finding.todo) == ("warn", "nightgraph night creates it")
    assert not (tmp_path / "none.duckdb").exists()


def test_a_warehouse_without_faults_is_ok(empty_warehouse: Warehouse) -> None:
    assert single_finding(doctor.check_warehouse_and_nights(empty_warehouse)) == Finding(
        "warehouse", "ok", str(empty_warehouse.path)
    )


def test_a_corrupt_warehouse_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.duckdb").write_bytes(b"these are no pages of a database" * 1000)
    finding = single_finding(doctor.check_warehouse_and_nights(Warehouse.from_url(tmp_path / "bad.duckdb")))
    assert finding.state == "fail"
    assert "bad.duckdb: not a readable DuckDB database" in finding.detail


def test_a_warehouse_of_a_newer_program_fails(empty_warehouse: Warehouse) -> None:
    with empty_warehouse.write("add a migration of a newer program") as con:
        con.execute("INSERT INTO store.migrations VALUES ('migrations/9999_future.sql', 'x')")
    finding = single_finding(doctor.check_warehouse_and_nights(empty_warehouse))
    assert finding.state == "fail"
    assert "9999_future.sql" in finding.detail


def test_a_warehouse_of_an_older_program_is_a_warning_that_names_the_missing_files(empty_warehouse: Warehouse) -> None:
    with empty_warehouse.write("remove a view file") as con:
        con.execute("DELETE FROM store.migrations WHERE name = 'views/nights.sql'")
    finding = single_finding(doctor.check_warehouse_and_nights(empty_warehouse))
    assert (finding.state, finding.todo) == ("warn", "the next night applies views/nights.sql")


def test_a_warehouse_in_use_is_a_warning_that_names_the_holder(
    empty_warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LOCK_TIMEOUT_S", 0.5)  # the holder never releases the lock; do not wait 5 s
    command = [sys.executable, "-c", HOLD_LOCK, str(empty_warehouse.path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        finding = single_finding(doctor.check_warehouse_and_nights(empty_warehouse))
        holder.communicate()
    assert finding.state == "warn"
    assert f"pid {holder.pid}, training" in finding.detail


@pytest.mark.parametrize(
    ("state", "finding_state", "todo"),
    [
        ("published", "ok", ""),
        ("running", "warn", "nightgraph night --source recorded --tape DIR --as-of 2024-06-28 --universe us_stocks"),
        ("blocked", "fail", "look at the views checks and leak_audit"),
        ("failed", "fail", "nightgraph night --source recorded --tape DIR --as-of 2024-06-28 --universe us_stocks"),
    ],
)
def test_the_last_night_is_reported_with_advice(
    empty_warehouse: Warehouse, write_night: Callable[..., None], state: str, finding_state: str, todo: str
) -> None:
    write_night(empty_warehouse, night=date(2024, 6, 27))
    write_night(empty_warehouse, state)
    warehouse_finding, night_finding = doctor.check_warehouse_and_nights(empty_warehouse)
    assert warehouse_finding.state == "ok"
    assert (night_finding.subject, night_finding.state) == ("recorded us_stocks", finding_state)
    assert night_finding.detail == f"night 2024-06-28 {state}: it {state}"
    assert todo in night_finding.todo


def test_the_signals_of_the_published_copy_are_counted(published_warehouse: Warehouse) -> None:
    finding = doctor.check_published_copy(published_warehouse)
    assert finding.detail.endswith("warehouse.published.duckdb, 3 signals for the next session")


def test_a_missing_published_copy_is_a_warning(empty_warehouse: Warehouse) -> None:
    assert doctor.check_published_copy(empty_warehouse).state == "warn"


def test_a_corrupt_published_copy_fails(published_warehouse: Warehouse) -> None:
    published_warehouse.published.write_bytes(b"no database at all" * 1000)
    assert doctor.check_published_copy(published_warehouse).state == "fail"


def test_a_prefect_url_that_does_not_answer_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    finding = doctor.check_prefect_server(tmp_path)
    assert (finding.state, finding.todo) == ("fail", "start it, or unset PREFECT_API_URL")


def test_no_prefect_server_is_ok(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert doctor.check_prefect_server(tmp_path).state == "ok"


def test_a_prefect_server_of_another_version_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, api: Callable[..., str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", api({"/health": True, "/admin/version": "2.20.1"}))
    finding = doctor.check_prefect_server(tmp_path)
    assert finding.state == "warn"
    assert "runs 2.20.1, this is" in finding.detail


def test_packages_whose_version_differs_from_the_lock_file_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "requirements.lock").write_text("# comment\nduckdb==0.0.1\nno-such-package==1\n")
    monkeypatch.setattr(doctor, "LOCK_FILE", tmp_path / "requirements.lock")
    finding = doctor.check_packages()
    assert finding.state == "warn"
    assert (
        f"duckdb {doctor.installed_version('duckdb')} instead of 0.0.1; no-such-package missing instead of 1"
        in finding.todo
    )


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """nvidia_smi(body): puts a shell script ``nvidia-smi`` with this body first on the PATH."""

    def install(body: str) -> None:
        command = tmp_path / "bin" / "nvidia-smi"
        command.parent.mkdir()
        command.write_text(f"#!/bin/sh\n{body}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def test_no_gpu_is_ok(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi("exit 9")  # the exit code without a driver
    assert doctor.check_gpu() == Finding("gpu", "ok", "none; fits run on the processor")


def test_a_gpu_that_pytorch_cannot_use_is_a_warning(
    nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi("echo 'NVIDIA H200, 143771 MiB, 570.86'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = doctor.check_gpu()
    assert (finding.state, finding.detail) == ("warn", "NVIDIA H200, 143771 MiB, 570.86")


def test_little_free_disk_space_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse = Warehouse.from_url(tmp_path / "not" / "yet" / "w.duckdb")
    assert doctor.check_disk(warehouse).state == "ok"
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)  # more than any disk has
    assert doctor.check_disk(warehouse).todo == "free some space"


def test_the_exit_code_is_1_when_a_check_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.duckdb").write_bytes(b"these are no pages of a database" * 1000)
    command = [sys.executable, "-m", "flows.cli", "doctor", "--warehouse", str(tmp_path / "bad.duckdb")]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "fail  warehouse: " in process.stdout
    assert process.stderr == ""
