"""Directed graphs against statsmodels and planted leaders, and against the future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests
from statsmodels.tsa.stattools import grangercausalitytests

from models.graphs.lead_lag import GrangerRule, LeadLagRule, false_discoveries, granger, lead_correlation
from models.graphs.snapshot import GraphError

WINDOW = 120
LEAD_LAG = LeadLagRule(window_bars=WINDOW, top_k=3, every_bars=10, max_lag=3)
GRANGER = GrangerRule(window_bars=WINDOW, top_k=3, every_bars=10, lags=2)


def led(t: int = WINDOW, lag: int = 2, n: int = 5, seed: int = 0) -> np.ndarray:
    """Returns (t, n) in which asset 0 leads asset 1 by ``lag`` bars, and asset 3 leads asset 2, against it, by one."""
    returns = np.random.default_rng(seed).normal(size=(t, n))
    returns[lag:, 1] += 1.5 * returns[:-lag, 0]
    returns[1:, 2] -= 1.5 * returns[:-1, 3]
    return 0.01 * returns


def edges(rule: LeadLagRule | GrangerRule, returns: np.ndarray) -> dict[tuple[int, int], float]:
    ((src, dst, weight),) = rule.edges(returns, np.array([len(returns) - 1]))
    return {(int(i), int(j)): float(w) for i, j, w in zip(src, dst, weight, strict=True)}


def test_lead_correlation_is_numpys_at_the_strongest_lag() -> None:
    returns = led()
    found, _ = lead_correlation(returns, 3)
    for i in range(5):
        for j in range(5):
            by_lag = [np.corrcoef(returns[:-lag, i], returns[lag:, j])[0, 1] for lag in (1, 2, 3)]
            np.testing.assert_allclose(found[i, j], max(by_lag, key=abs), atol=1e-6)


def test_the_leader_points_at_those_it_leads_with_their_sign() -> None:
    """HYB-31."""
    found = edges(LEAD_LAG, led())
    assert set(found) == {(0, 1), (3, 2)}
    assert found[0, 1] > 0.6 and found[3, 2] < -0.6


def test_time_reversed_the_edges_are_too() -> None:
    assert set(edges(LEAD_LAG, led()[::-1])) == {(1, 0), (2, 3)}


def test_granger_is_statsmodels_for_every_pair() -> None:
    """TGN-07: the F-test on the residual sums of squares, from regressions with a constant."""
    returns = led(seed=1)
    for lags in (1, 2, 4):
        explained, p_value = granger(returns, lags)
        for i in range(5):
            for j in range(5):
                if i == j:
                    assert np.isnan(p_value[i, j])
                    continue
                tests, models = grangercausalitytests(returns[:, [j, i]], [lags])[lags]
                np.testing.assert_allclose(p_value[i, j], tests["ssr_ftest"][1], rtol=1e-6, atol=1e-300)
                expected = 1 - models[1].ssr / models[0].ssr
                np.testing.assert_allclose(explained[i, j], expected, atol=1e-6)


def test_false_discoveries_are_statsmodels() -> None:
    p_value = np.random.default_rng(2).random((6, 6)) ** 3
    np.fill_diagonal(p_value, np.nan)
    known = np.isfinite(p_value)
    corrected = false_discoveries(p_value)
    np.testing.assert_allclose(corrected[known], multipletests(p_value[known], method="fdr_bh")[1])
    assert (np.diag(corrected) == 1).all()
    assert (false_discoveries(np.full((3, 3), np.nan)) == 1).all()


def test_the_cause_points_at_its_effect() -> None:
    assert set(edges(GRANGER, led())) == {(0, 1), (3, 2)}
    assert min(edges(GRANGER, led()).values()) > 0.4


@pytest.mark.parametrize(("rule", "test"), [(GRANGER, granger), (LEAD_LAG, lead_correlation)])
def test_noise_has_hardly_an_edge_after_correction_and_many_before(rule: LeadLagRule | GrangerRule, test) -> None:
    found = before = 0
    for seed in range(20):
        returns = np.random.default_rng(seed).normal(size=(WINDOW, 10))
        found += len(edges(rule, returns))
        before += int((test(returns, 2)[1] < 0.05).sum())
    assert before > 40 and found <= 6


def test_the_p_value_of_a_lead_is_fisher_s_for_the_best_of_its_lags() -> None:
    """Holes count: the bars are those that both have."""
    returns = led(seed=2)
    returns[30:38, 4] = np.nan
    lead, p_value = lead_correlation(returns, 1)
    bars = int((np.isfinite(returns[:-1, 4]) & np.isfinite(returns[1:, 0])).sum())
    assert bars == WINDOW - 1 - 8
    assert p_value[4, 0] == pytest.approx(2 * norm.sf(np.arctanh(abs(lead[4, 0])) * np.sqrt(bars - 3)))
    longer, of_three = lead_correlation(returns, 3)
    same = (longer == lead) & ~np.eye(5, dtype=bool) & (p_value < 1 / 3)
    assert same.any() and np.isnan(np.diag(p_value)).all()
    np.testing.assert_allclose(of_three[same], 3 * p_value[same])


def test_an_asset_with_a_hole_or_without_moves_neither_causes_nor_is_caused() -> None:
    returns = led()
    returns[40, 1], returns[:, 2] = np.nan, 0.0
    assert np.isnan(granger(returns, 2)[1][[1, 2]]).all() and np.isnan(granger(returns, 2)[1][:, [1, 2]]).all()
    assert edges(GRANGER, returns) == {}
    one = returns.copy()
    one[:, :4] = np.nan
    assert edges(GRANGER, one) == {}


def test_a_copy_of_an_asset_tells_nothing_more_of_it() -> None:
    returns = led()
    returns[:, 4] = 2 * returns[:, 1]
    explained, _ = granger(returns, 2)
    assert explained[1, 4] < 1e-6 and explained[4, 1] < 1e-6 and (0, 4) in edges(GRANGER, returns)


@pytest.mark.parametrize("rule", [LEAD_LAG, GRANGER])
def test_a_window_ends_with_its_own_bar(rule: LeadLagRule | GrangerRule) -> None:
    returns = led(300, seed=3)
    ends = np.array([WINDOW - 1, 200, 299])
    whole = list(rule.edges(returns, ends))
    for end, expected in zip(ends, whole, strict=True):
        for cut in (returns[: end + 1], returns[end - WINDOW + 1 : end + 1]):
            (found,) = rule.edges(cut, np.array([len(cut) - 1]))
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
        changed = returns.copy()
        changed[end] += np.array([0.1, -0.2, 0.1, 0.3, -0.1])
        assert not np.array_equal(next(iter(rule.edges(changed, np.array([end]))))[2], expected[2])


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
def test_a_rule_that_makes_no_sense_is_named(rule, change: dict, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        replace(rule, **change)
