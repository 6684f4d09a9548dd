"""A simulated market: daily stocks and hourly perpetuals, generated from a seed, starting on a fixed day.

The log return of a symbol at bar t is

    r_t = β m_t + γ s_t + ε_t + κ (γ s_{t−1} + ε'_{t−1})

m   the market factor; a Markov chain of three regimes (calm, choppy, stressed) sets its drift and volatility
s   the factor of the symbol's sector, with GARCH(1, 1) volatility
ε   the symbol's idiosyncratic shocks, with GARCH(1, 1) volatility
ε'  the idiosyncratic shocks of the sector's leader
β   the symbol's loading on the market
γ   the symbol's loading on the sector; in the last term, the leader's loading
κ   the synthetic lead–lag effect: the other symbols of a sector follow the leader's shock one bar later; κ is 0 for
    leaders and in sectors without a leader

Every random series has its own generator, seeded by the series' name, and is drawn in time order. Therefore a later
night (the run for one date) has more bars but the same earlier bars. No parameter is estimated from a real market.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

import warehouse
from models.sessions import DAY, HOUR, SESSIONS_PER_YEAR, bar_closes, bar_opens, periods_per_year
from tasks.errors import NightOutOfRangeError
from tasks.markets.recording import Bars, Perpetual, Stock

FIRST_DAY = date(2021, 1, 1)
FIRST_NIGHT = date(2023, 1, 1)
SEED = 20210101
SEED_FOLDER = Path(warehouse.__file__).parent / "seeds"

# for the regimes calm, choppy and stressed: a stock market's drift and volatility per year (log returns), the mean
# duration of the regime in sessions, and the probabilities of the next regime (row: current regime, column: next)
YEARLY_DRIFTS = (0.20, 0.0, -0.30)
YEARLY_VOLATILITIES = (0.10, 0.18, 0.35)
REGIME_SESSIONS = (120, 60, 25)
TRANSITIONS = ((0.0, 0.8, 0.2), (0.7, 0.0, 0.3), (0.3, 0.7, 0.0))
CRYPTO_VOLATILITY_RATIO = 2.0  # to a stock market's volatility
GARCH_ALPHA = 0.14
GARCH_BETA = 0.84
LEAD_LAG = 0.25  # κ
LEADERS = {  # the leader of each sector
    "Communication Services": "GOOGL",
    "Consumer Discretionary": "AMZN",
    "Consumer Staples": "PG",
    "Energy": "XOM",
    "Financials": "JPM",
    "Health Care": "JNJ",
    "Industrials": "CAT",
    "Information Technology": "AAPL",
    "Materials": "LIN",
    "Real Estate": "AMT",
    "Currency": "BTCUSDT",
    "DeFi": "UNIUSDT",
    "Infrastructure": "LINKUSDT",
    "Smart contracts": "ETHUSDT",
}
GAP_SHARE = 0.3  # share of a stock's return between the last close and the open
SPLITS = {"NVDA": (np.datetime64("2024-06-10"), 10.0)}  # ex-date, new shares per old share
DIVIDEND_SESSIONS = 63  # sessions between two dividends
DIVIDEND_YIELD = 0.005  # of the price, per dividend
DEFAULT_FUNDING_INTERVAL_HOURS = 8
FUNDING_INTERVAL_HOURS = {"SOLUSDT": 4}


class SimulatedMarket:
    """The simulated market up to the end of ``as_of``, with the symbols of all universes in warehouse/seeds."""

    providers = ("yahoo", "bybit")

    def __init__(self, as_of: date) -> None:
        sectors = _seeded_sectors()
        self._sessions = bar_opens("XNYS", "1d", FIRST_DAY, as_of + timedelta(days=1))
        self._hours = bar_opens("24/7", "1h", FIRST_DAY, as_of + timedelta(days=1))
        self._stocks = Factors("stocks", sectors["yahoo"], len(self._sessions), "XNYS", "1d", 1.0)
        self._perpetuals = Factors(
            "perpetuals", sectors["bybit"], len(self._hours), "24/7", "1h", CRYPTO_VOLATILITY_RATIO
        )

    def check_night(self, provider: str, as_of: date) -> None:
        """Raises NightOutOfRangeError for a night before FIRST_NIGHT or after today."""
        today = datetime.now(UTC).date()
        if not FIRST_NIGHT <= as_of <= today:
            raise NightOutOfRangeError(
                f"the night {as_of} cannot be simulated: the market begins on {FIRST_DAY}, its nights run from "
                f"{FIRST_NIGHT} to today, {today}"
            )

    def perpetuals(self) -> Sequence[str]:
        """The symbols of the perpetuals."""
        return list(self._perpetuals.sectors)

    @lru_cache(maxsize=256)  # noqa: B019 - the market is freed at the end of its night
    def stock(self, symbol: str) -> Stock:
        """One stock. Raises KeyError for a symbol of no universe."""
        factors = self._stocks
        ts = self._sessions
        returns, volatility = factors.returns(symbol)
        first_price = factors.rng(symbol, "price").uniform(40, 400)
        symbol_hash = zlib.crc32(symbol.encode())
        yields = np.zeros(len(ts))
        if symbol_hash % 3:
            yields[(np.arange(len(ts)) + symbol_hash) % DIVIDEND_SESSIONS == 0] = DIVIDEND_YIELD
        close = first_price * np.cumprod(np.exp(returns) - yields)
        last_close = np.concatenate([[first_price], close[:-1]])
        gap = GAP_SHARE * (returns + volatility * factors.rng(symbol, "gap").standard_normal(len(ts)))
        open_ = last_close * (np.exp(gap) - yields)
        splits = np.zeros(len(ts))
        shares = np.ones(len(ts))
        if symbol in SPLITS:
            ex_date, ratio = SPLITS[symbol]
            splits[ts.astype("datetime64[D]") == ex_date] = ratio
            shares[ts.astype("datetime64[D]") >= ex_date] = ratio
        volume = np.round(factors.volume(symbol, returns, volatility, 2e9 / first_price) * shares)
        high, low = factors.extremes(symbol, open_, close, volatility)
        prices = [np.maximum(np.round(price / shares, 2), 0.01) for price in (open_, high, low, close)]
        bars = _bars(ts, bar_closes("XNYS", "1d", ts), prices, volume)
        return Stock(bars, np.round(last_close * yields / shares, 3), splits)

    @lru_cache(maxsize=64)  # noqa: B019
    def perpetual(self, symbol: str) -> Perpetual:
        """One perpetual. Raises KeyError for a symbol of no universe."""
        factors = self._perpetuals
        ts = self._hours
        returns, volatility = factors.returns(symbol)
        first_price = 30_000.0 if symbol == "BTCUSDT" else float(10 ** factors.rng(symbol, "price").uniform(0, 3))
        decimals = 6 - int(np.floor(np.log10(first_price)))
        close = first_price * np.exp(np.cumsum(returns))
        open_ = np.concatenate([[first_price], close[:-1]])
        high, low = factors.extremes(symbol, open_, close, volatility)
        tick_size = 10.0**-decimals
        prices = [np.maximum(np.round(price, decimals), tick_size) for price in (open_, high, low, close)]
        volume = np.round(factors.volume(symbol, returns, volatility, 2e7 / first_price), 3)
        hourly = _bars(ts, ts + HOUR, prices, volume)
        hours = FUNDING_INTERVAL_HOURS.get(symbol, DEFAULT_FUNDING_INTERVAL_HOURS)
        settlement_hours = np.arange(hours, len(ts) + 1, hours)  # hours after the first bar's open
        n_settlements = len(settlement_hours)
        trend = returns[: n_settlements * hours].reshape(n_settlements, hours).sum(axis=1)
        noise = 5e-5 * factors.rng(symbol, "funding").standard_normal(n_settlements)
        rate = np.clip(1e-4 + 0.004 * trend + noise, -3.75e-3, 3.75e-3)
        funding_ts = ts[0] + settlement_hours * HOUR
        return Perpetual({"1h": hourly, "1d": _daily_bars(hourly)}, funding_ts, np.round(rate, 8))


class Factors:
    """The factors and shocks of ``n_bars`` bars of the market ``name``.

    ``sectors``: each symbol's sector, "" for a benchmark outside every sector. ``volatility_ratio``: the ratio of the
    market's volatility to a stock market's. Volatilities are standard deviations of log returns per bar.
    """

    def __init__(
        self,
        name: str,
        sectors: dict[str, str],
        n_bars: int,
        calendar: str,
        interval: str,
        volatility_ratio: float,
    ) -> None:
        self.sectors = sectors
        self._name = name
        self._n_bars = n_bars
        self._volatility_ratio = volatility_ratio
        self._bars_per_year = periods_per_year(calendar, interval)
        self._bars_per_session = self._bars_per_year / SESSIONS_PER_YEAR[calendar]

    def rng(self, *names: str) -> np.random.Generator:
        """A new generator of the random series that these names identify; equal names give equal series."""
        return np.random.default_rng([SEED, zlib.crc32("|".join((self._name, *names)).encode())])

    def returns(self, symbol: str) -> tuple[np.ndarray, np.ndarray]:
        """Log returns (n_bars,) and their conditional volatility (n_bars,).

        Raises KeyError for a symbol of no universe.
        """
        sector = self.sectors[symbol]
        market, market_volatility = self._market
        if not sector:  # a benchmark outside every sector is the market itself
            return market, market_volatility
        beta = self.rng(symbol, "beta").uniform(0.7, 1.3)
        shock, shock_volatility = self.shock(symbol)
        returns = beta * market + shock
        if LEADERS.get(sector, symbol) != symbol:
            leader_shock, _ = self.shock(LEADERS[sector])
            returns[1:] += LEAD_LAG * leader_shock[:-1]
        return returns, np.hypot(beta * market_volatility, shock_volatility)

    def shock(self, symbol: str) -> tuple[np.ndarray, np.ndarray]:
        """γ s + ε of a symbol (n_bars,) and its conditional volatility (n_bars,)."""
        loading, yearly_volatility = self.rng(symbol, "loadings").uniform((0.6, 0.12), (1.2, 0.25))
        sector, sector_volatility = self._garch(self.rng("sector", self.sectors[symbol]), 0.15)
        idiosyncratic, idiosyncratic_volatility = self._garch(self.rng(symbol, "own"), yearly_volatility)
        return loading * sector + idiosyncratic, np.hypot(loading * sector_volatility, idiosyncratic_volatility)

    def extremes(
        self, symbol: str, open_: np.ndarray, close: np.ndarray, volatility: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Highs (n_bars,) and lows (n_bars,) of bars with these open and close prices (n_bars,)."""
        up = 0.5 * volatility * np.abs(self.rng(symbol, "up").standard_normal(self._n_bars))
        down = 0.5 * volatility * np.abs(self.rng(symbol, "down").standard_normal(self._n_bars))
        return np.maximum(open_, close) * np.exp(up), np.minimum(open_, close) * np.exp(-down)

    def volume(self, symbol: str, returns: np.ndarray, volatility: np.ndarray, median: float) -> np.ndarray:
        """Volume (n_bars,), log-normal around ``median`` and larger at bars with a large absolute return."""
        noise = self.rng(symbol, "volume").standard_normal(self._n_bars)
        return median * np.exp(0.3 * np.abs(returns) / volatility + 0.3 * noise)

    @cached_property
    def _market(self) -> tuple[np.ndarray, np.ndarray]:
        """The market factor m (n_bars,) and its volatility (n_bars,)."""
        regime = self.regimes()
        drift = np.array(YEARLY_DRIFTS)[regime] / self._bars_per_year
        volatility = np.array(YEARLY_VOLATILITIES)[regime] * self._volatility_ratio / np.sqrt(self._bars_per_year)
        return drift + volatility * self.rng("market").standard_normal(self._n_bars), volatility

    def regimes(self) -> np.ndarray:
        """The market's regime at each bar (n_bars,), int: 0 calm, 1 choppy, 2 stressed."""
        stay_probabilities = [1 - 1 / (sessions * self._bars_per_session) for sessions in REGIME_SESSIONS]
        cumulative = [np.cumsum(probabilities)[:-1].tolist() for probabilities in TRANSITIONS]
        regime = 0
        regimes = []
        for leave_draw, next_draw in self.rng("regime").random((self._n_bars, 2)).tolist():
            regimes.append(regime)
            if leave_draw >= stay_probabilities[regime]:
                regime = sum(next_draw >= probability for probability in cumulative[regime])
        return np.array(regimes)

    def _garch(self, rng: np.random.Generator, yearly_volatility: float) -> tuple[np.ndarray, np.ndarray]:
        """GARCH(1, 1) shocks (n_bars,) and their conditional volatility (n_bars,).

        The unconditional volatility is ``yearly_volatility`` times the market's volatility ratio, per year.
        """
        z = rng.standard_normal(self._n_bars)
        mean_variance = (yearly_volatility * self._volatility_ratio) ** 2 / self._bars_per_year
        persistence = (GARCH_ALPHA * z**2 + GARCH_BETA).tolist()
        base = mean_variance * (1 - GARCH_ALPHA - GARCH_BETA)
        variances = accumulate(persistence, lambda variance, factor: base + factor * variance, initial=mean_variance)
        volatility = np.sqrt(np.fromiter(variances, dtype=np.float64, count=self._n_bars))
        return volatility * z, volatility


def _seeded_sectors() -> dict[str, dict[str, str]]:
    """provider → symbol → sector, for the members and benchmarks of all universes in warehouse/seeds.

    A benchmark that is no member has the sector "". A symbol of several universes has the sector of its first row.
    """
    with (SEED_FOLDER / "universes.csv").open() as file:
        universes = {row["universe"]: row for row in csv.DictReader(file)}
    sectors: dict[str, dict[str, str]] = {row["provider"]: {} for row in universes.values()}
    with (SEED_FOLDER / "universe_members.csv").open() as file:
        for row in csv.DictReader(file):
            sectors[universes[row["universe"]]["provider"]].setdefault(row["symbol"], row["sector"])
    for row in universes.values():
        sectors[row["provider"]].setdefault(row["benchmark"], "")
    return sectors


def _bars(ts: np.ndarray, close_times: np.ndarray, prices: list[np.ndarray], volume: np.ndarray) -> Bars:
    """Bars from (t,) arrays; ``prices`` are open, high, low and close. The turnover is volume · close."""
    open_, high, low, close = prices
    return Bars(ts, close_times, open_, high, low, close, volume, volume * close)


def _daily_bars(hourly: Bars) -> Bars:
    """Daily bars of the complete days of hourly bars that start at midnight UTC."""
    n_whole = len(hourly.ts) // 24 * 24

    def by_day(column: np.ndarray) -> np.ndarray:
        return column[:n_whole].reshape(-1, 24)

    ts = by_day(hourly.ts)[:, 0]
    volume = by_day(hourly.volume)
    return Bars(
        ts=ts,
        close_times=ts + DAY,
        open=by_day(hourly.open)[:, 0],
        high=by_day(hourly.high).max(axis=1),
        low=by_day(hourly.low).min(axis=1),
        close=by_day(hourly.close)[:, -1],
        volume=volume.sum(axis=1),
        turnover=(volume * by_day(hourly.close)).sum(axis=1),
    )
