"""The weights of correlation graphs equal numpy's correlation, and no snapshot depends on later bars.

HYB and TGN ids: .github/sources.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from models.graphs.correlation import CorrelationRule
from models.graphs.measures import MEASURES, correlation
from models.graphs.snapshot import GraphError, Snapshot
from models.graphs.windowed import build_snapshots, snapshot_positions, window_returns
from models.panel import Panel

Bars = Callable[..., Panel]
RULE = CorrelationRule(window_bars=30, min_correlation=0.1, top_k=3, every_bars=7)


def make_panel(returns: np.ndarray) -> Panel:
    """Hourly bars with these log returns (t, n) and no other column; NaN is a missing bar."""
    t, n = returns.shape
    ts = np.datetime64("2024-01-01T00:00", "us") + np.arange(t) * np.timedelta64(1, "h")
    values = np.expm1(returns)[:, :, None]
    return Panel(ts, tuple(f"S{k}" for k in range(n)), ("total_return",), values, np.isfinite(returns))


def make_factor_returns(t: int, n: int, seed: int = 0) -> np.ndarray:
    """Random returns (t, n) that share one factor."""
    rng = np.random.default_rng(seed)
    return 0.01 * (rng.normal(size=(t, 1)) * rng.uniform(-2, 2, n) + rng.normal(size=(t, n)))


def build_correlation_snapshots(bars: Panel, rule: CorrelationRule, due: Iterable[int] | None = None) -> list[Snapshot]:
    """The snapshots at the positions ``due`` of the bars; by default all of them."""
    return build_snapshots("correlation", bars, rule, due)


def weights_by_edge(snapshot: Snapshot) -> dict[tuple[int, int], float]:
    """The weight of each edge, by (src, dst)."""
    return {(int(a), int(b)): float(w) for a, b, w in zip(snapshot.src, snapshot.dst, snapshot.weight, strict=True)}


def assert_equal_snapshots(actual: list[Snapshot], expected: list[Snapshot]) -> None:
    assert [s.as_of for s in actual] == [s.as_of for s in expected]
    for a, b in zip(actual, expected, strict=True):
        assert (a.graph, a.window_start, a.nodes) == (b.graph, b.window_start, b.nodes)
        assert weights_by_edge(a) == weights_by_edge(b)


def test_correlation_without_missing_bars_equals_numpys() -> None:
    """TGN-07."""
    returns = make_factor_returns(60, 12)
    np.testing.assert_allclose(correlation(returns), np.corrcoef(returns.T), atol=1e-6)


def test_correlation_by_hand() -> None:
    """The columns are a series, a scaled copy, its negative, and a series that is uncorrelated with it."""
    series = np.array([0.01, -0.01, 0.02, -0.02, 0.0])
    uncorrelated = np.array([0.01, 0.01, -0.01, -0.01, 0.0])
    matrix = correlation(np.stack([series, 3 * series + 0.05, -series, uncorrelated], axis=1))
    np.testing.assert_allclose(matrix[0], [1, 1, -1, 0], atol=1e-6)


def test_a_pair_is_correlated_over_the_bars_that_both_assets_have() -> None:
    returns = make_factor_returns(50, 6)
    returns[np.random.default_rng(1).random(returns.shape) < 0.08] = np.nan
    matrix = correlation(returns)
    for i in range(6):
        for j in range(6):
            is_shared = np.isfinite(returns[:, i]) & np.isfinite(returns[:, j])
            assert is_shared.sum() >= 40  # 80% of the window
            np.testing.assert_allclose(matrix[i, j], np.corrcoef(returns[is_shared][:, [i, j]].T)[0, 1], atol=1e-6)


def test_a_pair_needs_four_fifths_of_the_window() -> None:
    """Of 50 bars, asset 0 has 40, asset 1 has 39 and asset 2 has all."""
    returns = make_factor_returns(50, 3)
    returns[:10, 0] = np.nan
    returns[:11, 1] = np.nan
    assert np.isfinite(correlation(returns)).tolist() == [
        [True, False, True],
        [False, False, False],
        [True, False, True],
    ]


def test_an_asset_that_does_not_move_has_no_correlation() -> None:
    returns = make_factor_returns(40, 3)
    returns[:, 1] = 0.0003
    assert np.isnan(correlation(returns)[1]).all() and np.isfinite(correlation(returns)[0, 2])


def test_snapshots_are_at_the_multiples_of_every_bars_at_which_a_window_is_full() -> None:
    inputs = np.zeros((40, 2))
    assert snapshot_positions(replace(RULE, every_bars=7, window_bars=20), inputs).tolist() == [21, 28, 35]
    every_5_bars = replace(RULE, every_bars=5, window_bars=20)
    assert snapshot_positions(every_5_bars, inputs).tolist() == [20, 25, 30, 35]
    assert snapshot_positions(every_5_bars, inputs[:20]).tolist() == []


def test_a_window_without_any_value_has_no_snapshot() -> None:
    """Windows of 20 bars end at 20, 25, 30 and 35. Only bar 10 has a value, so the last two windows are empty."""
    inputs = np.full((40, 2), np.nan)
    inputs[10, 1] = 0.01
    assert snapshot_positions(replace(RULE, every_bars=5, window_bars=20), inputs).tolist() == [20, 25]


def test_a_window_ends_with_the_snapshots_own_bar() -> None:
    """HYB-11: the first snapshot is at bar 21, the first multiple of 7 with 20 returns; its window starts at bar 2."""
    returns = make_factor_returns(40, 4)
    bars = make_panel(returns)
    first_snapshot = build_correlation_snapshots(bars, replace(RULE, window_bars=20, min_correlation=1e-6))[0]
    assert (first_snapshot.as_of, first_snapshot.window_start, first_snapshot.nodes) == (
        bars.ts[21],
        bars.ts[2],
        bars.symbols,
    )
    expected = np.corrcoef(returns[2:22].T)
    for (i, j), weight in weights_by_edge(first_snapshot).items():
        np.testing.assert_allclose(weight, expected[i, j], atol=1e-6)
    assert len(weights_by_edge(first_snapshot)) == 6  # all pairs of 4 assets


def test_edges_reach_the_threshold_by_absolute_value_and_keep_their_sign() -> None:
    """HYB-09."""
    returns = make_factor_returns(31, 8)
    matrix = np.corrcoef(returns[1:].T)
    rule = CorrelationRule(window_bars=30, min_correlation=0.3, top_k=8, every_bars=30)
    edges = weights_by_edge(build_correlation_snapshots(make_panel(returns), rule)[0])
    assert set(edges) == {(i, j) for i in range(8) for j in range(i + 1, 8) if abs(matrix[i, j]) >= 0.3}
    assert min(edges.values()) < 0 < max(edges.values())


def test_an_edge_needs_to_be_among_the_strongest_of_one_asset_only() -> None:
    """Asset 0 is the strongest partner of each other asset. So with top_k 1 it has an edge to every one of them."""
    rng = np.random.default_rng(0)
    hub = rng.normal(size=(41, 1))
    returns = 0.01 * np.hstack([hub, hub + 0.8 * rng.normal(size=(41, 5))])
    rule = CorrelationRule(window_bars=40, min_correlation=0.01, top_k=1, every_bars=40)
    (snapshot,) = build_correlation_snapshots(make_panel(returns), rule)
    assert set(weights_by_edge(snapshot)) == {(0, k) for k in range(1, 6)}


def test_a_top_k_above_the_number_of_pairs_keeps_all(random_bars: Bars) -> None:
    rule = CorrelationRule(window_bars=20, min_correlation=1e-6, top_k=50, every_bars=20)
    assert len(build_correlation_snapshots(random_bars(50, 4), rule)[0].src) == 6  # all pairs of 4 assets


def test_the_keep_option_selects_the_edges(random_bars: Bars) -> None:
    bars = random_bars(60, 9)
    edges = {}
    for keep in ("threshold", "top_k", "threshold_top_k", "mst"):
        rule = CorrelationRule(window_bars=30, min_correlation=0.15, top_k=2, every_bars=30, keep=keep)
        edges[keep] = weights_by_edge(build_correlation_snapshots(bars, rule)[-1])
    assert min(map(abs, edges["threshold"].values())) >= 0.15
    assert min(map(abs, edges["top_k"].values())) < 0.15
    assert edges["threshold_top_k"].keys() == edges["threshold"].keys() & edges["top_k"].keys()
    assert len(edges["mst"]) == 8  # a tree of 9 nodes
    assert {node for pair in edges["mst"] for node in pair} == set(range(9))


@pytest.mark.parametrize("measure", ["spearman", "ewma", "partial"])
def test_the_weights_equal_the_rules_measure_of_the_window(random_bars: Bars, measure: str) -> None:
    bars = random_bars(60, 6)
    rule = CorrelationRule(
        window_bars=30, min_correlation=0.05, top_k=6, every_bars=30, measure=measure, half_life_bars=7.0
    )
    options = {"half_life_bars": 7.0} if measure == "ewma" else {}
    matrix = MEASURES[measure](window_returns(bars)[1:31], **options)
    edges = weights_by_edge(build_correlation_snapshots(bars, rule)[0])
    assert edges == {(i, j): matrix[i, j] for i in range(6) for j in range(i + 1, 6) if abs(matrix[i, j]) >= 0.05}


def test_edges_are_stored_once_with_the_lower_node_first(random_bars: Bars) -> None:
    """HYB-21."""
    for snapshot in build_correlation_snapshots(random_bars(100, 9), RULE):
        assert (snapshot.src < snapshot.dst).all()
        assert len(weights_by_edge(snapshot)) == len(snapshot.src) > 0


def test_later_bars_never_change_a_snapshot(random_bars: Bars) -> None:
    """Field note 9: the graph of a month's end must not be used for its first day."""
    for seed in range(6):
        bars = random_bars(200, 7, seed=seed, holes=0.03 * seed, late=seed > 2)
        whole = build_correlation_snapshots(bars, RULE)
        for n_bars in np.random.default_rng(seed).integers(31, 200, 4):
            assert_equal_snapshots(
                build_correlation_snapshots(bars.slice_bars(0, int(n_bars)), RULE),
                [s for s in whole if s.as_of < bars.ts[n_bars]],
            )


def test_a_snapshot_depends_on_the_first_and_last_bar_of_its_window_but_not_on_their_neighbours() -> None:
    returns = make_factor_returns(40, 5)
    unchanged = weights_by_edge(build_correlation_snapshots(make_panel(returns), RULE)[0])
    last_bar = int(snapshot_positions(RULE, returns)[0])
    first_bar = last_bar - RULE.window_bars + 1
    for bar, has_changed in ((last_bar + 1, False), (last_bar, True), (first_bar, True), (first_bar - 1, False)):
        shocked = returns.copy()
        shocked[bar] += np.array([0.2, 0.1, -0.2, -0.1, 0.3])
        assert (weights_by_edge(build_correlation_snapshots(make_panel(shocked), RULE)[0]) != unchanged) == has_changed


def test_later_bars_never_change_a_snapshot_of_the_recorded_tape(tape_stocks: Bars, tape_perpetuals: Bars) -> None:
    for tape, ends in (
        (tape_stocks, (date(2019, 6, 3), date(2021, 1, 4), date(2024, 3, 1))),
        (tape_perpetuals, (date(2023, 12, 20), date(2024, 2, 2))),
    ):
        rule = CorrelationRule(window_bars=60, min_correlation=0.3, top_k=2, every_bars=24)
        whole = build_correlation_snapshots(tape(), rule)
        for end in ends:
            bars = tape(end)
            truncated = build_correlation_snapshots(bars, rule)
            assert truncated and len(truncated) < len(whole)
            assert_equal_snapshots(truncated, [s for s in whole if s.as_of <= bars.ts[-1]])


def test_only_the_requested_snapshots_are_built(random_bars: Bars) -> None:
    bars = random_bars(120, 6)
    whole = build_correlation_snapshots(bars, RULE)
    requested = build_correlation_snapshots(bars, RULE, [42, 63])
    assert_equal_snapshots(requested, [s for s in whole if s.as_of in (bars.ts[42], bars.ts[63])])


def test_the_order_of_the_assets_does_not_change_the_edges(random_bars: Bars) -> None:
    bars = random_bars(120, 6)
    reversed_assets = Panel(bars.ts, bars.symbols[::-1], bars.columns, bars.values[:, ::-1], bars.mask[:, ::-1])
    for a, b in zip(
        build_correlation_snapshots(bars, RULE), build_correlation_snapshots(reversed_assets, RULE), strict=True
    ):
        # asset i of six is asset 5 − i in reversed order
        assert weights_by_edge(a) == {(5 - j, 5 - i): weight for (i, j), weight in weights_by_edge(b).items()}


def test_assets_not_listed_yet_are_nodes_without_edges(random_bars: Bars) -> None:
    """With ``late``, assets 1 and 3 are listed at bar 40, after the first snapshot."""
    bars = random_bars(120, 4, late=True)
    first_snapshot = build_correlation_snapshots(bars, replace(RULE, window_bars=30, min_correlation=1e-6))[0]
    assert first_snapshot.as_of < bars.ts[40] and first_snapshot.nodes == bars.symbols
    assert set(weights_by_edge(first_snapshot)) == {(0, 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_bars": 2}, "window_bars is 2"),
        ({"min_correlation": 0.0}, "min_correlation is 0"),
        ({"min_correlation": 1.1}, "min_correlation is 1.1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"every_bars": 0}, "every_bars is 0"),
        ({"measure": "kendall"}, "measure is 'kendall'; choose one of: pearson, spearman, ewma, partial"),
        ({"keep": "all"}, "keep is 'all'; choose one of: threshold, top_k, threshold_top_k, mst"),
        ({"half_life_bars": 0.0}, "half_life_bars is 0"),
    ],
)
def test_an_invalid_rule_is_refused_naming_the_field(change: dict[str, float], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        replace(RULE, **change)


def test_one_asset_or_no_return_at_all_is_refused(random_bars: Bars) -> None:
    with pytest.raises(GraphError, match="at least two assets, the bars have 1"):
        build_correlation_snapshots(random_bars(50, 1), RULE)
    with pytest.raises(GraphError, match="no asset has a return in the 50 bars up to 2024-01-03T01"):
        build_correlation_snapshots(make_panel(np.full((50, 3), np.nan)), RULE)
