"""The checks of `nightgraph doctor`: can this machine run a night (the run for one as-of date)?"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flows.server import REPOSITORY, find_running_api, get_json, is_answering
from warehouse.connect import Warehouse
from warehouse.errors import WarehouseError, WarehouseLockedError, WarehouseMissingError
from warehouse.migrate import pending_files
from warehouse.publish import read_published

LOCK_FILE = REPOSITORY / "requirements.lock"
SHOWN_PACKAGES = (
    "nightgraph",
    "torch",
    "lightning",
    "duckdb",
    "prefect",
    "great-expectations",
    "yfinance",
    "pandas",
    "numpy",
)
LOCK_TIMEOUT_S = 5.0
MIN_FREE_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``state`` is ok, warn or fail; ``todo`` states what to do when ``state`` is not ok."""

    subject: str
    state: str
    detail: str
    todo: str = ""


def run_checks(warehouse: Warehouse, home: Path) -> Iterator[Finding]:
    """The findings of all checks, the most basic first. ``home`` is the folder of the local Prefect server."""
    yield check_python()
    yield check_packages()
    yield check_gpu()
    yield check_disk(warehouse)
    yield from check_warehouse_and_nights(warehouse)
    yield check_published_copy(warehouse)
    yield check_prefect_server(home)


def check_python() -> Finding:
    """Version and path of the Python that runs this program; always ok."""
    detail = f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    return Finding("python", "ok", detail)


def check_packages() -> Finding:
    """Versions of the main libraries; fails when one is missing.

    Warns when a package of requirements.lock is missing or has another version than there.
    """
    detail = ", ".join(f"{name} {installed_version(name) or 'missing'}" for name in SHOWN_PACKAGES)
    lock_lines = LOCK_FILE.read_text().splitlines() if LOCK_FILE.exists() else []
    differences = []
    for name, locked_version in (line.split("==") for line in lock_lines if "==" in line):
        package_version = installed_version(name)
        if package_version != locked_version:
            differences.append(f"{name} {package_version or 'missing'} instead of {locked_version}")
    # nightgraph itself may run from a checkout without being installed
    missing = [name for name in SHOWN_PACKAGES if installed_version(name) is None and name != "nightgraph"]
    if missing:
        return Finding("packages", "fail", detail, f"install {', '.join(missing)}: make setup")
    if differences:
        return Finding("packages", "warn", detail, f"not as locked: {'; '.join(differences[:5])}; make clean setup")
    return Finding("packages", "ok", detail)


def installed_version(name: str) -> str | None:
    """Version of a package without its build tag (2.13.0 for 2.13.0+cpu), or None when it is not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def check_gpu() -> Finding:
    """The CUDA devices; warns when PyTorch cannot use them. No device is ok, because fits also run on the processor."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding("gpu", "ok", "none; fits run on the processor")
    detail = "; ".join(output.stdout.strip().splitlines())
    probe = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    cuda_probe = subprocess.run(probe, capture_output=True, text=True, timeout=120, check=False)
    if cuda_probe.stdout.strip() != "True":
        return Finding("gpu", "warn", detail, "PyTorch cannot use it: install its CUDA build, or update the driver")
    return Finding("gpu", "ok", detail)


def check_disk(warehouse: Warehouse) -> Finding:
    """Free space on the warehouse's disk, in GB; warns below ``MIN_FREE_GB``."""
    folder = next(folder for folder in warehouse.path.parents if folder.exists())
    free_gb = shutil.disk_usage(folder).free / 1e9
    state = "ok" if free_gb >= MIN_FREE_GB else "warn"
    return Finding("disk", state, f"{free_gb:.1f} GB free at {folder}", "" if state == "ok" else "free some space")


def check_warehouse_and_nights(warehouse: Warehouse) -> Iterator[Finding]:
    """A finding on the warehouse: can it be opened, and is it up to date? Then one per source and universe.

    The later findings state how the latest night ended. They are left out when the warehouse needs an update.
    """
    warehouse = Warehouse(warehouse.path, LOCK_TIMEOUT_S)
    try:
        files = pending_files(warehouse)
        nights = [] if files else warehouse.query("latest_nights").to_pylist()
    except WarehouseMissingError:
        yield Finding("warehouse", "warn", f"none at {warehouse.path}", "nightgraph night creates it")
    except WarehouseLockedError as error:
        yield Finding("warehouse", "warn", str(error), "normal while a night runs")
    except WarehouseError as error:
        yield Finding("warehouse", "fail", str(error), "see the message; the published copy stays readable")
    else:
        todo = f"the next night applies {', '.join(files)}" if files else ""
        yield Finding("warehouse", "warn" if files else "ok", str(warehouse.path), todo)
        yield from (check_last_night(**row) for row in nights)


def check_last_night(source: str, universe: str, night: object, state: str, message: str | None) -> Finding:
    """How the latest night of one source and universe ended; the arguments are a row of ``latest_nights.sql``."""
    tape = " --tape DIR" if source == "recorded" else ""
    command = f"nightgraph night --source {source}{tape} --as-of {night} --universe {universe}"
    finding_state, todo = {
        "published": ("ok", ""),
        "running": ("warn", f"if no process is running it, it was interrupted; to finish it: {command}"),
        "blocked": ("fail", f"look at the views checks and leak_audit, then {command}"),
    }.get(state, ("fail", f"correct the cause, then {command}"))
    return Finding(
        f"{source} {universe}", finding_state, f"night {night} {state}" + (f": {message}" if message else ""), todo
    )


def check_published_copy(warehouse: Warehouse) -> Finding:
    """The number of signals in the published copy, the read-only database for analysts."""
    if not warehouse.published.exists():
        return Finding(
            "published copy", "warn", f"none at {warehouse.published}", "a night that is published creates it"
        )
    try:
        with read_published(warehouse) as con:
            ((n_signals,),) = con.execute("SELECT count(*) FROM signals_next_day").fetchall()
    except WarehouseError as error:
        return Finding("published copy", "fail", str(error), "remove it; the next night creates it again")
    return Finding("published copy", "ok", f"{warehouse.published}, {n_signals} signals for the next session")


def check_prefect_server(home: Path) -> Finding:
    """The Prefect server that a night would use; warns when its version differs from the client's."""
    api_url = os.environ.get("PREFECT_API_URL")
    if api_url and not is_answering(api_url):
        return Finding(
            "prefect", "fail", f"PREFECT_API_URL={api_url} does not answer", "start it, or unset PREFECT_API_URL"
        )
    url = find_running_api(home)
    if url is None:
        return Finding(
            "prefect", "ok", "no server running: a night starts its own; nightgraph serve keeps one with a UI"
        )
    try:
        server_version = get_json(url, "/admin/version")
    except OSError as error:  # the server asks for a login
        return Finding("prefect", "ok", f"{url} answers: {error}")
    if server_version != installed_version("prefect"):
        todo = "use the same version for client and server"
        return Finding("prefect", "warn", f"{url} runs {server_version}, this is {installed_version('prefect')}", todo)
    return Finding("prefect", "ok", f"{url} answers, version {server_version}")
