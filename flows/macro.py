"""The command `nightgraph macro`: forecasts volatility regimes from macro-economic series and prints the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from flows.terminal import make_console, make_table
from models.training.regimes import RegimeConfig
from tasks.macro import macro_regimes

COLUMNS = {
    "model": ("model", ""),
    "accuracy": ("accuracy", ".1%"),
    "low": ("95 % from", ".1%"),
    "high": ("to", ".1%"),
    "seeds": ("seeds", "d"),
    "parameters": ("parameters", ",d"),
    "seconds": ("seconds", ".1f"),
}


def run_macro(fred: Path, tape: Path, seeds: Sequence[int], markdown: Path | None, console: Console) -> None:
    """Prints accuracies with 95 % intervals, paired differences, and a comparison with the source articles' figure.

    ``fred`` is a parquet file (series, date, value); ``tape`` is a folder of recorded market data that contains SPY. No
    ``seeds`` means the default seeds of RegimeConfig. ``markdown`` is the file to write the report to, or None.
    """
    config = RegimeConfig()
    error_console = make_console(stderr=True)
    report = macro_regimes(
        fred,
        tape,
        replace(config, seeds=tuple(seeds)) if seeds else config,
        lambda done, total: error_console.print(f"fold {done} of {total}"),
    )
    console.print(make_table("Macro regimes", COLUMNS, report.rows))
    for line in report.setting:
        console.print(line, markup=False)
    for other, (mean, low, high) in report.differences.items():
        difference = f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        console.print(f"Mamba − {other}, same days: {difference} points", markup=False)
    console.print(report.verdict(), style="bold", markup=False)
    if markdown is not None:
        markdown.write_text(report.markdown(), encoding="utf-8")
