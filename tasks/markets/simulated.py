"""A simulated market behind a tape: daily stocks and hourly perpetuals, generated from a seed and a fixed first day.

Each symbol's log return at bar t is

    r_t = β m_t + γ s_t + ε_t + κ (γ s_{t−1} + ε'_{t−1})

m  the market factor, its drift and volatility set by a Markov chain of three regimes (calm, choppy, stressed)
s  the factor of the symbol's sector
ε  the symbol's own shocks, ε' those of the sector's leader; s and ε have GARCH(1, 1) volatility
κ  the planted lead–lag: every other symbol of a sector with a leader follows the leader's shock one bar later
β  the loading on the market; γ the loading on the sector, the leader's own one in the last term

Every random series has a generator of its own, seeded by the series' name, and is drawn in time order: a later last
day appends bars and never changes one. No parameter is estimated from a real market.
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

EPOCH = date(2021, 1, 1)
FIRST_NIGHT = date(2023, 1, 1)
SEED = 20210101
SEEDS = Path(warehouse.__file__).parent / "seeds"

# calm, choppy, stressed: a stock market's yearly drift and volatility, the sessions a regime lasts on average, and
# the probabilities of the regime that follows
DRIFTS = (0.20, 0.0, -0.30)
VOLATILITIES = (0.10, 0.18, 0.35)
SESSIONS = (120, 60, 25)
NEXT_REGIME = ((0.0, 0.8, 0.2), (0.7, 0.0, 0.3), (0.3, 0.7, 0.0))
CRYPTO_VOLATILITY = 2.0  # times a stock market's
GARCH_ALPHA = 0.14
GARCH_BETA = 0.84
LEAD_LAG = 0.25
LEADERS = {
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
GAP_SHARE = 0.3  # share of a stock's move that happens between close and open
SPLITS = {"NVDA": (np.datetime64("2024-06-10"), 10.0)}
DIVIDEND_SESSIONS = 63  # between two dividends
DIVIDEND_YIELD = 0.005
SETTLEMENT_HOURS = {"SOLUSDT": 4}  # 8 for the others


class SimulatedMarket:
    """The simulated market up to the end of ``as_of``; it has the symbols of all universes in warehouse/seeds."""

    providers = ("yahoo", "bybit")

    def __init__(self, as_of: date) -> None:
        sectors = _seeded_sectors()
        self._sessions = bar_opens("XNYS", "1d", EPOCH, as_of + timedelta(days=1))
        self._hours = bar_opens("24/7", "1h", EPOCH, as_of + timedelta(days=1))
        self._stocks = Factors("stocks", sectors["yahoo"], len(self._sessions), "XNYS", "1d", 1.0)
        self._perpetuals = Factors("perpetuals", sectors["bybit"], len(self._hours), "24/7", "1h", CRYPTO_VOLATILITY)

    def check_night(self, provider: str, as_of: date) -> None:
        """Raises NightOutOfRangeError for a night before FIRST_NIGHT or after today."""
        today = datetime.now(UTC).date()
        if not FIRST_NIGHT <= as_of <= today:
            raise NightOutOfRangeError(
                f"the night {as_of} cannot be simulated: the market begins on {EPOCH}, its nights run from "
                f"{FIRST_NIGHT} to today, {today}"
            )

    def perpetuals(self) -> Sequence[str]:
        """The symbols of the hourly market."""
        return list(self._perpetuals.sectors)

    @lru_cache(maxsize=256)  # noqa: B019 - the market is freed at the end of its night
    def stock(self, symbol: str) -> Stock:
        """One stock. Raises KeyError for a symbol of no universe."""
        factors = self._stocks
        ts = self._sessions
        returns, sigma = factors.returns(symbol)
        first = factors.rng(symbol, "price").uniform(40, 400)
        symbol_hash = zlib.crc32(symbol.encode())
        yields = np.zeros(len(ts))
        if symbol_hash % 3:
            yields[(np.arange(len(ts)) + symbol_hash) % DIVIDEND_SESSIONS == 0] = DIVIDEND_YIELD
        close = first * np.cumprod(np.exp(returns) - yields)
        last_close = np.concatenate([[first], close[:-1]])
        gap = GAP_SHARE * (returns + sigma * factors.rng(symbol, "gap").standard_normal(len(ts)))
        open_ = last_close * (np.exp(gap) - yields)
        splits = np.zeros(len(ts))
        shares = np.ones(len(ts))
        if symbol in SPLITS:
            day, ratio = SPLITS[symbol]
            splits[ts.astype("datetime64[D]") == day] = ratio
            shares[ts.astype("datetime64[D]") >= day] = ratio
        volume = np.round(factors.volume(symbol, returns, sigma, 2e9 / first) * shares)
        high, low = factors.extremes(symbol, open_, close, sigma)
        cents = [np.maximum(np.round(price / shares, 2), 0.01) for price in (open_, high, low, close)]
        bars = _bars(ts, bar_closes("XNYS", "1d", ts), cents, volume)
        return Stock(bars, np.round(last_close * yields / shares, 3), splits)

    @lru_cache(maxsize=64)  # noqa: B019
    def perpetual(self, symbol: str) -> Perpetual:
        """One perpetual. Raises KeyError for a symbol of no universe."""
        factors = self._perpetuals
        ts = self._hours
        returns, sigma = factors.returns(symbol)
        first = 30_000.0 if symbol == "BTCUSDT" else float(10 ** factors.rng(symbol, "price").uniform(0, 3))
        decimals = 6 - int(np.floor(np.log10(first)))
        close = first * np.exp(np.cumsum(returns))
        open_ = np.concatenate([[first], close[:-1]])
        high, low = factors.extremes(symbol, open_, close, sigma)
        tick = 10.0**-decimals
        ticks = [np.maximum(np.round(price, decimals), tick) for price in (open_, high, low, close)]
        volume = np.round(factors.volume(symbol, returns, sigma, 2e7 / first), 3)
        hourly = _bars(ts, ts + HOUR, ticks, volume)
        hours = SETTLEMENT_HOURS.get(symbol, 8)
        settlements = np.arange(hours, len(ts) + 1, hours)
        trend = returns[: len(settlements) * hours].reshape(len(settlements), hours).sum(axis=1)
        noise = 5e-5 * factors.rng(symbol, "funding").standard_normal(len(settlements))
        rate = np.clip(1e-4 + 0.004 * trend + noise, -3.75e-3, 3.75e-3)
        return Perpetual({"1h": hourly, "1d": _daily_bars(hourly)}, ts[0] + settlements * HOUR, np.round(rate, 8))


class Factors:
    """The factors and shocks of n bars of one market, with ``scale`` times a stock market's volatility."""

    def __init__(self, name: str, sectors: dict[str, str], n: int, calendar: str, interval: str, scale: float) -> None:
        self.sectors = sectors
        self._name = name
        self._n = n
        self._scale = scale
        self._per_year = periods_per_year(calendar, interval)
        self._per_session = self._per_year / SESSIONS_PER_YEAR[calendar]

    def rng(self, *names: str) -> np.random.Generator:
        """A new generator of the random series with these names."""
        return np.random.default_rng([SEED, zlib.crc32("|".join((self._name, *names)).encode())])

    def returns(self, symbol: str) -> tuple[np.ndarray, np.ndarray]:
        """Log returns and their conditional volatility, (n,) each. Raises KeyError for a symbol of no universe."""
        sector = self.sectors[symbol]
        market, market_sigma = self._market
        if not sector:  # a benchmark outside every sector is the market itself
            return market, market_sigma
        beta = self.rng(symbol, "beta").uniform(0.7, 1.3)
        shock, shock_sigma = self.shock(symbol)
        returns = beta * market + shock
        if LEADERS.get(sector, symbol) != symbol:
            returns[1:] += LEAD_LAG * self.shock(LEADERS[sector])[0][:-1]
        return returns, np.hypot(beta * market_sigma, shock_sigma)

    def shock(self, symbol: str) -> tuple[np.ndarray, np.ndarray]:
        """The sector's and the symbol's part of the return together, and its volatility, (n,) each."""
        loading, yearly = self.rng(symbol, "loadings").uniform((0.6, 0.12), (1.2, 0.25))
        sector, sector_sigma = self._garch(self.rng("sector", self.sectors[symbol]), 0.15)
        idiosyncratic, idiosyncratic_sigma = self._garch(self.rng(symbol, "own"), yearly)
        return loading * sector + idiosyncratic, np.hypot(loading * sector_sigma, idiosyncratic_sigma)

    def extremes(
        self, symbol: str, open_: np.ndarray, close: np.ndarray, sigma: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Highs and lows of bars with these opens and closes, (n,) each."""
        up, down = (0.5 * sigma * np.abs(self.rng(symbol, side).standard_normal(self._n)) for side in ("up", "down"))
        return np.maximum(open_, close) * np.exp(up), np.minimum(open_, close) * np.exp(-down)

    def volume(self, symbol: str, returns: np.ndarray, sigma: np.ndarray, median: float) -> np.ndarray:
        """Volume (n,), which increases with the absolute return."""
        noise = self.rng(symbol, "volume").standard_normal(self._n)
        return median * np.exp(0.3 * np.abs(returns) / sigma + 0.3 * noise)

    @cached_property
    def _market(self) -> tuple[np.ndarray, np.ndarray]:
        """The market's return and its volatility, (n,) each."""
        regime = self.regimes()
        drift = np.array(DRIFTS)[regime] / self._per_year
        sigma = np.array(VOLATILITIES)[regime] * self._scale / np.sqrt(self._per_year)
        return drift + sigma * self.rng("market").standard_normal(self._n), sigma

    def regimes(self) -> np.ndarray:
        """The market's regime at each bar, (n,): 0 calm, 1 choppy, 2 stressed."""
        stay = [1 - 1 / (sessions * self._per_session) for sessions in SESSIONS]
        edges = [np.cumsum(row)[:-1].tolist() for row in NEXT_REGIME]
        regime = 0
        regimes = []
        for leave_draw, next_draw in self.rng("regime").random((self._n, 2)).tolist():
            regimes.append(regime)
            if leave_draw >= stay[regime]:
                regime = sum(next_draw >= edge for edge in edges[regime])
        return np.array(regimes)

    def _garch(self, rng: np.random.Generator, yearly: float) -> tuple[np.ndarray, np.ndarray]:
        """GARCH(1, 1) shocks with mean yearly volatility ``yearly``, and their conditional volatility, (n,) each."""
        z = rng.standard_normal(self._n)
        mean = (yearly * self._scale) ** 2 / self._per_year
        persistence = (GARCH_ALPHA * z**2 + GARCH_BETA).tolist()
        base = mean * (1 - GARCH_ALPHA - GARCH_BETA)
        variances = accumulate(persistence, lambda variance, factor: base + factor * variance, initial=mean)
        sigma = np.sqrt(np.fromiter(variances, dtype=np.float64, count=self._n))
        return sigma * z, sigma


def _seeded_sectors() -> dict[str, dict[str, str]]:
    """provider → symbol → sector of every universe's members; a benchmark that is no member has the sector ''."""
    with (SEEDS / "universes.csv").open() as file:
        universes = {row["universe"]: row for row in csv.DictReader(file)}
    sectors: dict[str, dict[str, str]] = {row["provider"]: {} for row in universes.values()}
    with (SEEDS / "universe_members.csv").open() as file:
        for row in csv.DictReader(file):
            sectors[universes[row["universe"]]["provider"]].setdefault(row["symbol"], row["sector"])
    for row in universes.values():
        sectors[row["provider"]].setdefault(row["benchmark"], "")
    return sectors


def _bars(ts: np.ndarray, closes: np.ndarray, prices: list[np.ndarray], volume: np.ndarray) -> Bars:
    open_, high, low, close = prices
    return Bars(ts, closes, open_, high, low, close, volume, volume * close)


def _daily_bars(hourly: Bars) -> Bars:
    """Daily bars of the whole days of hourly bars, which start at midnight."""
    whole = len(hourly.ts) // 24 * 24

    def by_day(column: np.ndarray) -> np.ndarray:
        return column[:whole].reshape(-1, 24)

    ts = by_day(hourly.ts)[:, 0]
    volume = by_day(hourly.volume)
    return Bars(
        ts,
        ts + DAY,
        by_day(hourly.open)[:, 0],
        by_day(hourly.high).max(axis=1),
        by_day(hourly.low).min(axis=1),
        by_day(hourly.close)[:, -1],
        volume.sum(axis=1),
        (volume * by_day(hourly.close)).sum(axis=1),
    )
