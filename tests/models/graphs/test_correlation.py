"""Correlation graphs against numpy's own correlation, and against the future."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from models.graphs.correlation import CorrelationRule, correlation_snapshots
from models.graphs.measures import MEASURES, correlation
from models.graphs.snapshot import GraphError, Snapshot
from models.graphs.windowed import due_snapshots, window_returns
from models.panel import Panel

Bars = Callable[..., Panel]
RULE = CorrelationRule(window_bars=30, min_correlation=0.1, top_k=3, every_bars=7)


def bars_of_returns(returns: np.ndarray) -> Panel:
    """Hourly bars of which only the log returns (t, n) are known; NaN is a missing bar."""
    t, n = returns.shape
    ts = np.datetime64("2024-01-01T00:00", "us") + np.arange(t) * np.timedelta64(1, "h")
    values = np.expm1(returns)[:, :, None]
    return Panel(ts, tuple(f"S{k}" for k in range(n)), ("total_return",), values, np.isfinite(returns))


def draw(t: int, n: int, seed: int = 0) -> np.ndarray:
    """Returns (t, n) that share one factor."""
    rng = np.random.default_rng(seed)
    return 0.01 * (rng.normal(size=(t, 1)) * rng.uniform(-2, 2, n) + rng.normal(size=(t, n)))


def edges(snapshot: Snapshot) -> dict[tuple[int, int], float]:
    return {(int(a), int(b)): float(w) for a, b, w in zip(snapshot.src, snapshot.dst, snapshot.weight, strict=True)}


def assert_same(left: list[Snapshot], right: list[Snapshot]) -> None:
    assert [s.as_of for s in left] == [s.as_of for s in right]
    for a, b in zip(left, right, strict=True):
        assert (a.graph, a.window_start, a.nodes) == (b.graph, b.window_start, b.nodes)
        assert edges(a) == edges(b)


def test_correlation_of_whole_windows_is_pearsons() -> None:
    """HYB-11, TGN-07."""
    returns = draw(60, 12)
    np.testing.assert_allclose(correlation(returns), np.corrcoef(returns.T), atol=1e-6)


def test_correlation_by_hand() -> None:
    up = np.array([0.01, -0.01, 0.02, -0.02, 0.0])
    matrix = correlation(np.stack([up, 3 * up + 0.05, -up, np.array([0.01, 0.01, -0.01, -0.01, 0.0])], axis=1))
    np.testing.assert_allclose(matrix[0], [1, 1, -1, 0], atol=1e-6)


def test_a_pair_is_correlated_over_the_bars_both_have() -> None:
    returns = draw(50, 6)
    returns[np.random.default_rng(1).random(returns.shape) < 0.08] = np.nan
    matrix = correlation(returns)
    for i in range(6):
        for j in range(6):
            both = np.isfinite(returns[:, i]) & np.isfinite(returns[:, j])
            assert both.sum() >= 40
            np.testing.assert_allclose(matrix[i, j], np.corrcoef(returns[both][:, [i, j]].T)[0, 1], atol=1e-6)


def test_a_pair_needs_four_fifths_of_the_window() -> None:
    returns = draw(50, 3)
    returns[:10, 0], returns[:11, 1] = np.nan, np.nan
    assert np.isfinite(correlation(returns)).tolist() == [
        [True, False, True],
        [False, False, False],
        [True, False, True],
    ]


def test_an_asset_that_does_not_move_has_no_correlation() -> None:
    returns = draw(40, 3)
    returns[:, 1] = 0.0003
    assert np.isnan(correlation(returns)[1]).all() and np.isfinite(correlation(returns)[0, 2])


def test_snapshots_come_every_k_bars_from_the_first_once_the_window_is_full() -> None:
    known = np.zeros((40, 2))
    assert due_snapshots(replace(RULE, every_bars=7, window_bars=20), known).tolist() == [21, 28, 35]
    every_week = replace(RULE, every_bars=5, window_bars=20)
    assert due_snapshots(every_week, known).tolist() == [20, 25, 30, 35]
    assert due_snapshots(every_week, known[:20]).tolist() == []


def test_a_window_in_which_nothing_is_known_has_no_snapshot() -> None:
    """Windows of 20 end at 20, 25, 30 and 35; the last bar that anybody has is bar 10."""
    known = np.full((40, 2), np.nan)
    known[10, 1] = 0.01
    assert due_snapshots(replace(RULE, every_bars=5, window_bars=20), known).tolist() == [20, 25]


def test_window_ends_with_the_snapshots_own_bar() -> None:
    returns = draw(40, 4)
    bars = bars_of_returns(returns)
    first = correlation_snapshots(bars, replace(RULE, window_bars=20, min_correlation=1e-6))[0]
    assert (first.as_of, first.window_start, first.nodes) == (bars.ts[21], bars.ts[2], bars.symbols)
    expected = np.corrcoef(returns[2:22].T)
    for (i, j), weight in edges(first).items():
        np.testing.assert_allclose(weight, expected[i, j], atol=1e-6)
    assert len(edges(first)) == 6


def test_weak_pairs_are_no_edges_and_negative_ones_keep_their_sign() -> None:
    returns = draw(31, 8)
    matrix = np.corrcoef(returns[1:].T)
    rule = CorrelationRule(window_bars=30, min_correlation=0.3, top_k=8, every_bars=30)
    found = edges(correlation_snapshots(bars_of_returns(returns), rule)[0])
    assert set(found) == {(i, j) for i in range(8) for j in range(i + 1, 8) if abs(matrix[i, j]) >= 0.3}
    assert min(found.values()) < 0 < max(found.values())


def test_an_edge_is_kept_when_it_is_strong_for_either_end() -> None:
    """The hub is everybody's strongest: with one edge each, every spoke keeps its own and the hub has them all."""
    rng = np.random.default_rng(0)
    hub = rng.normal(size=(41, 1))
    returns = 0.01 * np.hstack([hub, hub + 0.8 * rng.normal(size=(41, 5))])
    rule = CorrelationRule(window_bars=40, min_correlation=0.01, top_k=1, every_bars=40)
    assert set(edges(correlation_snapshots(bars_of_returns(returns), rule)[0])) == {(0, k) for k in range(1, 6)}


def test_top_k_of_more_than_there_are_keeps_all(random_bars: Bars) -> None:
    rule = CorrelationRule(window_bars=20, min_correlation=1e-6, top_k=50, every_bars=20)
    assert len(correlation_snapshots(random_bars(50, 4), rule)[0].src) == 6


def test_what_is_kept_is_the_rules_to_say(random_bars: Bars) -> None:
    bars = random_bars(60, 9)
    found = {}
    for keep in ("threshold", "top_k", "threshold_top_k", "mst"):
        rule = CorrelationRule(window_bars=30, min_correlation=0.15, top_k=2, every_bars=30, keep=keep)
        found[keep] = edges(correlation_snapshots(bars, rule)[-1])
    assert min(map(abs, found["threshold"].values())) >= 0.15
    assert min(map(abs, found["top_k"].values())) < 0.15
    assert found["threshold_top_k"].keys() == found["threshold"].keys() & found["top_k"].keys()
    assert len(found["mst"]) == 8 and {node for pair in found["mst"] for node in pair} == set(range(9))


@pytest.mark.parametrize("measure", ["spearman", "ewma", "partial"])
def test_another_measure_gives_its_own_weights(random_bars: Bars, measure: str) -> None:
    bars = random_bars(60, 6)
    rule = CorrelationRule(30, 0.05, 6, 30, measure=measure, half_life_bars=7.0)
    options = {"half_life_bars": 7.0} if measure == "ewma" else {}
    matrix = MEASURES[measure](window_returns(bars)[1:31], **options)
    found = edges(correlation_snapshots(bars, rule)[0])
    assert found == {(i, j): matrix[i, j] for i in range(6) for j in range(i + 1, 6) if abs(matrix[i, j]) >= 0.05}


def test_edges_are_stored_once_with_the_lower_node_first(random_bars: Bars) -> None:
    for snapshot in correlation_snapshots(random_bars(100, 9), RULE):
        assert (snapshot.src < snapshot.dst).all()
        assert len(edges(snapshot)) == len(snapshot.src) > 0


def test_later_bars_never_change_a_snapshot(random_bars: Bars) -> None:
    """Field note 9: a graph of the month's end is no graph for its first day."""
    for seed in range(6):
        bars = random_bars(200, 7, seed=seed, holes=0.03 * seed, late=seed > 2)
        whole = correlation_snapshots(bars, RULE)
        for cut in np.random.default_rng(seed).integers(31, 200, 4):
            assert_same(
                correlation_snapshots(bars.rows(0, int(cut)), RULE), [s for s in whole if s.as_of < bars.ts[cut]]
            )


def test_the_bar_of_the_snapshot_counts_and_the_next_does_not() -> None:
    returns = draw(40, 5)
    plain = edges(correlation_snapshots(bars_of_returns(returns), RULE)[0])
    assert due_snapshots(RULE, returns)[0] == 35
    for bar, changed in ((36, False), (35, True), (6, True), (5, False)):
        other = returns.copy()
        other[bar] += np.array([0.2, 0.1, -0.2, -0.1, 0.3])
        assert (edges(correlation_snapshots(bars_of_returns(other), RULE)[0]) != plain) == changed


def test_later_bars_never_change_a_snapshot_of_the_recorded_tape(tape_stocks: Bars, tape_perpetuals: Bars) -> None:
    for tape, ends in (
        (tape_stocks, (date(2019, 6, 3), date(2021, 1, 4), date(2024, 3, 1))),
        (tape_perpetuals, (date(2023, 12, 20), date(2024, 2, 2))),
    ):
        rule = CorrelationRule(window_bars=60, min_correlation=0.3, top_k=2, every_bars=24)
        whole = correlation_snapshots(tape(), rule)
        for end in ends:
            bars = tape(end)
            cut = correlation_snapshots(bars, rule)
            assert cut and len(cut) < len(whole)
            assert_same(cut, [s for s in whole if s.as_of <= bars.ts[-1]])


def test_only_the_snapshots_asked_for_are_built(random_bars: Bars) -> None:
    bars = random_bars(120, 6)
    whole = correlation_snapshots(bars, RULE)
    asked = correlation_snapshots(bars, RULE, [42, 63])
    assert_same(asked, [s for s in whole if s.as_of in (bars.ts[42], bars.ts[63])])


def test_order_of_the_assets_does_not_matter(random_bars: Bars) -> None:
    bars = random_bars(120, 6)
    turned = Panel(bars.ts, bars.symbols[::-1], bars.columns, bars.values[:, ::-1], bars.mask[:, ::-1])
    for a, b in zip(correlation_snapshots(bars, RULE), correlation_snapshots(turned, RULE), strict=True):
        assert edges(a) == {(5 - j, 5 - i): weight for (i, j), weight in edges(b).items()}


def test_assets_not_listed_yet_are_nodes_without_edges(random_bars: Bars) -> None:
    bars = random_bars(120, 4, late=True)
    first = correlation_snapshots(bars, replace(RULE, window_bars=30, min_correlation=1e-6))[0]
    assert first.as_of < bars.ts[40] and first.nodes == bars.symbols
    assert set(edges(first)) == {(0, 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_bars": 2}, "window_bars is 2"),
        ({"min_correlation": 0.0}, "min_correlation is 0"),
        ({"min_correlation": 1.1}, "min_correlation is 1.1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"every_bars": 0}, "every_bars is 0"),
        ({"measure": "kendall"}, "measure is 'kendall'; those there are: pearson, spearman, ewma, partial"),
        ({"keep": "all"}, "keep is 'all'; those there are: threshold, top_k, threshold_top_k, mst"),
        ({"half_life_bars": 0.0}, "half_life_bars is 0"),
    ],
)
def test_a_rule_that_makes_no_sense_is_named(change: dict[str, float], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        replace(RULE, **change)


def test_one_asset_or_no_return_at_all_is_an_error(random_bars: Bars) -> None:
    with pytest.raises(GraphError, match="at least two assets, the bars have 1"):
        correlation_snapshots(random_bars(50, 1), RULE)
    with pytest.raises(GraphError, match="no asset has a return in the 50 bars up to 2024-01-03T01"):
        correlation_snapshots(bars_of_returns(np.full((50, 3), np.nan)), RULE)
