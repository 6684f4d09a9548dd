"""The simulated market: causal, repeatable, and with the structure that it says it has."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from tasks.errors import NightOutOfRangeError
from tasks.markets.recording import Bars
from tasks.markets.simulated import FIRST_NIGHT, LEADERS, Simulated

EARLY, LATE = date(2023, 3, 17), date(2024, 6, 28)


@pytest.fixture(scope="module")
def late() -> Simulated:
    return Simulated(LATE)


def columns(bars: Bars) -> np.ndarray:
    return np.stack([bars.open, bars.high, bars.low, bars.close, bars.volume])


@pytest.mark.parametrize("symbol", ["AAPL", "MSFT", "SPY", "NVDA", "UNH"])
def test_a_later_horizon_changes_no_earlier_day(late, symbol: str) -> None:
    early, whole = Simulated(EARLY).stock(symbol), late.stock(symbol)
    n = len(early.bars.ts)
    np.testing.assert_array_equal(columns(early.bars), columns(whole.bars)[:, :n])
    np.testing.assert_array_equal(early.dividends, whole.dividends[:n])


@pytest.mark.parametrize("symbol", ["BTCUSDT", "XRPUSDT", "SOLUSDT"])
def test_a_later_horizon_changes_no_earlier_hour_or_settlement(late, symbol: str) -> None:
    early, whole = Simulated(EARLY).perpetual(symbol), late.perpetual(symbol)
    for interval in ("1h", "1d"):
        n = len(early.bars[interval].ts)
        np.testing.assert_array_equal(columns(early.bars[interval]), columns(whole.bars[interval])[:, :n])
    np.testing.assert_array_equal(early.funding_rate, whole.funding_rate[: len(early.funding_rate)])


def test_every_bar_is_a_possible_bar(late) -> None:
    for bars in (late.stock("AAPL").bars, late.perpetual("ETHUSDT").bars["1h"], late.perpetual("ETHUSDT").bars["1d"]):
        assert (bars.high >= np.maximum(bars.open, bars.close)).all()
        assert (bars.low <= np.minimum(bars.open, bars.close)).all()
        assert (bars.low > 0).all()
        assert (bars.volume > 0).all()


def returns(bars: Bars) -> np.ndarray:
    return np.diff(np.log(bars.close))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def test_stocks_of_one_sector_move_together_more_than_others(late) -> None:
    technology = [returns(late.stock(s).bars) for s in ("AAPL", "CRM", "ORCL")]
    energy = [returns(late.stock(s).bars) for s in ("XOM", "CVX", "COP")]
    inside = np.mean([correlation(a, b) for k in (technology, energy) for a in k for b in k if a is not b])
    across = np.mean([correlation(a, b) for a in technology for b in energy])
    assert inside > across + 0.1 > 0.2


def test_the_planted_lead_lag_is_there_and_one_way_HYB_31(late) -> None:
    pairs = [("AAPL", "MSFT"), ("AAPL", "ORCL"), ("JPM", "V"), ("JPM", "BAC"), ("JNJ", "UNH"), ("XOM", "CVX")]
    moves = [(returns(late.stock(leader).bars), returns(late.stock(follower).bars)) for leader, follower in pairs]
    assert all(leader in LEADERS.values() for leader, _ in pairs)
    assert np.mean([correlation(first[:-1], second[1:]) for first, second in moves]) > 0.08
    assert abs(np.mean([correlation(second[:-1], first[1:]) for first, second in moves])) < 0.04


def test_volatility_clusters(late) -> None:
    for bars in (late.perpetual("BTCUSDT").bars["1h"], late.perpetual("XRPUSDT").bars["1h"]):
        size = np.abs(returns(bars))
        assert correlation(size[:-1], size[1:]) > 0.1
        assert abs(correlation(returns(bars)[:-1], returns(bars)[1:])) < 0.1


def test_funding_settles_every_eight_hours_and_every_four_for_one(late) -> None:
    for symbol, hours in (("BTCUSDT", 8), ("SOLUSDT", 4)):
        settled = late.perpetual(symbol).funding_ts
        assert set(np.diff(settled)) == {np.timedelta64(hours, "h")}
        assert settled[-1] == np.datetime64(LATE + timedelta(days=1))


def test_one_stock_splits_and_others_pay_dividends(late) -> None:
    nvidia = late.stock("NVDA")
    day = int(np.flatnonzero(nvidia.splits)[0])
    assert nvidia.splits[day] == 10
    assert nvidia.bars.close[day - 1] / nvidia.bars.open[day] == pytest.approx(10, rel=0.2)
    assert (late.stock("SPY").dividends > 0).sum() + (late.stock("MSFT").dividends > 0).sum() > 10


def test_an_unknown_symbol_is_unknown(late) -> None:
    with pytest.raises(KeyError):
        late.stock("NOPE")
    with pytest.raises(KeyError):
        late.perpetual("AAPL")


def test_nights_run_from_two_years_after_the_epoch_to_today(late) -> None:
    today = datetime.now(UTC).date()
    late.check_night("yahoo", FIRST_NIGHT)
    late.check_night("yahoo", today)
    for night in (FIRST_NIGHT - timedelta(days=1), today + timedelta(days=1)):
        with pytest.raises(NightOutOfRangeError, match=str(night)):
            late.check_night("bybit", night)
