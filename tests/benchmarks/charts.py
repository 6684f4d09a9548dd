"""Charts of the measured figures; hollow markers show the claims of the source articles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from tests.benchmarks import sources

Result = dict[str, Any]
SESSIONS_PER_YEAR = 252
COLOURS = {"LSTM": "tab:red", "Transformer": "tab:green", "S4": "tab:blue"}


def write_charts(report: dict[str, Any], folder: Path) -> list[str]:
    """Writes the charts for which there are figures to the folder. Returns their file names."""
    names = []
    for old in folder.glob("models_*.png"):
        old.unlink()
    groups = ((sources.LAYER, "training"), (sources.EVALUATION, "evaluation"), (sources.SCAN, "scan"))
    for group, name in (*groups, (sources.BLOCK, "block"), (sources.LAYER_MEMORY, "memory")):
        results = [r for r in report["results"] if r["group"] == group]
        modes = [m for m in ("keep", "default") if any(r["mode"] == m and r["values"] for r in results)]
        if modes:
            names.append(write_length_chart(results, modes, group, folder / f"models_{name}.png"))
    rows = report["market"].get("rows")
    if rows:
        names.append(write_sharpe_chart(rows, folder / "models_night.png"))
    return names


def write_length_chart(results: Sequence[Result], modes: Sequence[str], group: str, path: Path) -> str:
    """Writes a chart of every contender's figure by number of bars, with one panel per mode."""
    figure, panels = plt.subplots(1, len(modes), figsize=(6.5 * len(modes), 4.5), sharey=True, squeeze=False)
    for mode, axes in zip(modes, panels[0], strict=True):
        mode_results = [r for r in results if r["mode"] == mode]
        for name in dict.fromkeys(name for r in mode_results for name in r["values"]):
            points = [(r["bars"], r["values"][name]) for r in mode_results if name in r["values"]]
            is_ours = name.startswith("ours")
            axes.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=2.5 if is_ours else 1)
        if group == sources.EVALUATION:
            plot_claims(axes)
        axes.set(xscale="log", yscale="log", xlabel="bars", ylabel=mode_results[0]["unit"], title=f"{group} ({mode})")
        ticks = sorted({r["bars"] for r in mode_results})
        axes.set_xticks(ticks, [f"{bars:,}" for bars in ticks])
        axes.minorticks_off()
        axes.legend(fontsize=8)
    return save_figure(figure, path)


def plot_claims(axes: Axes) -> None:
    """Adds the inference times that the source articles claim, by number of bars."""
    for name, colour in COLOURS.items():
        points = [(bars, row[name]) for bars, row in sources.LENGTHS.items() if not isinstance(row[name], str)]
        style = {"marker": "o", "markerfacecolor": "none", "linestyle": ":", "color": colour}
        axes.plot(*zip(*points, strict=True), label=f"source: {name}", **style)


def write_sharpe_chart(rows: dict[str, Any], path: Path) -> str:
    """Writes a chart of the claimed and the measured Sharpe ratios of models and ablation, with one standard error."""
    claimed = {name: row[0] for name, row in sources.MODELS.items()}
    claimed |= {name: sharpe for name, (_, sharpe) in sources.ABLATION.items()}
    ablation = [name for name in sources.ABLATION if name in rows]
    halves = (("models", [name for name in rows if name not in ablation]), ("ablation", ablation))
    figure, panels = plt.subplots(1, 2, figsize=(13, 5))
    for (title, names), axes in zip(halves, panels, strict=True):
        shown = [name for name in names if rows[name]["sharpe"] is not None]
        standard_error = [(SESSIONS_PER_YEAR / rows[name]["sessions"]) ** 0.5 for name in shown]
        axes.errorbar(
            shown, [rows[name]["sharpe"] for name in shown], standard_error, fmt="o", capsize=3, label="measured here"
        )
        in_source = [name for name in shown if name in claimed]
        axes.scatter(
            in_source, [claimed[name] for name in in_source], facecolors="none", edgecolors="grey", label="source"
        )
        axes.axhline(0, color="black", linewidth=0.5)
        axes.tick_params(axis="x", rotation=60)
        axes.set(title=title, ylabel="Sharpe ratio, one standard error")
        axes.legend(fontsize=8)
    return save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> str:
    """Writes the figure. Returns its file name."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path.name
