"""The moving sums against the slow definition, and that a window's edges are its own to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.graphs.edge_selection import Edges, strongest
from models.graphs.measures import correlation
from models.graphs.rolling import rolling_edges


def market(t: int, n: int, seed: int = 0) -> np.ndarray:
    """Returns (t, n) of one factor, of assets that differ a hundredfold in volatility, with fat tails."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_t(3, size=(t, 1)) * rng.uniform(-1, 2, n)
    return 0.01 * rng.lognormal(0, 1.5, n) * (factor + rng.standard_t(3, size=(t, n)))


def slow(returns: np.ndarray, ends: np.ndarray, window: int, least: float, top_k: int | None) -> list[Edges]:
    return [strongest(correlation(returns[end - window + 1 : end + 1]), least, top_k) for end in ends]


def assert_equal(left: list[Edges], right: list[Edges]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("least", "top_k"), [(0.3, None), (0.0, 3), (0.2, 2), (1e-6, 50)])
@pytest.mark.parametrize("every", [1, 5, 40])
def test_edges_are_those_of_the_slow_definition(least: float, top_k: int | None, every: int) -> None:
    returns, window = market(700, 14), 60
    ends = np.arange(window - 1, len(returns), every)
    found = list(rolling_edges(returns, ends, window, least, top_k))
    assert sum(len(src) for src, _, _ in found) > len(ends)
    assert_equal(found, slow(returns, ends, window, least, top_k))


@pytest.mark.parametrize("share", [0.01, 0.15])
def test_windows_with_holes_are_those_of_the_slow_definition(share: float) -> None:
    """Late listings, a halt, single bars that are missing, and an asset that stops moving."""
    returns, window = market(400, 12, seed=1), 30
    returns[np.random.default_rng(2).random(returns.shape) < share] = np.nan
    returns[:150, 3], returns[:31, 4], returns[200:215, 5], returns[100:160, 6] = np.nan, np.nan, np.nan, 0.0
    ends = np.arange(window - 1, len(returns), 3)
    assert_equal(list(rolling_edges(returns, ends, window, 0.2, 4)), slow(returns, ends, window, 0.2, 4))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    window=st.integers(5, 50),
    every=st.integers(1, 60),
    holes=st.sampled_from([0.0, 0.003, 0.05]),
    top_k=st.one_of(st.none(), st.integers(1, 8)),
)
def test_any_market_window_and_rhythm_gives_the_slow_definition(
    seed: int, window: int, every: int, holes: float, top_k: int | None
) -> None:
    returns = market(130, 6, seed)
    returns[np.random.default_rng(seed).random(returns.shape) < holes] = np.nan
    ends = np.arange(window - 1, len(returns), every)
    assert_equal(list(rolling_edges(returns, ends, window, 0.3, top_k)), slow(returns, ends, window, 0.3, top_k))


def test_weights_are_within_a_millionth_of_float64() -> None:
    returns, window = market(600, 20, seed=3), 60
    ends = np.arange(window - 1, len(returns))
    for end, (src, dst, weight) in zip(ends, rolling_edges(returns, ends, window, 0.0, None), strict=True):
        exact = np.corrcoef(returns[end - window + 1 : end + 1].T)
        np.testing.assert_allclose(weight, exact[src, dst], rtol=0, atol=5.1e-7)


@pytest.mark.parametrize("holes", [0.0, 0.02])
def test_a_windows_edges_are_the_same_to_the_bit_wherever_the_bars_begin_and_end(holes: float) -> None:
    returns, window = market(900, 10, seed=4), 40
    returns[np.random.default_rng(5).random(returns.shape) < holes] = np.nan
    ends = np.arange(500, 700, 3)
    whole = list(rolling_edges(returns, ends, window, 0.1, 3))
    for first, last in ((0, 700), (1, 900), (127, 900), (129, 703), (461, 900)):
        assert_equal(list(rolling_edges(returns[first:last], ends - first, window, 0.1, 3)), whole)
    for k in (0, 1, 20, 66):
        assert_equal(list(rolling_edges(returns, ends[k : k + 1], window, 0.1, 3)), whole[k : k + 1])
    assert_equal(list(rolling_edges(returns, ends[::7], window, 0.1, 3)), whole[::7])


@pytest.mark.parametrize("wild", [1e-3, 1.0, 1e3, 1e6])
def test_what_left_the_window_leaves_no_trace(wild: float) -> None:
    """Correlations halfway between two values of six decimals, where the last bit decides, after any returns."""
    window, n = 60, 40
    rng = np.random.default_rng(6)
    basis = np.linalg.qr(np.column_stack((np.ones(window), rng.normal(size=(window, n)))))[0][:, 1:]
    half = 0.3 + (np.arange(1, n) + 0.5) * 1e-6
    own = np.column_stack((basis[:, 0], basis[:, :1] * half + basis[:, 1:] * np.sqrt(1 - half**2)))
    ends = np.arange(window - 1, window + 100)
    outcomes = []
    for seed in range(4):
        before = wild * np.random.default_rng(seed).normal(size=(100, n))
        found = list(rolling_edges(np.vstack((before, own)), ends, window, 0.2, None))
        outcomes.append(found[-1:])
    alone = list(rolling_edges(own, ends[:1], window, 0.2, None))
    assert len(alone[0][0]) >= n - 1
    for outcome in outcomes:
        assert_equal(outcome, alone)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    returns, ends = market(1500, 9, seed=7), np.arange(59, 1500)
    outcomes = []
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr("models.graphs.rolling.config.NUMBA_NUM_THREADS", threads)
        outcomes.append(list(rolling_edges(returns, ends, 60, 0.1, 3)))
    for outcome in outcomes[1:]:
        assert_equal(outcome, outcomes[0])


def test_buffers_that_fill_up_are_emptied_and_filled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    returns, ends = market(200, 12, seed=8), np.arange(29, 200)
    monkeypatch.setattr("models.graphs.rolling.SPARE_EDGES", 10)
    found = list(rolling_edges(returns, ends, 30, 0.0, None))
    assert sum(len(src) for src, _, _ in found) == len(ends) * 66
    assert_equal(found, slow(returns, ends, 30, 0.0, None))


def test_no_window_no_edges() -> None:
    assert list(rolling_edges(market(50, 4), np.zeros(0, dtype=np.int64), 20, 0.1, None)) == []
