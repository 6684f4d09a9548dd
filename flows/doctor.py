"""Checks whether this machine can run a night: what is installed, what is wrong, and what to do about it."""

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

from flows.server import REPOSITORY, find_running, get_json, is_answering
from warehouse.connect import Warehouse
from warehouse.errors import WarehouseError, WarehouseLockedError, WarehouseMissingError
from warehouse.migrate import pending
from warehouse.publish import read_published

LOCK = REPOSITORY / "requirements.lock"
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
    """The result of one check. ``state`` is ok, warn or fail; ``todo`` states what to do when it is not ok."""

    subject: str
    state: str
    detail: str
    todo: str = ""


def examine(warehouse: Warehouse, home: Path) -> Iterator[Finding]:
    """The findings of all checks, the most basic first."""
    yield interpreter()
    yield packages()
    yield gpu()
    yield disk(warehouse)
    yield from warehouse_and_nights(warehouse)
    yield published_copy(warehouse)
    yield prefect_server(home)


def interpreter() -> Finding:
    """The Python that runs this program."""
    detail = f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    return Finding("python", "ok", detail)


def packages() -> Finding:
    """Versions of the main libraries, and whether every locked package is installed at its locked version."""
    detail = ", ".join(f"{name} {installed(name) or 'missing'}" for name in SHOWN_PACKAGES)
    pins = [line.split("==") for line in LOCK.read_text().splitlines() if "==" in line] if LOCK.exists() else []
    wrong = [f"{name} {installed(name) or 'missing'} instead of {pin}" for name, pin in pins if installed(name) != pin]
    if absent := [name for name in SHOWN_PACKAGES if installed(name) is None and name != "nightgraph"]:
        return Finding("packages", "fail", detail, f"install {', '.join(absent)}: make setup")
    if wrong:
        return Finding("packages", "warn", detail, f"not as locked: {'; '.join(wrong[:5])}; make clean setup")
    return Finding("packages", "ok", detail)


def installed(name: str) -> str | None:
    """Version of a package without its build tag (2.13.0+cpu is 2.13.0), or None."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def gpu() -> Finding:
    """The CUDA devices, and whether PyTorch can use them. No device is fine: fits run on the processor."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding("gpu", "ok", "none; fits run on the processor")
    detail = "; ".join(output.stdout.strip().splitlines())
    probe = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    usable = subprocess.run(probe, capture_output=True, text=True, timeout=120, check=False)
    if usable.stdout.strip() != "True":
        return Finding("gpu", "warn", detail, "PyTorch cannot use it: install its CUDA build, or update the driver")
    return Finding("gpu", "ok", detail)


def disk(warehouse: Warehouse) -> Finding:
    """Free space for the warehouse, its published copy and the model files."""
    folder = next(folder for folder in warehouse.path.parents if folder.exists())
    free = shutil.disk_usage(folder).free / 1e9
    state = "ok" if free >= MIN_FREE_GB else "warn"
    return Finding("disk", state, f"{free:.1f} GB free at {folder}", "" if state == "ok" else "free some space")


def warehouse_and_nights(warehouse: Warehouse) -> Iterator[Finding]:
    """Whether the warehouse opens and is up to date with this program; then how each universe's last night ended."""
    impatient = Warehouse(warehouse.path, LOCK_TIMEOUT_S)
    try:
        due = pending(impatient)
        nights = [] if due else impatient.query("latest_nights").to_pylist()
    except WarehouseMissingError:
        yield Finding("warehouse", "warn", f"none at {warehouse.path}", "nightgraph night makes it")
    except WarehouseLockedError as error:
        yield Finding("warehouse", "warn", str(error), "normal while a night runs")
    except WarehouseError as error:
        yield Finding("warehouse", "fail", str(error), "see the message; the published copy stays readable")
    else:
        todo = f"the next night applies {', '.join(due)}" if due else ""
        yield Finding("warehouse", "warn" if due else "ok", str(warehouse.path), todo)
        yield from (last_night(**row) for row in nights)


def last_night(source: str, universe: str, night: object, state: str, message: str | None) -> Finding:
    """How the latest night of one universe ended."""
    tape = " --tape DIR" if source == "recorded" else ""
    command = f"nightgraph night --source {source}{tape} --as-of {night} --universe {universe}"
    verdict, todo = {
        "published": ("ok", ""),
        "running": ("warn", f"if it is not running now, it was interrupted; this finishes it: {command}"),
        "blocked": ("fail", f"look at the views checks and leak_audit, then {command}"),
    }.get(state, ("fail", f"after putting it right: {command}"))
    return Finding(
        f"{source} {universe}", verdict, f"night {night} {state}" + (f": {message}" if message else ""), todo
    )


def published_copy(warehouse: Warehouse) -> Finding:
    """Whether analysts have a published copy to read."""
    if not warehouse.published.exists():
        return Finding("published copy", "warn", f"none at {warehouse.published}", "a night that ends well makes it")
    try:
        with read_published(warehouse) as con:
            rows = con.execute("SELECT count(*) FROM signals_next_day").fetchall()
    except WarehouseError as error:
        return Finding("published copy", "fail", str(error), "remove it; the next night makes it anew")
    return Finding("published copy", "ok", f"{warehouse.published}, {rows[0][0]} signals for the next session")


def prefect_server(home: Path) -> Finding:
    """The Prefect server that a night would use."""
    api_url = os.environ.get("PREFECT_API_URL")
    if api_url and not is_answering(api_url):
        return Finding(
            "prefect", "fail", f"PREFECT_API_URL={api_url} does not answer", "start it, or unset PREFECT_API_URL"
        )
    url = find_running(home)
    if url is None:
        return Finding(
            "prefect", "ok", "no server running: a night starts its own; nightgraph serve keeps one with a UI"
        )
    try:
        server_version = get_json(url, "/admin/version")
    except OSError as error:  # behind a login
        return Finding("prefect", "ok", f"{url} answers: {error}")
    if server_version != installed("prefect"):
        todo = "client and server should have one version"
        return Finding("prefect", "warn", f"{url} runs {server_version}, this is {installed('prefect')}", todo)
    return Finding("prefect", "ok", f"{url} answers, version {server_version}")
