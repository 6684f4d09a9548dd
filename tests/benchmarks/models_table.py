"""The report that compares our layers with their peers, and our models with the tables of the source articles.

``make bench-models`` or ``python -m tests.benchmarks.models_table``. It measures in new processes: one per mode of the
allocator (see layers_table.py), and one for a night, the run for one as-of date. It writes ``models.md``, its charts
and ``models.json`` to ``bench/``. ``--quick`` uses short sequences and the simulated market. ``--skip-market`` and
``--skip-layers`` leave out one half. ``--again`` measures nothing, and writes the page and the charts from
``models.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks import charts, markdown

REPOSITORY = Path(__file__).parents[2]
MODES = ("keep", "default")
PACKAGES = ("torch", "numba", "mambapy", "s5-pytorch")
LAYERS_S = 600  # time limit of one allocator mode, after which the results so far count
MARKET_S = 900  # time limit of the night


def log(text: str) -> None:
    """Prints a line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def layers(mode: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Yields the results of one allocator mode, until its process ends, fails or exceeds LAYERS_S."""
    command = [sys.executable, "-m", "tests.benchmarks.layers_table", "--mode", mode, *["--quick"] * quick]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    alarm = threading.Timer(LAYERS_S, process.kill)
    alarm.start()
    for line in process.stdout:
        result = json.loads(line)
        log(f"{mode}: {markdown.summary_line(result)}")
        yield result
    alarm.cancel()
    exit_code = process.wait()
    if exit_code:
        log(f"{mode}: exit code {exit_code}, or killed after {LAYERS_S} s; the remaining cases are not measured")


def market(quick: bool) -> dict[str, Any]:
    """The figures of market_table.py, or ``skipped``: the reason why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "market.json"
        command = [sys.executable, "-m", "tests.benchmarks.market_table", "--out", str(out), *["--quick"] * quick]
        try:
            # the night's output names its folder, which is deleted afterwards
            subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, timeout=MARKET_S, check=False)
        except subprocess.TimeoutExpired:
            return {"skipped": f"the night took longer than {MARKET_S} s"}
        return json.loads(out.read_text()) if out.exists() else {"skipped": "the night ended early, see above"}


def machine() -> dict[str, Any]:
    """A description of the machine: processor, load, time, and the versions of Python and PACKAGES."""

    def package_version(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu_names = (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line)
        cpu = next(cpu_names, cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {package: package_version(package) for package in PACKAGES},
        "load": round(os.getloadavg()[0], 1),
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def main() -> None:
    """Measures all cases and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short sequences and the simulated market")
    parser.add_argument("--skip-market", action="store_true", help="leave the night out")
    parser.add_argument("--skip-layers", action="store_true", help="leave the layers out")
    parser.add_argument("--again", action="store_true", help="measure nothing: use the contents of models.json")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench", help="folder [default: bench/]")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    json_file = arguments.out / "models.json"
    started = time.perf_counter()
    if arguments.again:
        report = json.loads(json_file.read_text())
    else:
        report = {
            "machine": machine(),
            "quick": arguments.quick,
            "results": [],
            "market": {"skipped": "left out by --skip-market"},
        }
        for mode in () if arguments.skip_layers else MODES:
            report["results"] += layers(mode, arguments.quick)
        if not arguments.skip_market:
            report["market"] = market(arguments.quick)
        report["minutes"] = round((time.perf_counter() - started) / 60, 1)
        json_file.write_text(json.dumps(report, indent=1))
    chart_names = charts.write_charts(report, arguments.out)
    page = arguments.out / "models.md"
    page.write_text(markdown.page(report, chart_names))
    print(page.read_text())
    log(f"written to {page}, with {', '.join(chart_names) or 'no charts'}")


if __name__ == "__main__":
    main()
