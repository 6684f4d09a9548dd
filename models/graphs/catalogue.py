"""All graphs, by name, that a night can build; a night is the run for one as-of date.

A windowed graph has a rule, which computes edges from a window of bars: from their returns or from their trades. A
membership graph links all assets of one group. The settings window_bars, min_correlation, top_k and every_bars come
from the night's profile and apply to every windowed graph. An entry below holds what differs between the graphs. To add
a graph, add one entry; ``windowed.GraphRule`` describes what its rule needs.
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

# graphs of windows of returns; a partial correlation excludes what all assets share, so its threshold is lower
RETURN_GRAPHS: dict[str, RuleBuilder] = {
    "correlation": CorrelationRule,
    "spearman": lambda window, min_corr, k, every: CorrelationRule(window, min_corr, k, every, measure="spearman"),
    "ewma": lambda window, min_corr, k, every: CorrelationRule(
        window, min_corr, k, every, measure="ewma", half_life_bars=window / 3
    ),
    "partial": lambda window, min_corr, k, every: CorrelationRule(window, min_corr / 5, k, every, measure="partial"),
    "spanning_tree": lambda window, min_corr, k, every: CorrelationRule(window, min_corr, k, every, keep="mst"),
    "lead_lag": lambda window, min_corr, k, every: LeadLagRule(window, k, every, max_lag=max(1, min(5, window // 4))),
    "granger": lambda window, min_corr, k, every: GrangerRule(window, k, every),
}
# graphs of windows of trades; flows correlate less than prices, so their threshold is lower
TRADE_GRAPHS: dict[str, RuleBuilder] = {
    "order_flow": lambda window, min_corr, k, every: TradeRule("order_flow", window, min_corr / 5, k, every),
    "flow_between": lambda window, min_corr, k, every: TradeRule("flow_between", window, 0.0, k, every),
    "liquidity": lambda window, min_corr, k, every: TradeRule("liquidity", window, min_corr / 5, k, every),
    "proximity": lambda window, min_corr, k, every: TradeRule("proximity", window, 0.0, k, every),
}
MEMBERSHIP_GRAPHS = (SECTOR, INDUSTRY)
GRAPHS = (*RETURN_GRAPHS, *TRADE_GRAPHS, *MEMBERSHIP_GRAPHS)


def check_names(names: Sequence[str]) -> None:
    """Raises GraphError for a name that is not in GRAPHS."""
    unknown = [name for name in names if name not in GRAPHS]
    if unknown:
        raise GraphError(f"unknown graph {unknown[0]!r}; choose one of: {', '.join(GRAPHS)}")


def windowed_rules(
    graphs: Sequence[str], window_bars: int, min_correlation: float, top_k: int, every_bars: int
) -> dict[str, GraphRule]:
    """The rule of each windowed graph in ``graphs``, by name; membership graphs have none.

    Raises GraphError for an unknown name, and for settings that a rule does not accept.
    """
    check_names(graphs)
    builders = RETURN_GRAPHS | TRADE_GRAPHS
    return {
        name: builders[name](window_bars, min_correlation, top_k, every_bars) for name in graphs if name in builders
    }
