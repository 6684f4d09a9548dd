"""Edges from moving sums equal the slow definition, and depend on their own window alone, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.graphs.edge_selection import Edges, strongest_edges
from models.graphs.measures import correlation
from models.graphs.rolling import rolling_edges


def make_factor_returns(t: int, n: int, seed: int = 0) -> np.ndarray:
    """Random returns (t, n) of one factor with fat tails; the assets differ a hundredfold in volatility."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_t(3, size=(t, 1)) * rng.uniform(-1, 2, n)
    return 0.01 * rng.lognormal(0, 1.5, n) * (factor + rng.standard_t(3, size=(t, n)))


def slow_edges(
    returns: np.ndarray, ends: np.ndarray, window_bars: int, min_strength: float, top_k: int | None
) -> list[Edges]:
    """The edges of each window by the definition: the strongest pairs of its correlation matrix."""
    return [strongest_edges(correlation(returns[end - window_bars + 1 : end + 1]), min_strength, top_k) for end in ends]


def assert_equal_edges(actual: list[Edges], expected: list[Edges]) -> None:
    assert len(actual) == len(expected)
    for edges, expected_edges in zip(actual, expected, strict=True):
        for array, expected_array in zip(edges, expected_edges, strict=True):
            np.testing.assert_array_equal(array, expected_array)


@pytest.mark.parametrize(("min_strength", "top_k"), [(0.3, None), (0.0, 3), (0.2, 2), (1e-6, 50)])
@pytest.mark.parametrize("every_bars", [1, 5, 40])
def test_edges_equal_the_slow_definition(min_strength: float, top_k: int | None, every_bars: int) -> None:
    returns = make_factor_returns(700, 14)
    window_bars = 60
    ends = np.arange(window_bars - 1, len(returns), every_bars)
    edges = list(rolling_edges(returns, ends, window_bars, min_strength, top_k))
    assert sum(len(src) for src, _, _ in edges) > len(ends)
    assert_equal_edges(edges, slow_edges(returns, ends, window_bars, min_strength, top_k))


@pytest.mark.parametrize("missing_share", [0.01, 0.15])
def test_edges_of_windows_with_missing_bars_equal_the_slow_definition(missing_share: float) -> None:
    """Assets 3 and 4 list late, asset 5 is halted, asset 6 does not move for a while, and single bars are missing."""
    returns = make_factor_returns(400, 12, seed=1)
    window_bars = 30
    returns[np.random.default_rng(2).random(returns.shape) < missing_share] = np.nan
    returns[:150, 3] = np.nan
    returns[:31, 4] = np.nan
    returns[200:215, 5] = np.nan
    returns[100:160, 6] = 0.0
    ends = np.arange(window_bars - 1, len(returns), 3)
    assert_equal_edges(
        list(rolling_edges(returns, ends, window_bars, 0.2, 4)), slow_edges(returns, ends, window_bars, 0.2, 4)
    )


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    window_bars=st.integers(5, 50),
    every_bars=st.integers(1, 60),
    missing_share=st.sampled_from([0.0, 0.003, 0.05]),
    top_k=st.one_of(st.none(), st.integers(1, 8)),
)
def test_edges_equal_the_slow_definition_for_every_window_and_distance_of_snapshots(
    seed: int, window_bars: int, every_bars: int, missing_share: float, top_k: int | None
) -> None:
    returns = make_factor_returns(130, 6, seed)
    returns[np.random.default_rng(seed).random(returns.shape) < missing_share] = np.nan
    ends = np.arange(window_bars - 1, len(returns), every_bars)
    assert_equal_edges(
        list(rolling_edges(returns, ends, window_bars, 0.3, top_k)), slow_edges(returns, ends, window_bars, 0.3, top_k)
    )


def test_weights_equal_numpys_correlation_to_six_decimals() -> None:
    returns = make_factor_returns(600, 20, seed=3)
    window_bars = 60
    ends = np.arange(window_bars - 1, len(returns))
    for end, (src, dst, weight) in zip(ends, rolling_edges(returns, ends, window_bars, 0.0, None), strict=True):
        exact = np.corrcoef(returns[end - window_bars + 1 : end + 1].T)
        np.testing.assert_allclose(weight, exact[src, dst], rtol=0, atol=5.1e-7)


@pytest.mark.parametrize("missing_share", [0.0, 0.02])
def test_edges_of_a_window_do_not_depend_on_which_other_bars_and_windows_are_computed(missing_share: float) -> None:
    returns = make_factor_returns(900, 10, seed=4)
    window_bars = 40
    returns[np.random.default_rng(5).random(returns.shape) < missing_share] = np.nan
    ends = np.arange(500, 700, 3)
    whole = list(rolling_edges(returns, ends, window_bars, 0.1, 3))
    for first, last in ((0, 700), (1, 900), (127, 900), (129, 703), (461, 900)):
        assert_equal_edges(list(rolling_edges(returns[first:last], ends - first, window_bars, 0.1, 3)), whole)
    for k in (0, 1, 20, len(ends) - 1):
        assert_equal_edges(list(rolling_edges(returns, ends[k : k + 1], window_bars, 0.1, 3)), whole[k : k + 1])
    assert_equal_edges(list(rolling_edges(returns, ends[::7], window_bars, 0.1, 3)), whole[::7])


@pytest.mark.parametrize("volatility", [1e-3, 1.0, 1e3, 1e6])
def test_bars_before_the_window_do_not_change_its_edges(volatility: float) -> None:
    """Asset 0 has correlations with the others that lie halfway between two values of six decimals.

    So the last bit decides how they are rounded. The window comes after returns of different size.
    """
    window_bars = 60
    n = 40
    rng = np.random.default_rng(6)
    basis = np.linalg.qr(np.column_stack((np.ones(window_bars), rng.normal(size=(window_bars, n)))))[0][:, 1:]
    halfway = 0.3 + (np.arange(1, n) + 0.5) * 1e-6
    window_returns = np.column_stack((basis[:, 0], basis[:, :1] * halfway + basis[:, 1:] * np.sqrt(1 - halfway**2)))
    ends = np.arange(window_bars - 1, window_bars + 100)
    last_windows = []
    for seed in range(4):
        before = volatility * np.random.default_rng(seed).normal(size=(100, n))
        edges = list(rolling_edges(np.vstack((before, window_returns)), ends, window_bars, 0.2, None))
        last_windows.append(edges[-1:])
    alone = list(rolling_edges(window_returns, ends[:1], window_bars, 0.2, None))
    ((src, _, _),) = alone
    assert len(src) >= n - 1
    for last_window in last_windows:
        assert_equal_edges(last_window, alone)


def test_edges_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    returns = make_factor_returns(1500, 9, seed=7)
    window_bars = 60
    ends = np.arange(window_bars - 1, 1500)
    by_threads = []
    for n_threads in (1, 2, 3, 16):
        # rolling_edges starts so many threads
        monkeypatch.setattr("models.graphs.rolling.config.NUMBA_NUM_THREADS", n_threads)
        by_threads.append(list(rolling_edges(returns, ends, window_bars, 0.1, 3)))
    for edges in by_threads[1:]:
        assert_equal_edges(edges, by_threads[0])


def test_edges_are_complete_when_the_buffers_fill_up_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    returns = make_factor_returns(200, 12, seed=8)
    ends = np.arange(29, 200)
    # a buffer holds one complete graph and ten more edges
    monkeypatch.setattr("models.graphs.rolling.SPARE_EDGES", 10)
    edges = list(rolling_edges(returns, ends, 30, 0.0, None))
    assert sum(len(src) for src, _, _ in edges) == len(ends) * 66  # all pairs of 12 assets
    assert_equal_edges(edges, slow_edges(returns, ends, 30, 0.0, None))


def test_no_windows_give_no_edges() -> None:
    assert list(rolling_edges(make_factor_returns(50, 4), np.zeros(0, dtype=np.int64), 20, 0.1, None)) == []
