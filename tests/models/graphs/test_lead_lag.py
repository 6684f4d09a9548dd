"""Lead-lag graphs equal statsmodels, find the leaders of synthetic returns and depend on no bar outside the window.

HYB and TGN ids: .github/sources.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests
from statsmodels.tsa.stattools import grangercausalitytests

from models.graphs.lead_lag import GrangerRule, LeadLagRule, corrected_p_values, granger_test, lead_correlation
from models.graphs.snapshot import GraphError

WINDOW_BARS = 120
N_ASSETS = 5
# a follower's return is 1.5 times the leader's plus noise of the same size: a population correlation of
# 1.5 ÷ √(1.5² + 1) = 0.83, an R² of 0.69
LEADER_WEIGHT = 1.5
LEAD_LAG = LeadLagRule(window_bars=WINDOW_BARS, top_k=3, every_bars=10, max_lag=3)
GRANGER = GrangerRule(window_bars=WINDOW_BARS, top_k=3, every_bars=10, lags=2)


def make_returns_with_leaders(t: int = WINDOW_BARS, seed: int = 0) -> np.ndarray:
    """Returns (t, N_ASSETS): asset 0 leads asset 1 by two bars, asset 3 leads asset 2 by one bar with opposite sign."""
    returns = np.random.default_rng(seed).normal(size=(t, N_ASSETS))
    returns[2:, 1] += LEADER_WEIGHT * returns[:-2, 0]
    returns[1:, 2] -= LEADER_WEIGHT * returns[:-1, 3]
    return 0.01 * returns


def last_window_edges(rule: LeadLagRule | GrangerRule, returns: np.ndarray) -> dict[tuple[int, int], float]:
    """The weight of each edge of the last window, by (src, dst)."""
    ((src, dst, weight),) = rule.edges(returns, np.array([len(returns) - 1]))
    return {(int(i), int(j)): float(w) for i, j, w in zip(src, dst, weight, strict=True)}


def test_lead_correlation_equals_numpys_at_the_strongest_lag() -> None:
    returns = make_returns_with_leaders()
    lead, _ = lead_correlation(returns, 3)
    for i in range(N_ASSETS):
        for j in range(N_ASSETS):
            by_lag = [np.corrcoef(returns[:-lag, i], returns[lag:, j])[0, 1] for lag in (1, 2, 3)]
            np.testing.assert_allclose(lead[i, j], max(by_lag, key=abs), atol=1e-6)


def test_an_edge_runs_from_the_leader_to_the_follower_with_the_sign_of_the_correlation() -> None:
    """HYB-19."""
    edges = last_window_edges(LEAD_LAG, make_returns_with_leaders())
    assert set(edges) == {(0, 1), (3, 2)}
    assert edges[0, 1] > 0.6
    assert edges[3, 2] < -0.6


def test_edges_are_reversed_when_time_is_reversed() -> None:
    assert set(last_window_edges(LEAD_LAG, make_returns_with_leaders()[::-1])) == {(1, 0), (2, 3)}


def test_granger_equals_statsmodels_for_every_pair() -> None:
    """TGN-07: the F-test on the residual sums of squares, from regressions with a constant."""
    returns = make_returns_with_leaders(seed=1)
    for lags in (1, 2, 4):
        partial_r2, p_value = granger_test(returns, lags)
        for i in range(N_ASSETS):
            for j in range(N_ASSETS):
                if i == j:
                    assert np.isnan(p_value[i, j])
                    continue
                tests, regressions = grangercausalitytests(returns[:, [j, i]], [lags])[lags]
                _, expected_p_value, _, _ = tests["ssr_ftest"]
                restricted, unrestricted = regressions[:2]
                np.testing.assert_allclose(p_value[i, j], expected_p_value, rtol=1e-6, atol=1e-300)
                np.testing.assert_allclose(partial_r2[i, j], 1 - unrestricted.ssr / restricted.ssr, atol=1e-6)


def test_corrected_p_values_equal_statsmodels() -> None:
    p_value = np.random.default_rng(2).random((6, 6)) ** 3
    np.fill_diagonal(p_value, np.nan)
    is_known = np.isfinite(p_value)
    corrected = corrected_p_values(p_value)
    np.testing.assert_allclose(corrected[is_known], multipletests(p_value[is_known], method="fdr_bh")[1])
    assert (np.diag(corrected) == 1).all()
    assert (corrected_p_values(np.full((3, 3), np.nan)) == 1).all()


def test_an_edge_runs_from_the_cause_to_the_effect() -> None:
    assert set(last_window_edges(GRANGER, make_returns_with_leaders())) == {(0, 1), (3, 2)}
    assert min(last_window_edges(GRANGER, make_returns_with_leaders()).values()) > 0.4


@pytest.mark.parametrize(("rule", "pair_test"), [(GRANGER, granger_test), (LEAD_LAG, lead_correlation)])
def test_noise_has_few_edges_after_the_correction_and_many_before(
    rule: LeadLagRule | GrangerRule, pair_test: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
) -> None:
    """20 windows of 10 assets have 1,800 pairs, so about 90 have a p-value below 0.05 by chance. The correction bounds
    the windows with a false edge to about one in twenty."""
    n_edges = 0
    n_uncorrected = 0
    for seed in range(20):
        returns = np.random.default_rng(seed).normal(size=(WINDOW_BARS, 10))
        n_edges += len(last_window_edges(rule, returns))
        _, p_value = pair_test(returns, 2)
        n_uncorrected += int((p_value < 0.05).sum())
    assert n_uncorrected > 40
    assert n_edges <= 6


def test_the_p_value_of_a_lead_is_that_of_fishers_z_times_the_number_of_lags() -> None:
    """Fisher's z counts the bars in which both assets have a return; asset 4 lacks eight."""
    returns = make_returns_with_leaders(seed=2)
    returns[30:38, 4] = np.nan
    lead, p_value = lead_correlation(returns, 1)
    n_shared_bars = int((np.isfinite(returns[:-1, 4]) & np.isfinite(returns[1:, 0])).sum())
    assert n_shared_bars == WINDOW_BARS - 1 - 8
    assert p_value[4, 0] == pytest.approx(2 * norm.sf(np.arctanh(abs(lead[4, 0])) * np.sqrt(n_shared_bars - 3)))
    lead_of_3, p_value_of_3 = lead_correlation(returns, 3)
    # pairs that are strongest at lag 1, and whose corrected p-value is below 1
    is_same_lag = (lead_of_3 == lead) & ~np.eye(N_ASSETS, dtype=bool) & (p_value < 1 / 3)
    assert is_same_lag.any()
    np.testing.assert_allclose(p_value_of_3[is_same_lag], 3 * p_value[is_same_lag])
    assert np.isnan(np.diag(p_value)).all()


def test_an_asset_that_lacks_a_bar_or_does_not_move_has_no_edges() -> None:
    returns = make_returns_with_leaders()
    returns[40, 1] = np.nan
    returns[:, 2] = 0.0
    _, p_value = granger_test(returns, 2)
    assert np.isnan(p_value[[1, 2]]).all()
    assert np.isnan(p_value[:, [1, 2]]).all()
    assert last_window_edges(GRANGER, returns) == {}
    single_asset = returns.copy()
    single_asset[:, :4] = np.nan
    assert last_window_edges(GRANGER, single_asset) == {}


def test_a_copy_of_an_asset_explains_nothing_of_it() -> None:
    """Asset 4 is a copy of asset 1, which asset 0 leads."""
    returns = make_returns_with_leaders()
    returns[:, 4] = 2 * returns[:, 1]
    partial_r2, _ = granger_test(returns, 2)
    assert partial_r2[1, 4] < 1e-6
    assert partial_r2[4, 1] < 1e-6
    assert (0, 4) in last_window_edges(GRANGER, returns)


@pytest.mark.parametrize("rule", [LEAD_LAG, GRANGER])
def test_edges_depend_on_the_bars_of_their_window_alone(rule: LeadLagRule | GrangerRule) -> None:
    returns = make_returns_with_leaders(300, seed=3)
    ends = np.array([WINDOW_BARS - 1, 200, 299])
    whole = list(rule.edges(returns, ends))
    for end, expected in zip(ends, whole, strict=True):
        for truncated in (returns[: end + 1], returns[end - WINDOW_BARS + 1 : end + 1]):
            (edges,) = rule.edges(truncated, np.array([len(truncated) - 1]))
            for a, b in zip(edges, expected, strict=True):
                np.testing.assert_array_equal(a, b)
        changed = returns.copy()
        changed[end] += np.array([0.1, -0.2, 0.1, 0.3, -0.1])
        ((_, _, changed_weight),) = rule.edges(changed, np.array([end]))
        _, _, expected_weight = expected
        assert not np.array_equal(changed_weight, expected_weight)


@pytest.mark.parametrize(
    ("rule", "change", "message"),
    [
        (LEAD_LAG, {"window_bars": 4}, "window_bars is 4; this graph needs at least 5"),
        (LEAD_LAG, {"max_false": 0.0}, "max_false is 0"),
        (LEAD_LAG, {"top_k": 0}, "top_k is 0"),
        (LEAD_LAG, {"every_bars": 0}, "every_bars is 0"),
        (LEAD_LAG, {"max_lag": 31}, "max_lag is 31"),
        (GRANGER, {"lags": 0}, "lags is 0"),
        (GRANGER, {"window_bars": 7}, "needs at least 8 bars"),
        (GRANGER, {"max_false": 1.0}, "max_false is 1"),
        (GRANGER, {"top_k": 0}, "top_k is 0"),
    ],
)
def test_an_invalid_rule_is_refused_naming_the_field(
    rule: LeadLagRule | GrangerRule, change: dict[str, float], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        replace(rule, **change)
