"""What a night's portfolios trade: prices, the bars to decide on, funding by bar, and the weights of a forecast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.features.indicators import log_total_return_index
from models.panel import Panel
from models.scoring.portfolio import Limits, decide, last_seen, session_returns
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
    def of(cls, bars: Panel) -> Asset:
        """The index starts at 1 at a symbol's first bar, so no later dividend moves it."""
        index = np.exp(log_total_return_index(bars))
        return cls(bars, index * bars.column("open") / bars.column("close"), index)


@dataclass(frozen=True, eq=False)
class PortfolioInputs:
    """The members and the benchmark on one grid; ``closed`` (t,) when each bar closes.

    ``decisions`` (d,) are the bars that end a session: each daily bar of an exchange, the last of a UTC day for
    perpetuals, each bar of a second. A day without its last bar decides nothing.
    """

    members: Asset
    benchmark: Asset
    closed: np.ndarray
    decisions: np.ndarray

    @property
    def ts(self) -> np.ndarray:
        """Bar opens, (t,)."""
        return self.members.bars.ts


def load_portfolio_inputs(night: Night) -> PortfolioInputs:
    """The book of a night, up to its clock."""
    universe = night.universe
    bars = load_bars(night)
    closed = bar_closes(universe.calendar, universe.interval, bars.ts)
    decisions = session_ends(universe.calendar, universe.interval, closed)
    return PortfolioInputs(Asset.of(bars), Asset.of(load_benchmark(night)), closed, decisions)


def session_bars(asset: Asset, decisions: np.ndarray) -> Panel:
    """``close`` and ``total_return`` of whole sessions, (d, n), masked where an asset has no bar at the decision."""
    mask = asset.bars.mask[decisions]
    returns = session_returns(asset.closes[decisions])
    values = np.stack((asset.bars.column("close")[decisions], np.where(mask, returns, np.nan)), axis=-1)
    return Panel(asset.bars.ts[decisions], asset.bars.symbols, ("close", "total_return"), values, mask)


def forecast_weights(book: PortfolioInputs, forecast: Panel, limits: Limits, first: int) -> np.ndarray:
    """Target weights (d − first, n) of a forecast at the decisions from ``first`` on, under the limits."""
    last, age = last_seen(forecast.mask, book.closed, book.decisions)
    probabilities = np.stack([forecast.column(name) for name in PROBABILITIES], axis=-1)
    view = views(np.take_along_axis(probabilities, np.maximum(last, 0)[:, :, None], axis=0))
    return decide(view.side, view.confidence, age, book.members.closes[book.decisions], limits, first)


def funding_by_bar(night: Night, book: PortfolioInputs, symbols: tuple[str, ...]) -> np.ndarray:
    """Sum of the funding rates settled in (open, close] of each bar, (t, n); NaN where none is on record."""
    settled = load_funding(night, symbols)
    ts = settled["ts"].to_numpy().astype("datetime64[us]")
    column = {symbol: j for j, symbol in enumerate(symbols)}
    j = np.array([column[s] for s in settled["symbol"].to_pylist()], dtype=np.int64)
    i = np.searchsorted(book.closed, ts)
    inside = (i < len(book.closed)) & (ts > book.ts[0])
    total, known = np.zeros((len(book.ts), len(symbols))), np.zeros((len(book.ts), len(symbols)), dtype=bool)
    np.add.at(total, (i[inside], j[inside]), settled["rate"].to_numpy()[inside])
    known[i[inside], j[inside]] = True
    return np.where(known, total, np.nan)


def funding_coverage(funding: np.ndarray, trades: np.ndarray, closed: np.ndarray) -> float:
    """Share of the due settlements that are on record; NaN when none was due.

    ``funding`` (t, n) from ``funding_by_bar``, ``trades`` (t, n) where an asset has a bar. Counted at every eighth
    hour, where each perpetual settles whatever its own interval, so that need not be known.
    """
    due = trades & (closed.astype(np.int64) % SETTLEMENT_GRID.astype(np.int64) == 0)[:, None]
    return float((due & ~np.isnan(funding)).sum() / due.sum()) if due.any() else float("nan")
