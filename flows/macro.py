"""The command `nightgraph macro`: runs the macro-regime example and prints its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from flows.terminal import console, table
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


def run_macro(fred: Path, tape: Path, seeds: Sequence[int], markdown: Path | None, screen: Console) -> None:
    """Prints accuracies, paired differences and the source articles' figure; writes the report to ``markdown``."""
    config = RegimeConfig()
    errors = console(stderr=True)
    report = macro_regimes(
        fred,
        tape,
        replace(config, seeds=tuple(seeds)) if seeds else config,
        lambda done, total: errors.print(f"fold {done} of {total}"),
    )
    screen.print(table("Macro regimes", COLUMNS, report.rows))
    for line in report.setting:
        screen.print(line, markup=False)
    for other, (mean, low, high) in report.differences.items():
        difference = f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        screen.print(f"Mamba − {other}, same days: {difference} points", markup=False)
    screen.print(report.verdict(), style="bold", markup=False)
    if markdown is not None:
        markdown.write_text(report.markdown(), encoding="utf-8")
