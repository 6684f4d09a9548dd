"""Every windowed graph of the catalogue has a rule, and its snapshots depend on no later bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from models.graphs.catalogue import GRAPHS, RETURN_GRAPHS, TRADE_GRAPHS, windowed_rules
from models.graphs.lead_lag import LeadLagRule
from models.graphs.snapshot import GraphError, to_adjacency
from models.graphs.windowed import build_snapshots
from models.panel import Panel

Bars = Callable[..., Panel]
RULES = windowed_rules(GRAPHS, window_bars=40, min_correlation=0.2, top_k=2, every_bars=7)


def test_every_windowed_graph_has_a_rule() -> None:
    assert set(RULES) == {*RETURN_GRAPHS, *TRADE_GRAPHS}


def test_the_error_for_an_unknown_graph_states_its_name() -> None:
    with pytest.raises(GraphError, match="unknown graph 'friendship'; choose one of: correlation"):
        windowed_rules(("correlation", "friendship"), window_bars=40, min_correlation=0.2, top_k=2, every_bars=7)


def add_to_returns(bars: Panel, added_returns: np.ndarray) -> Panel:
    """``bars`` with ``added_returns`` (t, n) added to their log total returns."""
    column = bars.columns.index("total_return")
    values = bars.values.copy()
    values[:, :, column] = (1 + values[:, :, column]) * np.exp(added_returns) - 1
    return replace(bars, values=values)


def add_relations(bars: Panel) -> Panel:
    """``bars`` in which asset 0 leads asset 2 by one bar, and asset 4 is correlated with asset 6."""
    returns = np.nan_to_num(np.log1p(bars.column("total_return")))
    added_returns = np.zeros_like(returns)
    added_returns[1:, 2] = 2 * returns[:-1, 0]
    added_returns[:, 4] = 2 * returns[:, 6]
    return add_to_returns(bars, added_returns)


@pytest.mark.parametrize("graph", RETURN_GRAPHS)
def test_a_snapshot_depends_on_its_own_bar_and_on_no_later_bar(random_bars: Bars, graph: str) -> None:
    """Field note 9: a graph must not use later bars. The weights are equal to the bit, also with late listings and
    missing bars."""
    for seed in range(3):
        bars = add_relations(random_bars(160, 7, seed=seed, holes=0.005 * seed, late=seed > 1))
        whole = build_snapshots(graph, bars, RULES[graph])
        for n_bars in (43, 90, 141):
            truncated = build_snapshots(graph, bars.slice_bars(0, n_bars), RULES[graph])
            assert [s.as_of for s in truncated] == [s.as_of for s in whole if s.as_of < bars.ts[n_bars]]
            for a, b in zip(truncated, whole, strict=False):
                for actual, expected in ((a.src, b.src), (a.dst, b.dst), (a.weight, b.weight)):
                    np.testing.assert_array_equal(actual, expected)
        last_snapshot = next(s for s in reversed(whole) if len(s.src))
        last_bar = int(np.searchsorted(bars.ts, last_snapshot.as_of))
        added_returns = np.zeros(bars.mask.shape)
        added_returns[last_bar] = np.array([0.1, -0.2, 0.15, -0.1, 0.3, -0.05, -0.3])
        (changed_snapshot,) = build_snapshots(graph, add_to_returns(bars, added_returns), RULES[graph], [last_bar])
        assert not np.array_equal(changed_snapshot.weight, last_snapshot.weight)


@pytest.mark.parametrize("end", [-1, 39, 160])
def test_a_snapshot_without_a_full_window_of_bars_is_refused(random_bars: Bars, end: int) -> None:
    with pytest.raises(GraphError, match=f"correlation: no window of 40 returns ends at bar {end}; .* end at 40 … 159"):
        build_snapshots("correlation", random_bars(160, 7), RULES["correlation"], [end])


@pytest.mark.parametrize("window_bars", [5, 7, 13, 40])
def test_every_graph_is_built_from_the_shortest_window_that_settings_allow(random_bars: Bars, window_bars: int) -> None:
    rules = windowed_rules(tuple(RETURN_GRAPHS), window_bars, min_correlation=0.2, top_k=2, every_bars=7)
    for graph, rule in rules.items():
        snapshots = build_snapshots(graph, random_bars(60, 7), rule)
        assert len(snapshots) == sum(end >= window_bars for end in range(0, 60, 7))


@pytest.mark.parametrize("graph", RETURN_GRAPHS)
def test_snapshots_record_their_window_and_direction(random_bars: Bars, graph: str) -> None:
    bars = random_bars(160, 7)
    first_snapshot = build_snapshots(graph, bars, RULES[graph])[0]  # at bar 42, the first multiple of 7 with 40 returns
    assert (first_snapshot.as_of, first_snapshot.window_start) == (bars.ts[42], bars.ts[3])
    assert first_snapshot.directed == (graph in ("lead_lag", "granger"))


def test_a_leader_becomes_the_follower_when_time_is_reversed() -> None:
    """Asset 0 leads asset 1. In the adjacency that networks read, [1, 0] is the edge 0 → 1."""
    rng = np.random.default_rng(0)
    returns = 0.01 * rng.normal(size=(60, 3))
    returns[1:, 1] += 2 * returns[:-1, 0]
    rule = LeadLagRule(window_bars=59, top_k=3, every_bars=59)
    ts = np.datetime64("2024-01-01", "us") + np.arange(60) * np.timedelta64(1, "D")
    mask = np.ones((60, 3), dtype=bool)

    def make_adjacency(values: np.ndarray) -> np.ndarray:
        bars = Panel(ts, ("A", "B", "C"), ("total_return",), np.expm1(values)[:, :, None], mask)
        return to_adjacency(build_snapshots("lead_lag", bars, rule), 3)[0]

    forward = make_adjacency(returns)
    backward = make_adjacency(returns[::-1])
    assert forward[1, 0] > 0.5
    assert forward[0, 1] == 0
    assert backward[0, 1] > 0.5
    assert backward[1, 0] == 0
