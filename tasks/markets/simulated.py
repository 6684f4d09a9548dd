"""A seeded market behind a tape: daily stocks and hourly perpetuals, generated forward in time from a fixed epoch.

Each symbol's log return at bar t is

    r_t = β m_t + γ s_t + ε_t + κ (γ s + ε)_{t−1} of the sector's leader

m  the market factor, its drift and volatility set by a Markov chain of three regimes (calm, choppy, stressed)
s  the factor of the symbol's sector
ε  the symbol's own shocks; s and ε have GARCH(1, 1) volatility
κ  the planted lead–lag: every other symbol of a sector with a leader follows it by one bar, with κ of its shock

Every random stream is drawn in time order by a generator named after what it drives, so that a later horizon appends
bars and never changes one. Nothing here is an estimate of a real market.
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

EPOCH, FIRST_NIGHT = date(2021, 1, 1), date(2023, 1, 1)
SEED = 20210101
SEEDS = Path(warehouse.__file__).parent / "seeds"

# calm, choppy, stressed: a stock market's yearly drift and volatility, the sessions a regime lasts on average, and
# which regime follows
DRIFTS, VOLATILITIES, SESSIONS = (0.20, 0.0, -0.30), (0.10, 0.18, 0.35), (120, 60, 25)
NEXT_REGIME = ((0.0, 0.8, 0.2), (0.7, 0.0, 0.3), (0.3, 0.7, 0.0))
CRYPTO_VOLATILITY = 2.0  # times a stock market's
GARCH_ALPHA, GARCH_BETA = 0.14, 0.84
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
GAP_SHARE = 0.3  # of a stock's move that happens between close and open
SPLITS = {"NVDA": (np.datetime64("2024-06-10"), 10.0)}
DIVIDEND_SESSIONS, DIVIDEND_YIELD = 63, 0.005
SETTLEMENT_HOURS = {"SOLUSDT": 4}  # 8 for the others


class Simulated:
    """The simulated market up to the end of ``as_of``; its symbols are those of the universes that the seeds define."""

    providers = ("yahoo", "bybit")

    def __init__(self, as_of: date) -> None:
        sectors = _seeded_sectors()
        self._sessions = bar_opens("XNYS", "1d", EPOCH, as_of + timedelta(days=1))
        self._hours = bar_opens("24/7", "1h", EPOCH, as_of + timedelta(days=1))
        self._stocks = Factors("stocks", sectors["yahoo"], len(self._sessions), "XNYS", "1d", 1.0)
        self._perpetuals = Factors("perpetuals", sectors["bybit"], len(self._hours), "24/7", "1h", CRYPTO_VOLATILITY)

    def check_night(self, provider: str, as_of: date) -> None:
        """Returns when the market can be simulated to ``as_of``, else raises NightOutOfRangeError."""
        today = datetime.now(UTC).date()
        if not FIRST_NIGHT <= as_of <= today:
            raise NightOutOfRangeError(
                f"the night {as_of} cannot be simulated: the market begins on {EPOCH}, its nights run from "
                f"{FIRST_NIGHT} to today, {today}"
            )

    def perpetuals(self) -> Sequence[str]:
        """Symbols of the hourly market."""
        return list(self._perpetuals.sectors)

    @lru_cache(maxsize=256)  # noqa: B019 - a market lives as long as its night
    def stock(self, symbol: str) -> Stock:
        """One stock; KeyError when no universe has it."""
        factors, ts = self._stocks, self._sessions
        returns, sigma = factors.returns(symbol)
        first = factors.rng(symbol, "price").uniform(40, 400)
        name = zlib.crc32(symbol.encode())
        yields = np.zeros(len(ts))
        if name % 3:
            yields[(np.arange(len(ts)) + name) % DIVIDEND_SESSIONS == 0] = DIVIDEND_YIELD
        close = first * np.cumprod(np.exp(returns) - yields)
        before = np.concatenate([[first], close[:-1]])
        gap = GAP_SHARE * (returns + sigma * factors.rng(symbol, "gap").standard_normal(len(ts)))
        open_ = before * (np.exp(gap) - yields)
        splits, shares = np.zeros(len(ts)), np.ones(len(ts))
        if symbol in SPLITS:
            day, ratio = SPLITS[symbol]
            splits[ts.astype("datetime64[D]") == day] = ratio
            shares[ts.astype("datetime64[D]") >= day] = ratio
        volume = np.round(factors.volume(symbol, returns, sigma, 2e9 / first) * shares)
        high, low = factors.extremes(symbol, open_, close, sigma)
        cents = [np.maximum(np.round(price / shares, 2), 0.01) for price in (open_, high, low, close)]
        bars = _bars(ts, bar_closes("XNYS", "1d", ts), cents, volume)
        return Stock(bars, np.round(before * yields / shares, 3), splits)

    @lru_cache(maxsize=64)  # noqa: B019
    def perpetual(self, symbol: str) -> Perpetual:
        """One perpetual; KeyError when no universe has it."""
        factors, ts = self._perpetuals, self._hours
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
        every = SETTLEMENT_HOURS.get(symbol, 8)
        settled = np.arange(every, len(ts) + 1, every)
        trend = returns[: len(settled) * every].reshape(len(settled), every).sum(axis=1)
        noise = 5e-5 * factors.rng(symbol, "funding").standard_normal(len(settled))
        rate = np.clip(1e-4 + 0.004 * trend + noise, -3.75e-3, 3.75e-3)
        return Perpetual({"1h": hourly, "1d": _by_day(hourly)}, ts[0] + settled * HOUR, np.round(rate, 8))


class Factors:
    """The factors and shocks of n bars of one market; ``scale`` multiplies a stock market's volatility."""

    def __init__(self, name: str, sectors: dict[str, str], n: int, calendar: str, interval: str, scale: float) -> None:
        self.sectors = sectors
        self._name, self._n, self._scale = name, n, scale
        self._per_year = periods_per_year(calendar, interval)
        self._per_session = self._per_year / SESSIONS_PER_YEAR[calendar]

    def rng(self, *names: str) -> np.random.Generator:
        """The random stream called after ``names``, from its beginning."""
        return np.random.default_rng([SEED, zlib.crc32("|".join((self._name, *names)).encode())])

    def returns(self, symbol: str) -> tuple[np.ndarray, np.ndarray]:
        """Log returns and their conditional volatility a bar, (n,) each; KeyError for a symbol of no universe."""
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
        """The sector's and the symbol's own part of the return, and its volatility, (n,) each."""
        loading, yearly = self.rng(symbol, "loadings").uniform((0.6, 0.12), (1.2, 0.25))
        sector, sector_sigma = self._garch(self.rng("sector", self.sectors[symbol]), 0.15)
        own, own_sigma = self._garch(self.rng(symbol, "own"), yearly)
        return loading * sector + own, np.hypot(loading * sector_sigma, own_sigma)

    def extremes(
        self, symbol: str, open_: np.ndarray, close: np.ndarray, sigma: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Highs and lows around opens and closes, (n,) each."""
        up, down = (0.5 * sigma * np.abs(self.rng(symbol, way).standard_normal(self._n)) for way in ("up", "down"))
        return np.maximum(open_, close) * np.exp(up), np.minimum(open_, close) * np.exp(-down)

    def volume(self, symbol: str, returns: np.ndarray, sigma: np.ndarray, median: float) -> np.ndarray:
        """Volume that grows with the size of the move, (n,)."""
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
        now, path = 0, []
        for leaves, where in self.rng("regime").random((self._n, 2)).tolist():
            path.append(now)
            if leaves >= stay[now]:
                now = sum(where >= edge for edge in edges[now])
        return np.array(path)

    def _garch(self, rng: np.random.Generator, yearly: float) -> tuple[np.ndarray, np.ndarray]:
        """Shocks whose variance is carried on, with mean volatility ``yearly``, and their conditional volatility."""
        z = rng.standard_normal(self._n)
        mean = (yearly * self._scale) ** 2 / self._per_year
        carried = (GARCH_ALPHA * z**2 + GARCH_BETA).tolist()
        base = mean * (1 - GARCH_ALPHA - GARCH_BETA)
        path = accumulate(carried, lambda variance, carry: base + carry * variance, initial=mean)
        sigma = np.sqrt(np.fromiter(path, dtype=np.float64, count=self._n))
        return sigma * z, sigma


def _seeded_sectors() -> dict[str, dict[str, str]]:
    """Sector by symbol, by provider, of every universe's members; a benchmark outside them has the sector ''."""
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


def _by_day(hourly: Bars) -> Bars:
    """Daily bars of the whole days of hourly ones that start at midnight."""
    whole = len(hourly.ts) // 24 * 24

    def days(column: np.ndarray) -> np.ndarray:
        return column[:whole].reshape(-1, 24)

    ts, volume = days(hourly.ts)[:, 0], days(hourly.volume)
    return Bars(
        ts,
        ts + DAY,
        days(hourly.open)[:, 0],
        days(hourly.high).max(axis=1),
        days(hourly.low).min(axis=1),
        days(hourly.close)[:, -1],
        volume.sum(axis=1),
        (volume * days(hourly.close)).sum(axis=1),
    )
