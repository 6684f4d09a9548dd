"""Layers against their peers and models against the sources' tables, written down: ``make bench-models``.

``python -m tests.benchmarks.models_table`` measures in processes of their own, one for each allocator mode and one for
the night, and writes ``models.md``, its charts and ``models.json`` into ``bench/``. ``--quick`` tries it all on short
sequences and the simulated market; ``--skip-market`` and ``--skip-layers`` leave a half out, ``--again`` writes the
files anew from what ``models.json`` holds.
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
LAYERS_S, MARKET_S = 600, 900  # longer than that and what is there by then is taken


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def layers(mode: str, quick: bool) -> Iterator[dict[str, Any]]:
    """The results of one allocator mode, until it ends, fails or its time is over."""
    command = [sys.executable, "-m", "tests.benchmarks.layers_table", "--mode", mode, *["--quick"] * quick]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    alarm = threading.Timer(LAYERS_S, process.kill)
    alarm.start()
    for line in process.stdout:
        result = json.loads(line)
        told(f"{mode}: {markdown.in_short(result)}")
        yield result
    alarm.cancel()
    if code := process.wait():
        told(f"{mode}: ended with exit code {code}, or killed after {LAYERS_S} s; what is missing is not measured")


def market(quick: bool) -> dict[str, Any]:
    """The night's figures, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "market.json"
        command = [sys.executable, "-m", "tests.benchmarks.market_table", "--out", str(out), *["--quick"] * quick]
        try:
            # what it prints on stdout points into its own folder, which is gone afterwards
            subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, timeout=MARKET_S, check=False)
        except subprocess.TimeoutExpired:
            return {"skipped": f"the night took longer than {MARKET_S} s"}
        return json.loads(out.read_text()) if out.exists() else {"skipped": "the night ended early, see above"}


def machine() -> dict[str, Any]:
    """Where it was measured, and with what."""

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line)
        cpu = next(named, cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {package: of(package) for package in PACKAGES},
        "load": round(os.getloadavg()[0], 1),
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short sequences and the simulated market")
    parser.add_argument("--skip-market", action="store_true", help="leave the night out")
    parser.add_argument("--skip-layers", action="store_true", help="leave the layers out")
    parser.add_argument("--again", action="store_true", help="measure nothing: write what models.json holds")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench", help="folder [default: bench/]")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    kept, started = asked.out / "models.json", time.perf_counter()
    if asked.again:
        found = json.loads(kept.read_text())
    else:
        found = {"machine": machine(), "quick": asked.quick, "results": [], "market": {"skipped": "not asked for"}}
        for mode in () if asked.skip_layers else MODES:
            found["results"] += layers(mode, asked.quick)
        if not asked.skip_market:
            found["market"] = market(asked.quick)
        found["minutes"] = round((time.perf_counter() - started) / 60, 1)
        kept.write_text(json.dumps(found, indent=1))
    drawn = charts.draw(found, asked.out)
    page = asked.out / "models.md"
    page.write_text(markdown.page(found, drawn))
    print(page.read_text())
    told(f"written to {page}, with {', '.join(drawn) or 'no charts'}")


if __name__ == "__main__":
    main()
