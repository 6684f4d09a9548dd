"""The doctor's findings on machines and warehouses with one fault each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from flows import doctor
from flows.doctor import Finding
from flows.server import free_port
from warehouse.connect import Warehouse

REPOSITORY = Path(__file__).parents[2]


def only_finding(findings) -> Finding:
    (finding,) = list(findings)
    return finding


def test_a_missing_warehouse_is_a_warning(tmp_path):
    finding = only_finding(doctor.warehouse_and_nights(Warehouse.from_url(tmp_path / "none.duckdb")))
    assert (finding.state, finding.todo) == ("warn", "nightgraph night makes it")
    assert not (tmp_path / "none.duckdb").exists()


def test_a_warehouse_without_faults_is_ok(empty):
    assert only_finding(doctor.warehouse_and_nights(empty)) == Finding("warehouse", "ok", str(empty.path))


def test_a_corrupt_warehouse_fails(tmp_path):
    (tmp_path / "bad.duckdb").write_bytes(b"these are no pages of a database" * 1000)
    finding = only_finding(doctor.warehouse_and_nights(Warehouse.from_url(tmp_path / "bad.duckdb")))
    assert finding.state == "fail"
    assert "bad.duckdb: not a readable DuckDB database" in finding.detail


def test_a_warehouse_of_a_newer_program_fails(empty):
    with empty.write("the future") as con:
        con.execute("INSERT INTO store.migrations VALUES ('migrations/9999_future.sql', 'x')")
    finding = only_finding(doctor.warehouse_and_nights(empty))
    assert finding.state == "fail"
    assert "9999_future.sql" in finding.detail


def test_a_warehouse_of_an_older_program_is_a_warning_that_names_the_missing_files(empty):
    with empty.write("the past") as con:
        con.execute("DELETE FROM store.migrations WHERE name = 'views/nights.sql'")
    finding = only_finding(doctor.warehouse_and_nights(empty))
    assert (finding.state, finding.todo) == ("warn", "the next night applies views/nights.sql")


def test_a_warehouse_in_use_is_a_warning_that_names_the_holder(empty, monkeypatch):
    monkeypatch.setattr(doctor, "LOCK_TIMEOUT_S", 0.5)
    program = (
        "import sys; from warehouse.connect import Warehouse\nwith Warehouse.from_url(sys.argv[1]).write('training'):\n"
    )
    program += "    print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(empty.path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        finding = only_finding(doctor.warehouse_and_nights(empty))
        holder.communicate()
    assert finding.state == "warn"
    assert f"pid {holder.pid}, training" in finding.detail


@pytest.mark.parametrize(
    ("state", "verdict", "todo"),
    [
        ("published", "ok", ""),
        ("running", "warn", "nightgraph night --source recorded --tape DIR --as-of 2024-06-28 --universe us_stocks"),
        ("blocked", "fail", "look at the views checks and leak_audit"),
        ("failed", "fail", "nightgraph night --source recorded --tape DIR --as-of 2024-06-28 --universe us_stocks"),
    ],
)
def test_the_last_night_is_reported_with_advice(empty, write_night, state, verdict, todo):
    write_night(empty, night=date(2024, 6, 27))
    write_night(empty, state)
    warehouse, last = doctor.warehouse_and_nights(empty)
    assert warehouse.state == "ok"
    assert (last.subject, last.state) == ("recorded us_stocks", verdict)
    assert last.detail == f"night 2024-06-28 {state}: it {state}"
    assert todo in last.todo


def test_the_signals_of_the_published_copy_are_counted(published, empty):
    assert doctor.published_copy(published).detail.endswith(
        "warehouse.published.duckdb, 3 signals for the next session"
    )
    published.published.unlink()
    assert doctor.published_copy(published).state == "warn"
    published.published.write_bytes(b"no database at all" * 1000)
    assert doctor.published_copy(published).state == "fail"


def test_a_prefect_url_that_does_not_answer_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    finding = doctor.prefect_server(tmp_path)
    assert (finding.state, finding.todo) == ("fail", "start it, or unset PREFECT_API_URL")


def test_no_prefect_server_is_ok(monkeypatch, tmp_path):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert doctor.prefect_server(tmp_path).state == "ok"


def test_a_prefect_server_of_another_version_is_a_warning(monkeypatch, tmp_path, api):
    monkeypatch.setenv("PREFECT_API_URL", api({"/health": True, "/admin/version": "2.20.1"}))
    finding = doctor.prefect_server(tmp_path)
    assert finding.state == "warn"
    assert "runs 2.20.1, this is" in finding.detail


def test_packages_of_other_versions_than_locked_are_named(monkeypatch, tmp_path):
    (tmp_path / "requirements.lock").write_text("# comment\nduckdb==0.0.1\nno-such-package==1\n")
    monkeypatch.setattr(doctor, "LOCK", tmp_path / "requirements.lock")
    finding = doctor.packages()
    assert finding.state == "warn"
    assert f"duckdb {doctor.installed('duckdb')} instead of 0.0.1; no-such-package missing instead of 1" in finding.todo


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs an ``nvidia-smi`` with this body as the first on the path."""

    def install(body: str) -> None:
        command = tmp_path / "bin" / "nvidia-smi"
        command.parent.mkdir()
        command.write_text(f"#!/bin/sh\n{body}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def test_no_gpu_is_ok(nvidia_smi):
    nvidia_smi("exit 9")
    assert doctor.gpu() == Finding("gpu", "ok", "none; fits run on the processor")


def test_a_gpu_that_pytorch_cannot_use_is_a_warning(nvidia_smi, monkeypatch):
    nvidia_smi("echo 'NVIDIA H200, 143771 MiB, 570.86'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = doctor.gpu()
    assert (finding.state, finding.detail) == ("warn", "NVIDIA H200, 143771 MiB, 570.86")


def test_little_free_disk_space_is_a_warning(tmp_path, monkeypatch):
    warehouse = Warehouse.from_url(tmp_path / "not" / "yet" / "w.duckdb")
    assert doctor.disk(warehouse).state == "ok"
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)
    assert doctor.disk(warehouse).todo == "free some space"


def test_exit_code_is_1_when_something_fails(tmp_path):
    (tmp_path / "bad.duckdb").write_bytes(b"these are no pages of a database" * 1000)
    command = [sys.executable, "-m", "flows.cli", "doctor", "--warehouse", str(tmp_path / "bad.duckdb")]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "fail  warehouse: " in process.stdout
    assert process.stderr == ""
