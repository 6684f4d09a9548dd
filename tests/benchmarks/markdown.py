"""The report as a Markdown page: our measured figures, and the claims of the source articles in separate columns.

A *report* is the contents of models.json, see models_table.py. A *result* is one case of it, see ``cases.Result``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from models.scoring.bootstrap import percentile_interval
from tests.benchmarks import sources
from tests.benchmarks.contest import three_digits
from tests.benchmarks.sources import AIMS, Aim

Result = dict[str, Any]
BASELINES = ("LSTM", "Transformer")
SESSIONS_PER_YEAR = 252
METHOD = """
In each round, all contenders of a case run once, one after the other, in one process. A figure is the median of the
rounds, a ratio the median of the rounds' ratios. Mode `default` leaves the C library's allocator unchanged. In mode
`keep` the process keeps freed memory (`models/training/allocator.py`). This makes the peers much faster, so it is the
harder comparison. Layers have 64 channels, 64 states and batch 16 unless stated otherwise; Mamba has 16 states.
"Source" columns contain the claims of articles, for their machines and data; nothing in them was measured here.
"""


def page(report: dict[str, Any], charts: Sequence[str]) -> str:
    """The whole page; ``charts`` are the file names of its charts."""
    parts = [head(report), aims(report["results"]), *groups(report["results"]), lengths(report["results"])]
    parts += [memory(report["results"]), models(report["market"]), stocks(report["market"]), ablation(report["market"])]
    parts += ["## Charts\n", *(f"![{name}]({name})\n" for name in charts)] if charts else []
    return "\n".join(part for part in parts if part)


def summary_line(result: Result) -> str:
    """A result as one line for the terminal."""
    cells = [f"{name} {three_digits(value)}" for name, value in result["values"].items()]
    cells += [f"{name} - ({error})" for name, error in result["failed"].items()]
    return f"{result['group']}, {result['bars']} bars, {result['unit']}: {', '.join(cells)}"


def interval_cell(value: float, draws: np.ndarray, form: str) -> str:
    """A value and the 95% interval of its bootstrap ``draws``, in the number format ``form``."""
    low, high = percentile_interval(draws)
    return f"{value:{form}} ({low:{form}} … {high:{form}})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with these column names and rows of cells."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def head(report: dict[str, Any]) -> str:
    """The title of the page, the machine and the method."""
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
    """The table of aims: one row per aim, with our figure in each mode."""
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
    """The aim as text, such as "against LSTM: ≥ 1× (keep)"."""
    goals = [f"≥ {times:g}× ({mode})" for mode, times in aim.times.items()]
    against = f"against {' or '.join(aim.peers)}: " if aim.peers else ""
    if aim.at_most is not None:
        goals.append(f"≤ {aim.at_most:g} {'MiB' if 'memory' in aim.group else 'ms'}")
    return against + "; ".join([*goals, *[aim.note] * bool(aim.note)])


def outcome(aim: Aim, result: Result | None, mode: str) -> str:
    """The ratio of the fastest peer's figure to ours, both figures, and whether we reach the aim in this mode.

    Empty if the case was not measured in this mode.
    """
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
    """One table per group, then its errors: a row per contender, and a column per number of bars and mode."""
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
    """A contender's figure, and in brackets its ratio to ours; "-" if there is no figure."""
    if name not in result["values"]:
        return "-"
    ratio = f" ({three_digits(result['ratios'][name])}×)" if name in result["ratios"] and name != result["ours"] else ""
    return three_digits(result["values"][name]) + ratio


def lengths(results: Sequence[Result]) -> str:
    """The table of length scaling (S4-45): inference time by number of bars."""
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
    """The table of peak memory by number of bars (S4-46)."""
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
    """A contender's figure; "-" if there is none."""
    return three_digits(result["values"][name]) if name in result["values"] else "-"


def claim_cell(value: float | str | None) -> str:
    """A claim of the source articles; "-" if there is none."""
    return "-" if value is None else value if isinstance(value, str) else three_digits(value)


def models(market: dict[str, Any]) -> str:
    """The table of the models of one night (S4-44), the run for one as-of date."""
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
    """A description of the night, with the standard error of its Sharpe ratios."""
    rows = list(market["rows"].values())
    network_row = next((row for row in rows if "assets" in row), {})
    sessions = rows[0]["sessions"]
    standard_error = math.sqrt(SESSIONS_PER_YEAR / sessions)
    changed = ", ".join(f"{name}={value}" for name, value in market["settings"].items())
    window = f"{rows[0]['first_session']} to {rows[0]['last_session']}"
    return (
        f"{market['market']}, {network_row.get('assets', '-')} assets, {sessions} sessions out of sample ({window}), "
        f"net of costs, one seed. Changes to a night's settings: {changed}.\n"
        f"Over so many sessions, a Sharpe ratio has a standard error of about {standard_error:.2f}: smaller "
        "differences have no meaning.\nTraining and inference use one thread, and fits run in parallel. One bar "
        f"contains all assets, and a fold has {network_row.get('fold_bars', '-')} bars.\nThe source "
        "articles' figures are for hourly BTC/USDT, 2023 and 2024.\n\n"
    )


def return_cells(row: dict[str, Any]) -> list[str]:
    """Sharpe ratio, Sortino ratio and maximum drawdown in %."""
    return [number(row["sharpe"], ".2f"), number(row["sortino"], ".2f"), number(row["max_drawdown"], ".1f", 100)]


def time_cells(row: dict[str, Any]) -> list[str]:
    """Seconds of a fit, milliseconds of one bar, and milliseconds of a fold's forecasts."""
    return [
        number(row.get("train_s"), ".1f"),
        number(row.get("bar_ms"), ".2f"),
        number(row.get("fold_ms"), ".0f"),
    ]


def number(value: float | None, spec: str, scale: float = 1) -> str:
    """``scale`` times the value in the number format ``spec``; "-" for None."""
    return "-" if value is None else format(scale * value, spec)


def source_cells(claimed: Sequence[float] | None, count: int) -> list[str]:
    """The claims of the source articles; ``count`` times "-" if there are none."""
    return ["-"] * count if claimed is None else [f"{value:g}" for value in claimed]


def stocks(market: dict[str, Any]) -> str:
    """The table of the models that the source article measured on stocks (MAM-29)."""
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
    """The table of the ablation of S4 (S4-47)."""
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
        "## Ablation (S4-47)\n\nFrom the same night. The validation loss (lower is better) separates the variants "
        "better.\n\n" + table(header, rows)
    )


def failures(market: dict[str, Any]) -> str:
    """One line per model or variant that failed, with its error."""
    return "".join(f"\n`-` {name}: {error}\n" for name, error in market["failed"].items())
