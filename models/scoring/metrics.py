"""Performance measures: pure functions of one series of period returns, (t,) float64 → float.

Returns are simple fractions per period; costs are already subtracted by the caller. No function reads a calendar: the
caller passes ``periods_per_year``. One NaN rule for all: a series that contains a NaN, or is too short or too flat for
the measure to exist, gives NaN. One sign convention: a drawdown is a negative fraction (the source articles use both).
"""

from __future__ import annotations

import numpy as np

from models.sessions import DAYS_PER_YEAR

NAN = float("nan")


def _equity(returns: np.ndarray) -> np.ndarray:
    """Growth of 1, (t + 1,), the starting 1 included."""
    return np.concatenate(([1.0], np.cumprod(1.0 + returns)))


def total_return(returns: np.ndarray) -> float:
    """Π(1 + r) − 1; NaN for an empty series."""
    return float(np.prod(1.0 + returns) - 1.0) if len(returns) else NAN


def annual_return(returns: np.ndarray, periods_per_year: float) -> float:
    """Compound annual growth rate, (Π(1 + r))^(periods per year / t) − 1; −1 once everything is lost.

    NaN for a series of less than a day: minutes cannot be extrapolated to a year, and the power would overflow.
    """
    if len(returns) * DAYS_PER_YEAR < periods_per_year or len(returns) == 0:
        return NAN
    growth = 1.0 + total_return(returns)
    return float(growth ** (periods_per_year / len(returns)) - 1.0) if not growth <= 0 else -1.0


def annual_volatility(returns: np.ndarray, periods_per_year: float) -> float:
    """Sample standard deviation (n − 1) times √(periods per year); NaN for fewer than two returns."""
    return float(returns.std(ddof=1) * np.sqrt(periods_per_year)) if len(returns) > 1 else NAN


def sharpe(returns: np.ndarray, periods_per_year: float, risk_free: float = 0.0) -> float:
    """Mean excess return over its standard deviation, annualised by √(periods per year); NaN for a constant series.

    ``risk_free`` is a rate per year, spread evenly over the periods.
    """
    if len(returns) < 2 or returns.max() == returns.min():
        return NAN
    excess = returns.mean() - risk_free / periods_per_year
    return float(excess / returns.std(ddof=1) * np.sqrt(periods_per_year))


def sortino(returns: np.ndarray, periods_per_year: float, risk_free: float = 0.0) -> float:
    """Mean excess return over the root mean square of the excess losses, annualised; NaN without a loss."""
    if len(returns) == 0:
        return NAN
    excess = returns - risk_free / periods_per_year
    downside = np.sqrt(np.mean(np.minimum(excess, 0.0) ** 2))
    return float(excess.mean() / downside * np.sqrt(periods_per_year)) if downside != 0 else NAN


def drawdowns(equity: np.ndarray) -> np.ndarray:
    """Fraction of each mark below the highest mark so far, (t,), ≤ 0. ``equity`` (t,) starts at its first mark."""
    return equity / np.maximum.accumulate(equity) - 1.0


def max_drawdown(returns: np.ndarray) -> float:
    """The largest fall below the running peak as a negative fraction, the starting 1 included; 0 without a fall."""
    return float(drawdowns(_equity(returns)).min()) if len(returns) else NAN


def calmar(returns: np.ndarray, periods_per_year: float) -> float:
    """Compound annual return over the size of the maximum drawdown; NaN without a drawdown."""
    depth = max_drawdown(returns)
    return annual_return(returns, periods_per_year) / -depth if depth < 0 else NAN


def win_rate(returns: np.ndarray) -> float:
    """Share of gains among the periods whose return is not 0; NaN without such a period."""
    results = np.count_nonzero(returns)
    return np.count_nonzero(returns > 0) / results if results and not np.isnan(returns).any() else NAN


def profit_factor(returns: np.ndarray) -> float:
    """Sum of the gains over the size of the sum of the losses; NaN without a loss."""
    gains = np.maximum(returns, 0.0).sum()
    losses = np.minimum(returns, 0.0).sum()
    return float(gains / -losses) if losses < 0 else NAN


def annual_sum(amounts: np.ndarray, periods_per_year: float) -> float:
    """Amounts per period (turnover, cost) as a sum per year: their mean times periods per year; NaN when empty."""
    return float(amounts.mean() * periods_per_year) if len(amounts) else NAN


def turnover(traded: np.ndarray, periods_per_year: float) -> float:
    """Notional traded in a year as a multiple of equity. ``traded`` (t,) Σ|Δw| per period, both sides counted."""
    return annual_sum(traded, periods_per_year)


def summary(returns: np.ndarray, periods_per_year: float, risk_free: float = 0.0) -> dict[str, float]:
    """Every measure of a return series by its column name on the leaderboard."""
    return {
        "sharpe": sharpe(returns, periods_per_year, risk_free),
        "sortino": sortino(returns, periods_per_year, risk_free),
        "calmar": calmar(returns, periods_per_year),
        "annual_return": annual_return(returns, periods_per_year),
        "annual_volatility": annual_volatility(returns, periods_per_year),
        "max_drawdown": max_drawdown(returns),
        "win_rate": win_rate(returns),
        "profit_factor": profit_factor(returns),
        "total_return": total_return(returns),
    }
