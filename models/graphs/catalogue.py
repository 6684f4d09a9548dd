"""Name → graph: the one place to add one that a night can build.

A windowed graph is made of a window of bars, of their returns or of their trades, and has a rule; a membership graph is
one fact about every asset. What a profile says of windows and correlations counts for every graph that reads it; the
rest is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.graphs.correlation import CorrelationRule
from models.graphs.lead_lag import GrangerRule, LeadLagRule
from models.graphs.liquidity import TradeRule
from models.graphs.membership import INDUSTRY, SECTOR
from models.graphs.snapshot import GraphError
from models.graphs.windowed import GraphRule

# (window_bars, min_correlation, top_k, every_bars) → rule
WINDOWED: dict[str, Callable[[int, float, int, int], GraphRule]] = {
    "correlation": CorrelationRule,
    "spearman": lambda w, least, k, every: CorrelationRule(w, least, k, every, measure="spearman"),
    "ewma": lambda w, least, k, every: CorrelationRule(w, least, k, every, measure="ewma", half_life_bars=w / 3),
    "partial": lambda w, least, k, every: CorrelationRule(w, least / 5, k, every, measure="partial"),
    "spanning_tree": lambda w, least, k, every: CorrelationRule(w, least, k, every, keep="mst"),
    "lead_lag": lambda w, least, k, every: LeadLagRule(w, k, every, max_lag=max(1, min(5, w // 4))),
    "granger": lambda w, least, k, every: GrangerRule(w, k, every),
}
# the same, made of trades and not of returns: flows move together less than prices do
TRADED: dict[str, Callable[[int, float, int, int], GraphRule]] = {
    "order_flow": lambda w, least, k, every: TradeRule("order_flow", w, least / 5, k, every),
    "flow_between": lambda w, least, k, every: TradeRule("flow_between", w, 0.0, k, every),
    "liquidity": lambda w, least, k, every: TradeRule("liquidity", w, least / 5, k, every),
    "proximity": lambda w, least, k, every: TradeRule("proximity", w, 0.0, k, every),
}
MEMBERSHIPS = (SECTOR, INDUSTRY)
GRAPHS = (*WINDOWED, *TRADED, *MEMBERSHIPS)


def check_names(names: Sequence[str]) -> None:
    """Raises GraphError for a name that no graph has."""
    if unknown := [name for name in names if name not in GRAPHS]:
        raise GraphError(f"unknown graph {unknown[0]!r}; those there are: {', '.join(GRAPHS)}")


def windowed_rules(
    graphs: Sequence[str], window_bars: int, min_correlation: float, top_k: int, every_bars: int
) -> dict[str, GraphRule]:
    """The rules of the windowed ones among ``graphs``, by name. Raises GraphError."""
    check_names(graphs)
    said = (window_bars, min_correlation, top_k, every_bars)
    made = WINDOWED | TRADED
    return {name: made[name](*said) for name in graphs if name in made}
