"""Every measure equals a number computed by hand on a tiny series.

Tests MAM-26, MAM-27, S4-42, HYB-29 and TRAP-04 (ids: .github/sources.md).
"""

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest

from models.scoring import metrics

# grows to 1.1, falls to 0.88, recovers to 1.056: one win of 10 %, one loss of 20 %, one win of 20 %
DIP = np.array([0.10, -0.20, 0.20])
# two gains of 1 % around a loss of 2 %, and a day out of the market
SAWTOOTH = np.array([0.01, -0.02, 0.01, 0.0])
EMPTY = np.array([])
ZEROS = np.zeros(5)
CONSTANT = np.full(5, 0.01)


def test_total_return_compounds() -> None:
    assert metrics.total_return(DIP) == pytest.approx(0.056)


def test_annual_return_of_a_full_year_is_its_total_return() -> None:
    assert metrics.annual_return(DIP, 3) == pytest.approx(0.056)
    assert metrics.annual_return(DIP, 6) == pytest.approx(1.056**2 - 1)


def test_annual_return_uses_the_periods_per_year_that_it_receives() -> None:
    day = np.array([0.001])
    assert metrics.annual_return(day, 252) == pytest.approx(1.001**252 - 1)
    assert metrics.annual_return(day, 365) == pytest.approx(1.001**365 - 1)


def test_less_than_a_day_has_no_annual_return_and_no_calmar() -> None:
    seconds = np.array([0.5, -0.1] * 60)
    seconds_per_year = 365 * 86_400
    assert np.isnan(metrics.annual_return(seconds, seconds_per_year))
    assert np.isnan(metrics.calmar(seconds, seconds_per_year))
    full_day = metrics.annual_return(np.full(86_400, 1e-9), seconds_per_year)
    assert full_day == pytest.approx(1e-9 * seconds_per_year, rel=0.02)  # 1.6 % more, because returns compound


def test_the_annual_return_after_losing_everything_is_minus_one() -> None:
    assert metrics.annual_return(np.array([0.5, -1.0, 0.2]), 252) == -1.0


def test_annual_volatility_is_the_sample_standard_deviation_scaled() -> None:
    # mean 0, squares (1 + 4 + 1 + 0) · 1e-4, divided by t − 1 = 3
    assert metrics.annual_volatility(SAWTOOTH, 252) == pytest.approx(math.sqrt(2e-4 * 252))


def test_sharpe_by_hand() -> None:
    # mean 1/30; differences from it 1/15, −7/30, 1/6; their squares sum to 26/300; divided by t − 1 = 2
    deviation = math.sqrt(26 / 300 / 2)
    assert metrics.sharpe(DIP, 252) == pytest.approx((1 / 30) / deviation * math.sqrt(252))


def test_sharpe_reads_the_risk_free_rate_as_a_rate_per_year() -> None:
    # 2 % a year over 252 days (MAM-26): a series whose mean is 2 % / 252 has no excess return
    returns = SAWTOOTH + 0.02 / 252
    assert metrics.sharpe(returns, 252, risk_free=0.02) == pytest.approx(0.0, abs=1e-12)
    assert metrics.sharpe(returns, 252) > 0


def test_sharpe_scales_with_the_root_of_the_periods_per_year() -> None:
    assert metrics.sharpe(DIP, 8760) / metrics.sharpe(DIP, 252) == pytest.approx(math.sqrt(8760 / 252))


def test_sortino_divides_by_the_root_mean_square_loss_over_all_periods() -> None:
    # mean 1/30; one loss of 0.2 in three periods
    assert metrics.sortino(DIP, 252) == pytest.approx((1 / 30) / math.sqrt(0.04 / 3) * math.sqrt(252))


def test_max_drawdown_is_a_negative_fraction() -> None:
    assert metrics.max_drawdown(DIP) == pytest.approx(-0.20)


def test_max_drawdown_counts_from_the_starting_value() -> None:
    assert metrics.max_drawdown(np.array([-0.10, 0.05])) == pytest.approx(-0.10)


def test_max_drawdown_of_a_rising_series_is_zero() -> None:
    assert metrics.max_drawdown(CONSTANT) == 0.0


def test_calmar_is_the_annual_return_over_the_largest_drawdown() -> None:
    assert metrics.calmar(DIP, 3) == pytest.approx(0.056 / 0.20)


def test_win_rate_ignores_periods_without_a_return() -> None:
    assert metrics.win_rate(SAWTOOTH) == pytest.approx(2 / 3)


def test_profit_factor_is_the_sum_of_gains_over_the_sum_of_losses() -> None:
    assert metrics.profit_factor(DIP) == pytest.approx(0.30 / 0.20)
    assert metrics.profit_factor(SAWTOOTH) == pytest.approx(1.0)


def test_turnover_is_traded_notional_per_year() -> None:
    assert metrics.turnover(np.array([1.0, 0.0, 0.5]), 252) == pytest.approx(0.5 * 252)


MEASURES = [*metrics.summary(DIP, 252), "turnover"]


def compute_measure(name: str, returns: np.ndarray) -> float:
    """The measure ``name`` of ``returns``, with 252 periods per year if it is annualised."""
    function = getattr(metrics, name)
    is_annualised = "periods_per_year" in inspect.signature(function).parameters
    return function(returns, 252) if is_annualised else function(returns)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_of_an_empty_series_is_nan(name: str) -> None:
    assert math.isnan(compute_measure(name, EMPTY))


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("position", [0, 2, -1])
def test_every_measure_of_a_series_with_a_nan_is_nan(name: str, position: int) -> None:
    returns = np.array([0.01, -0.02, 0.01, 0.03, -0.01])
    returns[position] = np.nan
    assert math.isnan(compute_measure(name, returns))


@pytest.mark.parametrize("ratio", [metrics.sharpe, metrics.sortino, metrics.calmar])
@pytest.mark.parametrize("returns", [ZEROS, CONSTANT])
def test_a_ratio_of_a_series_without_risk_is_nan(ratio: Callable[..., float], returns: np.ndarray) -> None:
    assert math.isnan(ratio(returns, 252))


@pytest.mark.parametrize("ratio", [metrics.win_rate, metrics.profit_factor])
def test_win_rate_and_profit_factor_of_a_series_of_zeros_are_nan(ratio: Callable[[np.ndarray], float]) -> None:
    assert math.isnan(ratio(ZEROS))


def test_sharpe_and_volatility_of_a_single_return_are_nan() -> None:
    assert math.isnan(metrics.sharpe(DIP[:1], 252))
    assert math.isnan(metrics.annual_volatility(DIP[:1], 252))


def test_summary_contains_every_measure_of_returns_under_the_name_of_its_function() -> None:
    summary = metrics.summary(DIP, 252)
    assert summary["total_return"] == pytest.approx(0.056)
    assert summary == {name: compute_measure(name, DIP) for name in summary}
    returns_functions = {
        name
        for name, function in inspect.getmembers(metrics, inspect.isfunction)
        if next(iter(inspect.signature(function).parameters)) == "returns" and not name.startswith("_")
    }
    assert set(summary) == returns_functions - {"summary"}
