"""Whether this machine can run a night: what is there, what is wrong, and what to do about it."""

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

from flows.server import REPOSITORY, answers, ask, running
from warehouse.connect import Warehouse
from warehouse.errors import WarehouseError, WarehouseLockedError, WarehouseMissingError
from warehouse.migrate import pending
from warehouse.publish import read_published

LOCK = REPOSITORY / "requirements.lock"
SHOWN = ("nightgraph", "torch", "lightning", "duckdb", "prefect", "great-expectations", "yfinance", "pandas", "numpy")
LOCK_TIMEOUT_S = 5.0
MIN_FREE_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``state`` is ok, warn or fail; whatever is not ok says in ``todo`` what to do."""

    subject: str
    state: str
    found: str
    todo: str = ""


def examine(warehouse: Warehouse, home: Path) -> Iterator[Finding]:
    """Everything worth knowing before a night, in the order it matters."""
    yield interpreter()
    yield packages()
    yield gpu()
    yield disk(warehouse)
    yield from store(warehouse)
    yield published(warehouse)
    yield prefect(home)


def interpreter() -> Finding:
    """The Python that runs this."""
    found = f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    return Finding("python", "ok", found)


def packages() -> Finding:
    """Versions of the libraries that matter, and whether every locked package is there at its locked version."""
    found = ", ".join(f"{name} {installed(name) or 'missing'}" for name in SHOWN)
    pins = [line.split("==") for line in LOCK.read_text().splitlines() if "==" in line] if LOCK.exists() else []
    wrong = [f"{name} {installed(name) or 'missing'} instead of {pin}" for name, pin in pins if installed(name) != pin]
    if absent := [name for name in SHOWN if installed(name) is None and name != "nightgraph"]:
        return Finding("packages", "fail", found, f"install {', '.join(absent)}: make setup")
    if wrong:
        return Finding("packages", "warn", found, f"not as locked: {'; '.join(wrong[:5])}; make clean setup")
    return Finding("packages", "ok", found)


def installed(name: str) -> str | None:
    """Version of a package without its build tag (2.13.0+cpu is 2.13.0), or None."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def gpu() -> Finding:
    """The CUDA devices, and whether PyTorch can use them. No device is fine: fits run on the processor."""
    ask = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding("gpu", "ok", "none; fits run on the processor")
    found = "; ".join(answer.stdout.strip().splitlines())
    probe = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    usable = subprocess.run(probe, capture_output=True, text=True, timeout=120, check=False)
    if usable.stdout.strip() != "True":
        return Finding("gpu", "warn", found, "PyTorch cannot use it: install its CUDA build, or update the driver")
    return Finding("gpu", "ok", found)


def disk(warehouse: Warehouse) -> Finding:
    """Room for the warehouse, its published copy and the model files."""
    folder = next(folder for folder in warehouse.path.parents if folder.exists())
    free = shutil.disk_usage(folder).free / 1e9
    state = "ok" if free >= MIN_FREE_GB else "warn"
    return Finding("disk", state, f"{free:.1f} GB free at {folder}", "" if state == "ok" else "free some space")


def store(warehouse: Warehouse) -> Iterator[Finding]:
    """Whether the warehouse opens and has this program's shape; then how the last night of each universe ended."""
    patient = Warehouse(warehouse.path, LOCK_TIMEOUT_S)
    try:
        due = pending(patient)
        nights = [] if due else patient.query("latest_nights").to_pylist()
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
    again = f"nightgraph night --source {source}{tape} --as-of {night} --universe {universe}"
    verdict, todo = {
        "published": ("ok", ""),
        "running": ("warn", f"if it is not running now, it was interrupted; this finishes it: {again}"),
        "blocked": ("fail", f"look at the views checks and leak_audit, then {again}"),
    }.get(state, ("fail", f"after putting it right: {again}"))
    return Finding(
        f"{source} {universe}", verdict, f"night {night} {state}" + (f": {message}" if message else ""), todo
    )


def published(warehouse: Warehouse) -> Finding:
    """Whether analysts have something to read."""
    if not warehouse.published.exists():
        return Finding("published copy", "warn", f"none at {warehouse.published}", "a night that ends well makes it")
    try:
        with read_published(warehouse) as con:
            rows = con.execute("SELECT count(*) FROM signals_next_day").fetchall()
    except WarehouseError as error:
        return Finding("published copy", "fail", str(error), "remove it; the next night makes it anew")
    return Finding("published copy", "ok", f"{warehouse.published}, {rows[0][0]} signals for the next session")


def prefect(home: Path) -> Finding:
    """Which Prefect server a night would use."""
    asked = os.environ.get("PREFECT_API_URL")
    if asked and not answers(asked):
        return Finding(
            "prefect", "fail", f"PREFECT_API_URL={asked} does not answer", "start it, or unset PREFECT_API_URL"
        )
    url = running(home)
    if url is None:
        return Finding(
            "prefect", "ok", "no server running: a night starts its own; nightgraph serve keeps one with a UI"
        )
    try:
        theirs = ask(url, "/admin/version")
    except OSError as error:  # behind a login
        return Finding("prefect", "ok", f"{url} answers: {error}")
    if theirs != installed("prefect"):
        todo = "client and server should have one version"
        return Finding("prefect", "warn", f"{url} runs {theirs}, this is {installed('prefect')}", todo)
    return Finding("prefect", "ok", f"{url} answers, version {theirs}")
