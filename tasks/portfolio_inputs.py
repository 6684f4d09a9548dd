"""Inputs of a night's portfolios: prices, the bars to decide on, funding by bar, and target weights of a forecast.

A night is the run for one as-of date. Glossary: t bars, n assets, d decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.features.indicators import log_total_return_index
from models.panel import Panel
from models.scoring.portfolio import Limits, decide_weights, latest_signals, session_returns
from models.scoring.signals import signals_from_probabilities
from models.sessions import HOUR, bar_closes, session_ends
from tasks.forecasts import PROBABILITIES
from tasks.night import Night
from tasks.panels import load_bars, load_benchmark, load_funding

SETTLEMENT_GRID = 8 * HOUR  # every perpetual settles here, whether its own interval is 1, 2, 4 or 8 hours


@dataclass(frozen=True, eq=False)
class Asset:
    """Bars of n assets, and their total-return indices at the opens and closes, (t, n), NaN where there is no bar."""

    bars: Panel
    open_index: np.ndarray
    close_index: np.ndarray

    @classmethod
    def from_bars(cls, bars: Panel) -> Asset:
        """The assets of ``bars``; each index is 1 at the asset's first close, so that no later dividend changes it."""
        close_index = np.exp(log_total_return_index(bars))
        return cls(bars, close_index * bars.column("open") / bars.column("close"), close_index)


@dataclass(frozen=True, eq=False)
class PortfolioInputs:
    """The universe's members and its benchmark on one grid of bars, with ``close_times`` (t,) datetime64[us], UTC.

    ``decisions`` (d,) are the positions of the bars that end a session: every daily bar of an exchange, the last hourly
    bar of a UTC day for perpetuals, every one-second bar. A day whose last bar has not closed has no decision.
    """

    members: Asset
    benchmark: Asset
    close_times: np.ndarray
    decisions: np.ndarray

    @property
    def ts(self) -> np.ndarray:
        """Open times of the bars, (t,)."""
        return self.members.bars.ts


def load_portfolio_inputs(night: Night) -> PortfolioInputs:
    """The portfolio inputs of a night, up to its clock. Raises NoBarsError like ``load_bars``."""
    universe = night.universe
    bars = load_bars(night)
    close_times = bar_closes(universe.calendar, universe.interval, bars.ts)
    decisions = session_ends(universe.calendar, universe.interval, close_times)
    return PortfolioInputs(Asset.from_bars(bars), Asset.from_bars(load_benchmark(night)), close_times, decisions)


def session_bars(asset: Asset, decisions: np.ndarray) -> Panel:
    """A panel of sessions, one row per decision, with the columns close and total_return (a fraction).

    Its mask is False where an asset has no bar at the decision; the asset's next return then covers both sessions.
    """
    mask = asset.bars.mask[decisions]
    returns = session_returns(asset.close_index[decisions])
    values = np.stack((asset.bars.column("close")[decisions], np.where(mask, returns, np.nan)), axis=-1)
    return Panel(asset.bars.ts[decisions], asset.bars.symbols, ("close", "total_return"), values, mask)


def forecast_weights(inputs: PortfolioInputs, forecast: Panel, limits: Limits, first: int) -> np.ndarray:
    """Target weights (d − first, n) of a forecast at the decisions [first, d), under the limits.

    A decision uses each asset's latest forecast up to its own bar.
    """
    latest_bar_index, age_hours = latest_signals(forecast.mask, inputs.close_times, inputs.decisions)
    probabilities = np.stack([forecast.column(name) for name in PROBABILITIES], axis=-1)
    bar_index = np.maximum(latest_bar_index, 0)  # −1, for no forecast, would read the last bar; its age is infinite
    signals = signals_from_probabilities(np.take_along_axis(probabilities, bar_index[:, :, None], axis=0))
    close_index = inputs.members.close_index[inputs.decisions]
    return decide_weights(signals.direction, signals.confidence, age_hours, close_index, limits, first)


def funding_by_bar(night: Night, inputs: PortfolioInputs, symbols: tuple[str, ...]) -> np.ndarray:
    """Sum of the funding rates settled in (open, close] of each bar, (t, n); NaN where no settlement is stored.

    A rate is the fraction of a position's value that longs pay to shorts.
    """
    settlements = load_funding(night, symbols)
    settled_at = settlements["ts"].to_numpy().astype("datetime64[us]")
    asset_index = {symbol: j for j, symbol in enumerate(symbols)}
    assets = np.array([asset_index[symbol] for symbol in settlements["symbol"].to_pylist()], dtype=np.int64)
    bars = np.searchsorted(inputs.close_times, settled_at)
    is_in_a_bar = (bars < len(inputs.close_times)) & (settled_at > inputs.ts[0])
    bars = bars[is_in_a_bar]
    assets = assets[is_in_a_bar]
    total_rate = np.zeros((len(inputs.ts), len(symbols)))
    is_on_record = np.zeros(total_rate.shape, dtype=bool)
    np.add.at(total_rate, (bars, assets), settlements["rate"].to_numpy()[is_in_a_bar])
    is_on_record[bars, assets] = True
    return np.where(is_on_record, total_rate, np.nan)


def funding_coverage(funding: np.ndarray, has_bar: np.ndarray, close_times: np.ndarray) -> float:
    """Fraction of the due settlements that are stored; NaN when no settlement was due.

    ``funding`` (t, n) is the result of ``funding_by_bar``. ``has_bar`` (t, n) bool is True where the asset has a bar.
    ``close_times`` (t,) datetime64[us]. A settlement is due at each close at 0, 8 and 16 o'clock UTC; the settlements
    of shorter funding intervals are not counted.
    """
    is_due = has_bar & (close_times.astype(np.int64) % SETTLEMENT_GRID.astype(np.int64) == 0)[:, None]
    if not is_due.any():
        return float("nan")
    return float((is_due & ~np.isnan(funding)).sum() / is_due.sum())
