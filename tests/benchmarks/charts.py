"""Charts of the measured figures; a source's claim is drawn hollow."""

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
COLOURS = {"LSTM": "tab:red", "Transformer": "tab:green", "S4": "tab:blue"}


def draw(found: dict[str, Any], folder: Path) -> list[str]:
    """The names of the charts written to the folder; those that nothing was measured for are left out."""
    drawn = []
    for old in folder.glob("models_*.png"):
        old.unlink()
    groups = ((sources.LAYER, "training"), (sources.EVALUATION, "evaluation"), (sources.SCAN, "scan"))
    for group, name in (*groups, (sources.BLOCK, "block"), (sources.LAYER_MEMORY, "memory")):
        own = [r for r in found["results"] if r["group"] == group]
        modes = [m for m in ("keep", "default") if any(r["mode"] == m and r["values"] for r in own)]
        if modes:
            drawn.append(by_length(own, modes, group, folder / f"models_{name}.png"))
    rows = found["market"].get("rows")
    if rows:
        drawn.append(sharpes(rows, folder / "models_night.png"))
    return drawn


def by_length(results: Sequence[Result], modes: Sequence[str], group: str, path: Path) -> str:
    """Every contender over the bars, one panel a mode."""
    figure, panels = plt.subplots(1, len(modes), figsize=(6.5 * len(modes), 4.5), sharey=True, squeeze=False)
    for mode, axes in zip(modes, panels[0], strict=True):
        own = [r for r in results if r["mode"] == mode]
        for name in dict.fromkeys(name for r in own for name in r["values"]):
            points = [(r["bars"], r["values"][name]) for r in own if name in r["values"]]
            ours = name.startswith("ours")
            axes.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=2.5 if ours else 1)
        if group == sources.EVALUATION:
            claims(axes)
        axes.set(xscale="log", yscale="log", xlabel="bars", ylabel=own[0]["unit"], title=f"{group} ({mode})")
        ticks = sorted({r["bars"] for r in own})
        axes.set_xticks(ticks, [f"{bars:,}" for bars in ticks])
        axes.minorticks_off()
        axes.legend(fontsize=8)
    return saved(figure, path)


def claims(axes: Axes) -> None:
    """The sources' length scaling."""
    for name, colour in COLOURS.items():
        points = [(bars, row[name]) for bars, row in sources.LENGTHS.items() if not isinstance(row[name], str)]
        style = {"marker": "o", "markerfacecolor": "none", "linestyle": ":", "color": colour}
        axes.plot(*zip(*points, strict=True), label=f"source: {name}", **style)


def sharpes(rows: dict[str, Any], path: Path) -> str:
    """Sharpe ratios of the models and of the ablation with a standard error, the sources' beside them."""
    claimed = {name: row[0] for name, row in sources.MODELS.items()}
    claimed |= {name: sharpe for name, (_, sharpe) in sources.ABLATION.items()}
    ablation = [name for name in sources.ABLATION if name in rows]
    halves = (("models", [name for name in rows if name not in ablation]), ("ablation", ablation))
    figure, panels = plt.subplots(1, 2, figsize=(13, 5))
    for (title, names), axes in zip(halves, panels, strict=True):
        shown = [name for name in names if rows[name]["sharpe"] is not None]
        error = [(252 / rows[name]["sessions"]) ** 0.5 for name in shown]
        axes.errorbar(shown, [rows[name]["sharpe"] for name in shown], error, fmt="o", capsize=3, label="measured here")
        theirs = [name for name in shown if name in claimed]
        axes.scatter(theirs, [claimed[name] for name in theirs], facecolors="none", edgecolors="grey", label="source")
        axes.axhline(0, color="black", linewidth=0.5)
        axes.tick_params(axis="x", rotation=60)
        axes.set(title=title, ylabel="Sharpe ratio, one standard error")
        axes.legend(fontsize=8)
    return saved(figure, path)


def saved(figure: Any, path: Path) -> str:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path.name
