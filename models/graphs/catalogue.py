"""The list of all graphs that a night can build, by name. A new graph is one entry here; ``windowed.GraphRule``
describes what its rule needs.

A windowed graph has a rule, which makes edges of a window of bars: of their returns or of their trades. A membership
graph links all assets of one group. The settings of a profile (window_bars, min_correlation, top_k, every_bars) apply
to every windowed graph; what differs from one graph to another is written in its entry.
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
RuleBuilder = Callable[[int, float, int, int], GraphRule]

# graphs of windows of returns
RETURN_GRAPHS: dict[str, RuleBuilder] = {
    "correlation": CorrelationRule,
    "spearman": lambda w, least, k, every: CorrelationRule(w, least, k, every, measure="spearman"),
    "ewma": lambda w, least, k, every: CorrelationRule(w, least, k, every, measure="ewma", half_life_bars=w / 3),
    "partial": lambda w, least, k, every: CorrelationRule(w, least / 5, k, every, measure="partial"),
    "spanning_tree": lambda w, least, k, every: CorrelationRule(w, least, k, every, keep="mst"),
    "lead_lag": lambda w, least, k, every: LeadLagRule(w, k, every, max_lag=max(1, min(5, w // 4))),
    "granger": lambda w, least, k, every: GrangerRule(w, k, every),
}
# graphs of windows of trades; the threshold is lower because flows move together less than prices do
TRADE_GRAPHS: dict[str, RuleBuilder] = {
    "order_flow": lambda w, least, k, every: TradeRule("order_flow", w, least / 5, k, every),
    "flow_between": lambda w, least, k, every: TradeRule("flow_between", w, 0.0, k, every),
    "liquidity": lambda w, least, k, every: TradeRule("liquidity", w, least / 5, k, every),
    "proximity": lambda w, least, k, every: TradeRule("proximity", w, 0.0, k, every),
}
MEMBERSHIPS = (SECTOR, INDUSTRY)
GRAPHS = (*RETURN_GRAPHS, *TRADE_GRAPHS, *MEMBERSHIPS)


def check_names(names: Sequence[str]) -> None:
    """Raises GraphError for a name that is not in GRAPHS."""
    if unknown := [name for name in names if name not in GRAPHS]:
        raise GraphError(f"unknown graph {unknown[0]!r}; choose one of: {', '.join(GRAPHS)}")


def windowed_rules(
    graphs: Sequence[str], window_bars: int, min_correlation: float, top_k: int, every_bars: int
) -> dict[str, GraphRule]:
    """The rules of the windowed graphs among ``graphs``, by name. Raises GraphError for an unknown name or settings
    that a rule does not accept."""
    check_names(graphs)
    builders = RETURN_GRAPHS | TRADE_GRAPHS
    return {
        name: builders[name](window_bars, min_correlation, top_k, every_bars) for name in graphs if name in builders
    }
