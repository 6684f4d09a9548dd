"""Performance measures: pure functions of one series of returns per period, (t,) float64 → float.

Returns are simple fractions after costs, oldest first. No function reads a calendar: the caller passes
``periods_per_year``. A measure is NaN if the series contains a NaN, and if the measure does not exist for the series:
each docstring says when. A drawdown is a negative fraction or 0 (the source articles use both signs).
"""

from __future__ import annotations

import numpy as np

from models.sessions import DAYS_PER_YEAR

NAN = float("nan")


def _equity(returns: np.ndarray) -> np.ndarray:
    """Equity after each period from a starting equity of 1, (t + 1,); the first value is the starting equity."""
    return np.concatenate(([1.0], np.cumprod(1.0 + returns)))


def total_return(returns: np.ndarray) -> float:
    """Π(1 + r) − 1; NaN for an empty series."""
    return float(np.prod(1.0 + returns) - 1.0) if len(returns) else NAN


def annual_return(returns: np.ndarray, periods_per_year: float) -> float:
    """Compound annual growth rate, (Π(1 + r))^(periods per year / t) − 1; −1 once everything is lost.

    NaN for an empty series and for a series of less than a day: minutes cannot be extrapolated to a year, and the power
    would overflow.
    """
    if len(returns) * DAYS_PER_YEAR < periods_per_year or len(returns) == 0:
        return NAN
    growth = 1.0 + total_return(returns)
    if growth <= 0:
        return -1.0
    return float(growth ** (periods_per_year / len(returns)) - 1.0)


def annual_volatility(returns: np.ndarray, periods_per_year: float) -> float:
    """Sample standard deviation (divisor t − 1) times √(periods per year); NaN for fewer than two returns."""
    return float(returns.std(ddof=1) * np.sqrt(periods_per_year)) if len(returns) > 1 else NAN


def sharpe(returns: np.ndarray, periods_per_year: float, risk_free: float = 0.0) -> float:
    """Mean excess return over the sample standard deviation, times √(periods per year).

    ``risk_free`` is a rate per year, which is divided evenly among the periods. NaN for fewer than two returns and for
    a constant series.
    """
    if len(returns) < 2 or returns.max() == returns.min():
        return NAN
    excess = returns.mean() - risk_free / periods_per_year
    return float(excess / returns.std(ddof=1) * np.sqrt(periods_per_year))


def sortino(returns: np.ndarray, periods_per_year: float, risk_free: float = 0.0) -> float:
    """Mean excess return over the root mean square of min(excess return, 0), times √(periods per year).

    Both means are over all periods. ``risk_free`` is a rate per year. NaN without a negative excess return.
    """
    if len(returns) == 0:
        return NAN
    excess = returns - risk_free / periods_per_year
    downside = np.sqrt(np.mean(np.minimum(excess, 0.0) ** 2))
    return float(excess.mean() / downside * np.sqrt(periods_per_year)) if downside != 0 else NAN


def drawdowns(equity: np.ndarray) -> np.ndarray:
    """Fraction of each ``equity`` (t,) below the highest one up to then, (t,), ≤ 0."""
    return equity / np.maximum.accumulate(equity) - 1.0


def max_drawdown(returns: np.ndarray) -> float:
    """The largest fall of the equity below its running peak, as a negative fraction; 0 without a fall.

    The starting equity counts as the first peak. NaN for an empty series.
    """
    return float(drawdowns(_equity(returns)).min()) if len(returns) else NAN


def calmar(returns: np.ndarray, periods_per_year: float) -> float:
    """Compound annual return over the absolute maximum drawdown; NaN without a drawdown or without an annual return."""
    drawdown = max_drawdown(returns)
    return annual_return(returns, periods_per_year) / -drawdown if drawdown < 0 else NAN


def win_rate(returns: np.ndarray) -> float:
    """Share of positive returns among the returns that are not 0; NaN if all are 0."""
    n_nonzero = np.count_nonzero(returns)
    if n_nonzero == 0 or np.isnan(returns).any():
        return NAN
    return np.count_nonzero(returns > 0) / n_nonzero


def profit_factor(returns: np.ndarray) -> float:
    """Sum of the positive returns over the absolute sum of the negative returns; NaN without a negative return."""
    gains = np.maximum(returns, 0.0).sum()
    losses = np.minimum(returns, 0.0).sum()
    return float(gains / -losses) if losses < 0 else NAN


def annual_sum(amounts: np.ndarray, periods_per_year: float) -> float:
    """The sum per year of ``amounts`` (t,) per period: their mean times periods per year; NaN for an empty series."""
    return float(amounts.mean() * periods_per_year) if len(amounts) else NAN


def turnover(traded: np.ndarray, periods_per_year: float) -> float:
    """Notional traded in a year as a multiple of equity; NaN for an empty series.

    ``traded`` (t,) is the traded notional of each period as a fraction of equity; buys and sells both count.
    """
    return annual_sum(traded, periods_per_year)


def summary(returns: np.ndarray, periods_per_year: float, risk_free: float = 0.0) -> dict[str, float]:
    """Every measure of a return series: name of its leaderboard column → value."""
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
