"""The measured figures as one Markdown page; the claims of the source articles are in columns of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from models.scoring.bootstrap import interval
from tests.benchmarks import sources
from tests.benchmarks.contest import three_digits
from tests.benchmarks.sources import AIMS, Aim

Result = dict[str, Any]
BASELINES = ("LSTM", "Transformer")
METHOD = """
All contenders of a case run in turn within each round, in one process. Figures are medians, ratios medians of the
per-round ratios. Mode `default` is the C library's allocator unchanged; in mode `keep` the process keeps freed memory
(`models/training/allocator.py`), which makes the peers much faster: it is the harder comparison. 64 channels and 64
states, batch 16, unless stated otherwise; Mamba with 16 states. "Source" columns are the claims of articles, for their
machines and data; nothing in them was measured here.
"""


def page(report: dict[str, Any], charts: Sequence[str]) -> str:
    """The whole page, with the ``charts`` of these file names."""
    parts = [head(report), aims(report["results"]), *groups(report["results"]), lengths(report["results"])]
    parts += [memory(report["results"]), models(report["market"]), stocks(report["market"]), ablation(report["market"])]
    parts += ["## Charts\n", *(f"![{name}]({name})\n" for name in charts)] if charts else []
    return "\n".join(part for part in parts if part)


def summary_line(result: Result) -> str:
    """A result in one line for the terminal."""
    cells = [f"{name} {three_digits(value)}" for name, value in result["values"].items()]
    cells += [f"{name} - ({error})" for name, error in result["failed"].items()]
    return f"{result['group']}, {result['bars']} bars, {result['unit']}: {', '.join(cells)}"


def interval_cell(value: float, draws: np.ndarray, form: str) -> str:
    """A value and the 95% interval of its ``draws``, in the number format ``form``."""
    low, high = interval(draws)
    return f"{value:{form}} ({low:{form}} … {high:{form}})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def head(report: dict[str, Any]) -> str:
    """The title, the machine and the method."""
    machine = report["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    lines = [
        f"{machine['at']}, {machine['cpu']}, {machine['cores']} cores (load {machine['load']} at the start); "
        f"Python {machine['python']},",
        f"{packages}; float32, two threads, one where bars arrive one at a time; {report['minutes']} minutes in all.",
        METHOD,
    ]
    quick = ["**A quick run: short sequences and few rounds; do not quote its figures.**"] * report["quick"]
    return "\n".join(["# Models measured\n", *lines, *quick, ""])


def aims(results: Sequence[Result]) -> str:
    """The table of aims: one row for each, with our figure in each mode."""
    if not results:
        return "## Aims\n\nNot measured.\n"
    by_case = {(r["group"], r["bars"], r["mode"]): r for r in results}
    rows = []
    for aim in AIMS:
        outcomes = {mode: outcome(aim, by_case.get((aim.group, aim.bars, mode)), mode) for mode in ("keep", "default")}
        if any(outcomes.values()):
            cells = [outcomes[mode] or "-" for mode in ("keep", "default")]
            rows.append([aim.group, f"{aim.bars:,}", describe_aim(aim), *cells])
    return "## Aims\n\n" + table(["work", "bars", "aim", "keep", "default"], rows)


def describe_aim(aim: Aim) -> str:
    """The aim in words."""
    goals = [f"≥ {times:g}× ({mode})" for mode, times in aim.times.items()]
    against = f"against {' or '.join(aim.peers)}: " if aim.peers else ""
    if aim.at_most is not None:
        goals.append(f"≤ {aim.at_most:g} {'MiB' if 'memory' in aim.group else 'ms'}")
    return against + "; ".join([*goals, *[aim.note] * bool(aim.note)])


def outcome(aim: Aim, result: Result | None, mode: str) -> str:
    """The ratio of the best peer that ran to ours, both figures, and whether they reach the aim in this mode."""
    if result is None:
        return ""
    ours = result["values"].get(result["ours"])
    if ours is None:
        return f"- ({result['failed'].get(result['ours'], 'not measured')})"
    peers = [name for name in aim.peers if name in result["ratios"]]
    unit = result["unit"]
    verdicts = []
    text = f"{three_digits(ours)} {unit}"
    if peers:
        best = min(peers, key=lambda name: result["values"][name])
        ratio = result["ratios"][best]
        peer_value = three_digits(result["values"][best])
        text = f"**{three_digits(ratio)}×** ({best} {peer_value}, ours {three_digits(ours)} {unit})"
        verdicts += [ratio >= aim.times[mode]] if mode in aim.times else []
    elif aim.peers:
        text += f"; no peer: {'; '.join(result['failed'].values()) or 'none ran'}"
    verdicts += [ours <= aim.at_most] if aim.at_most is not None else []
    return text + (f", {'reached' if all(verdicts) else 'not reached'}" if verdicts else "")


def groups(results: Sequence[Result]) -> list[str]:
    """A table for each group: a row for each contender, a column for each number of bars and mode; then the errors."""
    parts = []
    for group in dict.fromkeys(r["group"] for r in results):
        cases = [r for r in results if r["group"] == group]
        names = dict.fromkeys(name for r in cases for name in (*r["values"], *r["failed"]))
        header = ["contender", *(f"{r['bars']:,} {r['mode']}" for r in cases)]
        rows = [[name, *(cell_with_ratio(r, name) for r in cases)] for name in names]
        failed = {f"{name}: {error}" for r in cases for name, error in r["failed"].items()}
        parts.append(f"## {group[0].upper()}{group[1:]} ({cases[0]['unit']}; ratio to the first in brackets)\n")
        parts.append(table(header, rows) + "".join(f"\n`-` {line}\n" for line in sorted(failed)))
    return parts


def cell_with_ratio(result: Result, name: str) -> str:
    """A contender's figure, and its ratio to ours in brackets."""
    if name not in result["values"]:
        return "-"
    ratio = f" ({three_digits(result['ratios'][name])}×)" if name in result["ratios"] and name != result["ours"] else ""
    return three_digits(result["values"][name]) + ratio


def lengths(results: Sequence[Result]) -> str:
    """Length scaling (S4-45): inference time by number of bars."""
    by_bars = {r["bars"]: r for r in results if r["group"] == sources.EVALUATION and r["mode"] == "keep"}
    if not by_bars:
        return ""
    rows = []
    for bars, result in by_bars.items():
        claimed = sources.LENGTHS.get(bars, {})
        mine = [cell(result, name) for name in (*BASELINES, "ours, S4", "ours, S4D")]
        rows.append([f"{bars:,}", *mine, *(claim_cell(claimed.get(name)) for name in (*BASELINES, "S4"))])
    header = ["bars", *BASELINES, "our S4", "our S4D", *(f"source: {name}" for name in (*BASELINES, "S4"))]
    return "## Length scaling: ms of inference, 4 layers, one sequence, mode keep (S4-45)\n\n" + table(header, rows)


def memory(results: Sequence[Result]) -> str:
    """Peak memory by number of bars (S4-46)."""
    by_bars = {r["bars"]: r for r in results if r["group"] == sources.LAYER_MEMORY}
    if not by_bars:
        return ""
    rows = []
    for bars, result in by_bars.items():
        claimed = sources.MEMORY.get(bars, {})
        mine = [cell(result, name) for name in (*BASELINES, "ours, S4", "ours, S4D")]
        theirs = [f"{1000 * claimed[name]:,.0f}" if claimed else "-" for name in ("Transformer", "S4")]
        rows.append([f"{bars:,}", *mine, *theirs])
    header = ["bars", *BASELINES, "our S4", "our S4D", "source: Transformer (MB)", "source: S4 (MB)"]
    return (
        "## Memory: MiB at the peak of one layer's forward and backward pass, batch 16, and 2 at 16,384 (S4-46)\n\n"
        + table(header, rows)
    )


def cell(result: Result, name: str) -> str:
    return three_digits(result["values"][name]) if name in result["values"] else "-"


def claim_cell(value: float | str | None) -> str:
    """A claim of the source articles; "-" if there is none."""
    return "-" if value is None else value if isinstance(value, str) else three_digits(value)


def models(market: dict[str, Any]) -> str:
    """The models of one night (S4-44)."""
    title = "## Models of one night (S4-44)\n\n"
    if "rows" not in market:
        return title + f"Not measured: {market['skipped']}.\n"
    rows = [
        [row["model"], *return_cells(row), *time_cells(row), *source_cells(sources.MODELS.get(row["model"]), 5)]
        for row in market["rows"].values()
        if row["model"] not in sources.ABLATION
    ]
    header = ["model", "Sharpe", "Sortino", "max drawdown %", "training s a fold", "one bar ms", "a fold ms"]
    header += [f"source: {name}" for name in ("Sharpe", "Sortino", "max drawdown %", "training min", "inference ms")]
    return title + describe_night(market) + table(header, rows) + failures(market)


def describe_night(market: dict[str, Any]) -> str:
    """The night in words, with the standard error of its Sharpe ratios."""
    rows = list(market["rows"].values())
    network_row = next((row for row in rows if "assets" in row), {})
    sessions = rows[0]["sessions"]
    standard_error = math.sqrt(252 / rows[0]["sessions"])
    changed = ", ".join(f"{name}={value}" for name, value in market["settings"].items())
    window = f"{rows[0]['first_session']} to {rows[0]['last_session']}"
    return (
        f"{market['market']}, {network_row.get('assets', '-')} assets, {sessions} sessions out of sample ({window}), "
        f"net of costs, one seed. Settings that differ from those of a night: {changed}.\n"
        f"A Sharpe ratio of that many sessions has a standard error of about {standard_error:.2f}: smaller differences "
        "mean nothing.\nTraining and inference use one thread, fits run side by side; one bar is all assets at once, a "
        f"fold is {network_row.get('fold_bars', '-')} bars of them.\nThe source articles' figures are for hourly "
        "BTC/USDT, 2023 and 2024.\n\n"
    )


def return_cells(row: dict[str, Any]) -> list[str]:
    return [number(row["sharpe"], ".2f"), number(row["sortino"], ".2f"), number(row["max_drawdown"], ".1f", 100)]


def time_cells(row: dict[str, Any]) -> list[str]:
    return [
        number(row.get("train_s"), ".1f"),
        number(row.get("bar_ms"), ".2f"),
        number(row.get("fold_ms"), ".0f"),
    ]


def number(value: float | None, spec: str, scale: float = 1) -> str:
    return "-" if value is None else format(scale * value, spec)


def source_cells(claimed: Sequence[float] | None, count: int) -> list[str]:
    return ["-"] * count if claimed is None else [f"{value:g}" for value in claimed]


def stocks(market: dict[str, Any]) -> str:
    """The models that the source article measured on stocks (MAM-29)."""
    measured = [market.get("rows", {}).get(name) for name in sources.STOCKS]
    if not any(measured):
        return ""
    rows = [
        [
            name,
            *([number(row["annual_return"], ".1f", 100), *return_cells(row)[::2], number(row["win_rate"], ".1f", 100)]),
            *source_cells(sources.STOCKS[name], 4),
        ]
        for name, row in zip(sources.STOCKS, measured, strict=True)
        if row
    ]
    names = ("return a year %", "Sharpe", "max drawdown %", "sessions won %")
    header = ["model", *names, *(f"source: {name}" for name in names)]
    return f"## Stocks (MAM-29)\n\n{market['market']}; the source article: S&P 500, two years.\n\n" + table(
        header, rows
    )


def ablation(market: dict[str, Any]) -> str:
    """The ablation of S4 (S4-47)."""
    if "rows" not in market:
        return ""
    rows = []
    for name, (description, claimed) in sources.ABLATION.items():
        row = market["rows"].get(name)
        mine = [*return_cells(row), number(row["validation_loss"], ".4f"), time_cells(row)[0]] if row else ["-"] * 5
        rows.append([description, *mine, f"{claimed:.2f}"])
    header = [
        "S4 with",
        "Sharpe",
        "Sortino",
        "max drawdown %",
        "validation loss",
        "training s a fold",
        "source: Sharpe",
    ]
    return (
        "## Ablation (S4-47)\n\nOf the same night. The validation loss (lower is better) separates variants better.\n\n"
        + table(header, rows)
    )


def failures(market: dict[str, Any]) -> str:
    return "".join(f"\n`-` {name}: {error}\n" for name, error in market["failed"].items())
