"""The simulated market: causal, repeatable, and with the structure that its docstring describes."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from tasks.errors import NightOutOfRangeError
from tasks.markets.recording import Bars
from tasks.markets.simulated import FIRST_NIGHT, LEADERS, SimulatedMarket

EARLIER_NIGHT = date(2023, 3, 17)
LATER_NIGHT = date(2024, 6, 28)


@pytest.fixture(scope="module")
def market() -> SimulatedMarket:
    return SimulatedMarket(LATER_NIGHT)


def columns(bars: Bars) -> np.ndarray:
    return np.stack([bars.open, bars.high, bars.low, bars.close, bars.volume])


@pytest.mark.parametrize("symbol", ["AAPL", "MSFT", "SPY", "NVDA", "UNH"])
def test_a_later_night_changes_no_earlier_day(market, symbol: str) -> None:
    early = SimulatedMarket(EARLIER_NIGHT).stock(symbol)
    late = market.stock(symbol)
    n = len(early.bars.ts)
    np.testing.assert_array_equal(columns(early.bars), columns(late.bars)[:, :n])
    np.testing.assert_array_equal(early.dividends, late.dividends[:n])


@pytest.mark.parametrize("symbol", ["BTCUSDT", "XRPUSDT", "SOLUSDT"])
def test_a_later_night_changes_no_earlier_hour_or_settlement(market, symbol: str) -> None:
    early = SimulatedMarket(EARLIER_NIGHT).perpetual(symbol)
    late = market.perpetual(symbol)
    for interval in ("1h", "1d"):
        n = len(early.bars[interval].ts)
        np.testing.assert_array_equal(columns(early.bars[interval]), columns(late.bars[interval])[:, :n])
    np.testing.assert_array_equal(early.funding_rate, late.funding_rate[: len(early.funding_rate)])


def test_every_bar_has_consistent_positive_prices(market) -> None:
    perpetual = market.perpetual("ETHUSDT")
    for bars in (market.stock("AAPL").bars, perpetual.bars["1h"], perpetual.bars["1d"]):
        assert (bars.high >= np.maximum(bars.open, bars.close)).all()
        assert (bars.low <= np.minimum(bars.open, bars.close)).all()
        assert (bars.low > 0).all()
        assert (bars.volume > 0).all()


def returns(bars: Bars) -> np.ndarray:
    return np.diff(np.log(bars.close))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def test_stocks_of_one_sector_move_together_more_than_others(market) -> None:
    technology = [returns(market.stock(s).bars) for s in ("AAPL", "CRM", "ORCL")]
    energy = [returns(market.stock(s).bars) for s in ("XOM", "CVX", "COP")]
    within = np.mean([correlation(a, b) for k in (technology, energy) for a in k for b in k if a is not b])
    across = np.mean([correlation(a, b) for a in technology for b in energy])
    assert within > across + 0.1 > 0.2


def test_followers_follow_their_leader_and_not_the_other_way_round_HYB_31(market) -> None:
    pairs = [("AAPL", "MSFT"), ("AAPL", "ORCL"), ("JPM", "V"), ("JPM", "BAC"), ("JNJ", "UNH"), ("XOM", "CVX")]
    moves = [(returns(market.stock(leader).bars), returns(market.stock(follower).bars)) for leader, follower in pairs]
    assert all(leader in LEADERS.values() for leader, _ in pairs)
    assert np.mean([correlation(leader[:-1], follower[1:]) for leader, follower in moves]) > 0.08
    assert abs(np.mean([correlation(follower[:-1], leader[1:]) for leader, follower in moves])) < 0.04


def test_volatility_clusters(market) -> None:
    for bars in (market.perpetual("BTCUSDT").bars["1h"], market.perpetual("XRPUSDT").bars["1h"]):
        size = np.abs(returns(bars))
        assert correlation(size[:-1], size[1:]) > 0.1
        assert abs(correlation(returns(bars)[:-1], returns(bars)[1:])) < 0.1


def test_funding_settles_every_eight_hours_and_every_four_for_SOLUSDT(market) -> None:
    for symbol, hours in (("BTCUSDT", 8), ("SOLUSDT", 4)):
        settlements = market.perpetual(symbol).funding_ts
        assert set(np.diff(settlements)) == {np.timedelta64(hours, "h")}
        assert settlements[-1] == np.datetime64(LATER_NIGHT + timedelta(days=1))


def test_one_stock_splits_and_others_pay_dividends(market) -> None:
    nvidia = market.stock("NVDA")
    day = int(np.flatnonzero(nvidia.splits)[0])
    assert nvidia.splits[day] == 10
    assert nvidia.bars.close[day - 1] / nvidia.bars.open[day] == pytest.approx(10, rel=0.2)
    assert (market.stock("SPY").dividends > 0).sum() + (market.stock("MSFT").dividends > 0).sum() > 10


def test_an_unknown_symbol_raises_KeyError(market) -> None:
    with pytest.raises(KeyError):
        market.stock("NOPE")
    with pytest.raises(KeyError):
        market.perpetual("AAPL")


def test_nights_run_from_two_years_after_the_epoch_to_today(market) -> None:
    today = datetime.now(UTC).date()
    market.check_night("yahoo", FIRST_NIGHT)
    market.check_night("yahoo", today)
    for night in (FIRST_NIGHT - timedelta(days=1), today + timedelta(days=1)):
        with pytest.raises(NightOutOfRangeError, match=str(night)):
            market.check_night("bybit", night)
