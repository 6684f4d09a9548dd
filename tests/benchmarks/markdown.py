"""The measured figures as one Markdown page; what the sources claim stands in columns of its own, marked as theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tests.benchmarks import sources
from tests.benchmarks.contest import short
from tests.benchmarks.sources import AIMS, Aim

Result = dict[str, Any]
BASELINES = ("LSTM", "Transformer")
HOW = """
All contenders of a case run in turn within each round, in one process. Figures are medians, ratios medians of the
per-round ratios. Mode `default` is the C library's allocator as it is; `keep` keeps freed memory with the process
(`models/training/allocator.py`), which spares the peers most of their time: it is the harder comparison. 64 channels
and 64 states, batch 16, unless said; Mamba with 16 states. "Source" columns are what others claim, on their own
machines and data; nothing in them was measured here.
"""


def page(found: dict[str, Any], drawn: Sequence[str]) -> str:
    """The whole page."""
    parts = [head(found), aims(found["results"]), *groups(found["results"]), lengths(found["results"])]
    parts += [memory(found["results"]), models(found["market"]), stocks(found["market"]), ablation(found["market"])]
    parts += ["## Charts\n", *(f"![{name}]({name})\n" for name in drawn)] if drawn else []
    return "\n".join(part for part in parts if part)


def in_short(result: Result) -> str:
    """One line for the terminal."""
    cells = [f"{name} {short(value)}" for name, value in result["values"].items()]
    cells += [f"{name} - ({why})" for name, why in result["failed"].items()]
    return f"{result['group']}, {result['bars']} bars, {result['unit']}: {', '.join(cells)}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def head(found: dict[str, Any]) -> str:
    at = found["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in at["packages"].items())
    told = [
        f"{at['at']}, {at['cpu']}, {at['cores']} cores (load {at['load']} at the start); Python {at['python']},",
        f"{packages}; float32, two threads, one where a bar comes at a time; {found['minutes']} minutes in all.",
        HOW,
    ]
    quick = ["**A quick try: short sequences and few rounds; no figure here is for quoting.**"] * found["quick"]
    return "\n".join(["# Models measured\n", *told, *quick, ""])


def aims(results: Sequence[Result]) -> str:
    """One row per aim: what was reached in each mode."""
    if not results:
        return "## Aims\n\nNot measured.\n"
    found = {(r["group"], r["bars"], r["mode"]): r for r in results}
    rows = []
    for aim in AIMS:
        reached = {mode: outcome(aim, found.get((aim.group, aim.bars, mode)), mode) for mode in ("keep", "default")}
        if any(reached.values()):
            cells = [reached[mode] or "-" for mode in ("keep", "default")]
            rows.append([aim.group, f"{aim.bars:,}", asked(aim), *cells])
    return "## Aims\n\n" + table(["work", "bars", "aim", "keep", "default"], rows)


def asked(aim: Aim) -> str:
    wanted = [f"≥ {times:g}× ({mode})" for mode, times in aim.times.items()]
    against = f"against {' or '.join(aim.peers)}: " if aim.peers else ""
    if aim.at_most is not None:
        wanted.append(f"≤ {aim.at_most:g} {'MiB' if 'memory' in aim.group else 'ms'}")
    return against + "; ".join([*wanted, *[aim.note] * bool(aim.note)])


def outcome(aim: Aim, result: Result | None, mode: str) -> str:
    """The ratio to the best peer there is, both figures, and whether it is what was asked for in this mode."""
    if result is None:
        return ""
    ours = result["values"].get(result["ours"])
    if ours is None:
        return f"- ({result['failed'].get(result['ours'], 'not measured')})"
    peers = [name for name in aim.peers if name in result["ratios"]]
    unit, verdict = result["unit"], []
    text = f"{short(ours)} {unit}"
    if peers:
        best = min(peers, key=lambda name: result["values"][name])
        ratio = result["ratios"][best]
        text = f"**{short(ratio)}×** ({best} {short(result['values'][best])}, ours {short(ours)} {unit})"
        verdict += [ratio >= aim.times[mode]] if mode in aim.times else []
    elif aim.peers:
        text += f"; no peer: {'; '.join(result['failed'].values()) or 'none ran'}"
    verdict += [ours <= aim.at_most] if aim.at_most is not None else []
    return text + (f", {'reached' if all(verdict) else 'not reached'}" if verdict else "")


def groups(results: Sequence[Result]) -> list[str]:
    """A table per group: contenders down, bars across, the two modes side by side, then who failed."""
    parts = []
    for group in dict.fromkeys(r["group"] for r in results):
        own = [r for r in results if r["group"] == group]
        names = dict.fromkeys(name for r in own for name in (*r["values"], *r["failed"]))
        header = ["contender", *(f"{r['bars']:,} {r['mode']}" for r in own)]
        rows = [[name, *(cell(r, name) for r in own)] for name in names]
        failed = {f"{name}: {why}" for r in own for name, why in r["failed"].items()}
        parts.append(f"## {group[0].upper()}{group[1:]} ({own[0]['unit']}; times the first in brackets)\n")
        parts.append(table(header, rows) + "".join(f"\n`-` {line}\n" for line in sorted(failed)))
    return parts


def cell(result: Result, name: str) -> str:
    if name not in result["values"]:
        return "-"
    ratio = f" ({short(result['ratios'][name])}×)" if name in result["ratios"] and name != result["ours"] else ""
    return short(result["values"][name]) + ratio


def lengths(results: Sequence[Result]) -> str:
    """Inventory S4-45."""
    own = {r["bars"]: r for r in results if r["group"] == sources.EVALUATION and r["mode"] == "keep"}
    if not own:
        return ""
    rows = []
    for bars, result in own.items():
        claimed = sources.LENGTHS.get(bars, {})
        mine = [cell_of(result, name) for name in (*BASELINES, "ours, S4", "ours, S4D")]
        rows.append([f"{bars:,}", *mine, *(said(claimed.get(name)) for name in (*BASELINES, "S4"))])
    header = ["bars", *BASELINES, "our S4", "our S4D", *(f"source: {name}" for name in (*BASELINES, "S4"))]
    return "## Length scaling: ms of inference, 4 layers, one sequence, mode keep (S4-45)\n\n" + table(header, rows)


def memory(results: Sequence[Result]) -> str:
    """Inventory S4-46."""
    own = {r["bars"]: r for r in results if r["group"] == sources.LAYER_MEMORY}
    if not own:
        return ""
    rows = []
    for bars, result in own.items():
        claimed = sources.MEMORY.get(bars, {})
        mine = [cell_of(result, name) for name in (*BASELINES, "ours, S4", "ours, S4D")]
        theirs = [f"{1000 * claimed[name]:,.0f}" if claimed else "-" for name in ("Transformer", "S4")]
        rows.append([f"{bars:,}", *mine, *theirs])
    header = ["bars", *BASELINES, "our S4", "our S4D", "source: Transformer (MB)", "source: S4 (MB)"]
    return (
        "## Memory: MiB at the peak of one layer's forward and backward pass, batch 16, and 2 at 16,384 (S4-46)\n\n"
        + table(header, rows)
    )


def cell_of(result: Result, name: str) -> str:
    return short(result["values"][name]) if name in result["values"] else "-"


def said(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else short(value)


def models(market: dict[str, Any]) -> str:
    """Inventory S4-44."""
    title = "## Models of one night (S4-44)\n\n"
    if "rows" not in market:
        return title + f"Not measured: {market['skipped']}.\n"
    rows = [
        [row["model"], *money(row), *effort(row), *source_cells(sources.MODELS.get(row["model"]), 5)]
        for row in market["rows"].values()
        if row["model"] not in sources.ABLATION
    ]
    header = ["model", "Sharpe", "Sortino", "max drawdown %", "training s a fold", "one bar ms", "a fold ms"]
    header += [f"source: {name}" for name in ("Sharpe", "Sortino", "max drawdown %", "training min", "inference ms")]
    return title + said_of(market) + table(header, rows) + failures(market)


def said_of(market: dict[str, Any]) -> str:
    """What the night was, and how far its Sharpe ratios are to be trusted."""
    rows = list(market["rows"].values())
    sized = next((row for row in rows if "assets" in row), {})
    sessions, doubt = rows[0]["sessions"], math.sqrt(252 / rows[0]["sessions"])
    changed = ", ".join(f"{name}={value}" for name, value in market["settings"].items())
    window = f"{rows[0]['first_session']} to {rows[0]['last_session']}"
    return (
        f"{market['market']}, {sized.get('assets', '-')} assets, {sessions} sessions out of sample ({window}), net of "
        f"costs, one seed. Settings other than a night's own: {changed}.\n"
        f"A Sharpe ratio of so many sessions has a standard error of about {doubt:.2f}: differences below it say "
        "nothing.\nTraining and inference are on one thread, fits side by side; one bar is all assets at once, a fold "
        f"{sized.get('fold_bars', '-')} bars of them.\nThe sources' figures are for hourly BTC/USDT, 2023 and 2024.\n\n"
    )


def money(row: dict[str, Any]) -> list[str]:
    return [number(row["sharpe"], ".2f"), number(row["sortino"], ".2f"), number(row["max_drawdown"], ".1f", 100)]


def effort(row: dict[str, Any]) -> list[str]:
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
    """Inventory MAM-29."""
    found = [market.get("rows", {}).get(name) for name in sources.STOCKS]
    if not any(found):
        return ""
    rows = [
        [
            name,
            *([number(row["annual_return"], ".1f", 100), *money(row)[::2], number(row["win_rate"], ".1f", 100)]),
            *source_cells(sources.STOCKS[name], 4),
        ]
        for name, row in zip(sources.STOCKS, found, strict=True)
        if row
    ]
    names = ("return a year %", "Sharpe", "max drawdown %", "sessions won %")
    header = ["model", *names, *(f"source: {name}" for name in names)]
    return f"## Stocks (MAM-29)\n\n{market['market']}; the source: S&P 500, two years.\n\n" + table(header, rows)


def ablation(market: dict[str, Any]) -> str:
    """Inventory S4-47."""
    if "rows" not in market:
        return ""
    rows = []
    for name, (words, claimed) in sources.ABLATION.items():
        row = market["rows"].get(name)
        mine = [*money(row), number(row["validation_loss"], ".4f"), effort(row)[0]] if row else ["-"] * 5
        rows.append([words, *mine, f"{claimed:.2f}"])
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
        "## Ablation (S4-47)\n\nOf the same night. The validation loss (lower is better) tells more apart.\n\n"
        + table(header, rows)
    )


def failures(market: dict[str, Any]) -> str:
    return "".join(f"\n`-` {name}: {why}\n" for name, why in market["failed"].items())
