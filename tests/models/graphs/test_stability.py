"""Turnover, drift and mean correlation equal numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.graphs.snapshot import Snapshot
from models.graphs.stability import MAX_TRAILING, Stability, mean_correlation, stability

NOON = np.datetime64("2024-01-02T12:00", "us")


def make_graph(edges: dict[tuple[int, int], float], directed: bool = False) -> Snapshot:
    """A snapshot of four assets with these weights by (src, dst)."""
    src, dst = np.array(list(edges), dtype=np.int64).reshape(-1, 2).T
    return Snapshot("correlation", NOON, NOON, src, dst, np.array(list(edges.values())), tuple("ABCD"), directed)


def test_turnover_is_the_share_of_edges_added_or_removed() -> None:
    previous = make_graph({(0, 1): 0.5, (0, 2): 0.5, (1, 2): 0.5})
    # one edge of four is removed, one is added; a changed weight does not count
    assert stability(make_graph({(0, 1): 0.9, (0, 2): 0.5, (2, 3): 0.5}), [previous]).turnover == 2 / 4
    assert stability(previous, [previous]).turnover == 0
    assert stability(make_graph({(2, 3): 1.0}), [previous]).turnover == 1
    assert stability(make_graph({}), [make_graph({})]).turnover == 0


def test_a_reversed_edge_is_another_edge() -> None:
    assert stability(make_graph({(1, 0): 0.5}, True), [make_graph({(0, 1): 0.5}, True)]).turnover == 1


def test_drift_by_hand() -> None:
    """The trailing weights 0.4 and 0.6 have the mean 0.5 and the standard deviation 0.1."""
    trailing = [make_graph({(0, 1): 0.4}), make_graph({(0, 1): 0.6})]
    assert stability(make_graph({(0, 1): 0.8}), trailing).drift == pytest.approx((0.8 - 0.5) / 0.1)
    # a second entry is 0.4 / 0.1 = 4 standard deviations from its mean 0: √(3² + 4²) = 5
    assert stability(make_graph({(0, 1): 0.8, (2, 3): 0.4}), trailing).drift == pytest.approx(5)


def test_stability_is_none_where_there_is_nothing_to_compare_with() -> None:
    graph = make_graph({(0, 1): 0.4})
    assert stability(graph, []) == Stability(None, None)
    assert stability(graph, [graph]).drift is None
    assert stability(graph, [graph, graph, graph]).drift is None


def test_only_the_last_trailing_snapshots_are_read() -> None:
    rng = np.random.default_rng(0)
    series = [make_graph({(0, 1): w, (1, 2): v}) for w, v in rng.random((MAX_TRAILING + 1, 2))]
    outlier = make_graph({(0, 3): 9.0})
    assert stability(series[-1], [outlier, *series[:-1]]) == stability(series[-1], series[:-1])
    assert stability(series[-1], [outlier, *series[1:-1]]) != stability(series[-1], series[:-1])


def test_mean_correlation_is_the_mean_over_all_pairs() -> None:
    returns = np.random.default_rng(1).normal(size=(60, 7)) + np.random.default_rng(2).normal(size=(60, 1))
    pairs = np.corrcoef(returns.T)[np.triu_indices(7, 1)]
    assert mean_correlation(returns) == pytest.approx(pairs.mean(), abs=1e-6)


def test_mean_correlation_leaves_out_assets_with_too_few_bars_and_assets_that_do_not_move() -> None:
    returns = np.random.default_rng(1).normal(size=(60, 4))
    returns[:20, 2] = np.nan
    returns[:, 3] = 0.0
    assert mean_correlation(returns) == pytest.approx(np.corrcoef(returns[:, :2].T)[0, 1], abs=1e-6)
    assert mean_correlation(returns[:, 1:]) is None
