"""Inputs of a night's portfolios: prices, the bars to decide on, funding by bar, and target weights of a forecast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.features.indicators import log_total_return_index
from models.panel import Panel
from models.scoring.portfolio import Limits, decide, latest_views, session_returns
from models.scoring.signals import views
from models.sessions import HOUR, bar_closes, session_ends
from tasks.forecasts import PROBABILITIES
from tasks.night import Night
from tasks.panels import load_bars, load_benchmark, load_funding

SETTLEMENT_GRID = 8 * HOUR  # every perpetual settles here, whether its own interval is 1, 2, 4 or 8 hours


@dataclass(frozen=True, eq=False)
class Asset:
    """Bars with their opens and closes on the total-return index, (t, n), NaN where there is no bar."""

    bars: Panel
    opens: np.ndarray
    closes: np.ndarray

    @classmethod
    def from_bars(cls, bars: Panel) -> Asset:
        """The index of each symbol is 1 at its first bar, so that a later dividend moves no earlier value."""
        index = np.exp(log_total_return_index(bars))
        return cls(bars, index * bars.column("open") / bars.column("close"), index)


@dataclass(frozen=True, eq=False)
class PortfolioInputs:
    """The members and the benchmark on one grid; ``closed_at`` (t,) is when each bar closes.

    ``decisions`` (d,) are the bars that end a session: each daily bar of an exchange, the last of a UTC day for
    perpetuals, each one-second bar. A day without its last bar has no decision.
    """

    members: Asset
    benchmark: Asset
    closed_at: np.ndarray
    decisions: np.ndarray

    @property
    def ts(self) -> np.ndarray:
        """Bar opens, (t,)."""
        return self.members.bars.ts


def load_portfolio_inputs(night: Night) -> PortfolioInputs:
    """The portfolio inputs of a night, up to its clock."""
    universe = night.universe
    bars = load_bars(night)
    closed_at = bar_closes(universe.calendar, universe.interval, bars.ts)
    decisions = session_ends(universe.calendar, universe.interval, closed_at)
    return PortfolioInputs(Asset.from_bars(bars), Asset.from_bars(load_benchmark(night)), closed_at, decisions)


def session_bars(asset: Asset, decisions: np.ndarray) -> Panel:
    """``close`` and ``total_return`` of whole sessions, (d, n), masked where an asset has no bar at the decision."""
    mask = asset.bars.mask[decisions]
    returns = session_returns(asset.closes[decisions])
    values = np.stack((asset.bars.column("close")[decisions], np.where(mask, returns, np.nan)), axis=-1)
    return Panel(asset.bars.ts[decisions], asset.bars.symbols, ("close", "total_return"), values, mask)


def forecast_weights(inputs: PortfolioInputs, forecast: Panel, limits: Limits, first: int) -> np.ndarray:
    """Target weights (d − first, n) of a forecast at the decisions from ``first`` on, under the limits."""
    last, age = latest_views(forecast.mask, inputs.closed_at, inputs.decisions)
    probabilities = np.stack([forecast.column(name) for name in PROBABILITIES], axis=-1)
    view = views(np.take_along_axis(probabilities, np.maximum(last, 0)[:, :, None], axis=0))
    return decide(view.side, view.confidence, age, inputs.members.closes[inputs.decisions], limits, first)


def funding_by_bar(night: Night, inputs: PortfolioInputs, symbols: tuple[str, ...]) -> np.ndarray:
    """Sum of the funding rates settled in (open, close] of each bar, (t, n); NaN where none is on record."""
    settled = load_funding(night, symbols)
    ts = settled["ts"].to_numpy().astype("datetime64[us]")
    column = {symbol: j for j, symbol in enumerate(symbols)}
    j = np.array([column[s] for s in settled["symbol"].to_pylist()], dtype=np.int64)
    i = np.searchsorted(inputs.closed_at, ts)
    inside = (i < len(inputs.closed_at)) & (ts > inputs.ts[0])
    total = np.zeros((len(inputs.ts), len(symbols)))
    has_settled = np.zeros(total.shape, dtype=bool)
    np.add.at(total, (i[inside], j[inside]), settled["rate"].to_numpy()[inside])
    has_settled[i[inside], j[inside]] = True
    return np.where(has_settled, total, np.nan)


def funding_coverage(funding: np.ndarray, has_bar: np.ndarray, closed_at: np.ndarray) -> float:
    """Share of the due settlements that are on record; NaN when none was due.

    ``funding`` (t, n) from ``funding_by_bar``; ``has_bar`` (t, n) bool; ``closed_at`` (t,). Only settlements at every
    eighth hour are counted: each perpetual has those, whatever its own interval.
    """
    due = has_bar & (closed_at.astype(np.int64) % SETTLEMENT_GRID.astype(np.int64) == 0)[:, None]
    return float((due & ~np.isnan(funding)).sum() / due.sum()) if due.any() else float("nan")
