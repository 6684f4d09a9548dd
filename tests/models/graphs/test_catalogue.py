"""Every windowed graph of the catalogue: nothing from the future, and the names that settings know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from flows.settings import Graph
from models.graphs.catalogue import GRAPHS, TRADED, WINDOWED, windowed_rules
from models.graphs.lead_lag import LeadLagRule
from models.graphs.snapshot import GraphError, to_adjacency
from models.graphs.windowed import snapshots
from models.panel import Panel

Bars = Callable[..., Panel]
RULES = windowed_rules(GRAPHS, window_bars=40, min_correlation=0.2, top_k=2, every_bars=7)


def test_settings_name_the_graphs_there_are() -> None:
    assert set(get_args(Graph)) == set(GRAPHS)
    assert set(RULES) == {*WINDOWED, *TRADED}


def test_a_graph_that_does_not_exist_is_named() -> None:
    with pytest.raises(GraphError, match="unknown graph 'friendship'; those there are: correlation"):
        windowed_rules(("correlation", "friendship"), 40, 0.2, 2, 7)


def with_returns(bars: Panel, change: np.ndarray) -> Panel:
    """``bars`` whose log total returns are ``change`` (t, n) more."""
    at = bars.columns.index("total_return")
    values = bars.values.copy()
    values[:, :, at] = (1 + values[:, :, at]) * np.exp(change) - 1
    return replace(bars, values=values)


def planted(bars: Panel) -> Panel:
    """``bars`` in which asset 0 leads asset 2 by a bar and asset 4 moves with asset 6."""
    returns = np.nan_to_num(np.log1p(bars.column("total_return")))
    change = np.zeros_like(returns)
    change[1:, 2] = 2 * returns[:-1, 0]
    change[:, 4] = 2 * returns[:, 6]
    return with_returns(bars, change)


@pytest.mark.parametrize("graph", WINDOWED)
def test_later_bars_never_change_a_snapshot_and_its_own_bar_does(random_bars: Bars, graph: str) -> None:
    """Field note 9, to the bit, with late listings and holes."""
    for seed in range(3):
        bars = planted(random_bars(160, 7, seed=seed, holes=0.005 * seed, late=seed > 1))
        whole = snapshots(graph, bars, RULES[graph])
        for cut in (43, 90, 141):
            again = snapshots(graph, bars.rows(0, cut), RULES[graph])
            assert [s.as_of for s in again] == [s.as_of for s in whole if s.as_of < bars.ts[cut]]
            for a, b in zip(again, whole, strict=False):
                for left, right in ((a.src, b.src), (a.dst, b.dst), (a.weight, b.weight)):
                    np.testing.assert_array_equal(left, right)
        last = next(s for s in reversed(whole) if len(s.src))  # fails where the graph has no edge to change
        at = int(np.searchsorted(bars.ts, last.as_of))
        moved = np.zeros(bars.mask.shape)
        moved[at] = np.array([0.1, -0.2, 0.15, -0.1, 0.3, -0.05, -0.3])
        (changed,) = snapshots(graph, with_returns(bars, moved), RULES[graph], [at])
        assert not np.array_equal(changed.weight, last.weight)


@pytest.mark.parametrize("end", [-1, 39, 160])
def test_a_window_that_the_bars_do_not_hold_is_refused(random_bars: Bars, end: int) -> None:
    with pytest.raises(GraphError, match=f"correlation: no window of 40 returns ends at bar {end}; .* end at 40 … 159"):
        snapshots("correlation", random_bars(160, 7), RULES["correlation"], [end])


@pytest.mark.parametrize("window_bars", [5, 7, 13, 40])
def test_every_graph_is_built_of_the_shortest_window_that_settings_take(random_bars: Bars, window_bars: int) -> None:
    for graph, rule in windowed_rules(tuple(WINDOWED), window_bars, 0.2, 2, 7).items():
        assert len(snapshots(graph, random_bars(60, 7), rule)) == len(range(0, 60, 7)) - -(-window_bars // 7)


@pytest.mark.parametrize("graph", WINDOWED)
def test_snapshots_say_their_window_and_direction(random_bars: Bars, graph: str) -> None:
    bars = random_bars(160, 7)
    first = snapshots(graph, bars, RULES[graph])[0]
    assert (first.as_of, first.window_start) == (bars.ts[42], bars.ts[3])
    assert first.directed == (graph in ("lead_lag", "granger"))


def test_who_leads_when_time_runs_backwards_follows(random_bars: Bars) -> None:
    """A directed graph is not its own mirror: reversed edges are other edges, and networks see them as such."""
    rng = np.random.default_rng(0)
    returns = 0.01 * rng.normal(size=(60, 3))
    returns[1:, 1] += 2 * returns[:-1, 0]
    rule = LeadLagRule(window_bars=59, top_k=3, every_bars=59)
    ts = np.datetime64("2024-01-01", "us") + np.arange(60) * np.timedelta64(1, "D")
    mask = np.ones((60, 3), dtype=bool)

    def led_by(values: np.ndarray) -> np.ndarray:
        bars = Panel(ts, ("A", "B", "C"), ("total_return",), np.expm1(values)[:, :, None], mask)
        return to_adjacency(snapshots("lead_lag", bars, rule), 3)[0]

    forward, backward = led_by(returns), led_by(returns[::-1])
    assert forward[1, 0] > 0.5 and forward[0, 1] == 0
    assert backward[0, 1] > 0.5 and backward[1, 0] == 0
