"""Prices, decisions and funding of a night's book, on the desk's bars (TRAP-10)."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from tasks.portfolio_inputs import funding_by_bar, funding_coverage, load_portfolio_inputs, session_bars

FRIDAY = date(2024, 6, 28)
NAN = np.nan


def at(text: str) -> np.datetime64:
    return np.datetime64(text, "us")


def test_every_daily_bar_decides_and_of_hourly_ones_the_last_of_a_utc_day(desk) -> None:
    stocks, perpetuals = (
        load_portfolio_inputs(desk.night(FRIDAY)),
        load_portfolio_inputs(desk.night(FRIDAY, "perpetuals")),
    )
    assert len(stocks.decisions) == len(stocks.ts)
    decided = perpetuals.ts[perpetuals.decisions]
    assert (decided == np.arange(at("2024-06-01T23"), at("2024-06-29"), np.timedelta64(24, "h"))).all()


def test_index_prices_earn_the_dividend_and_start_at_one(desk) -> None:
    book = load_portfolio_inputs(desk.night(FRIDAY))
    aaa = book.members.closes[:, 0]
    ((total, price),) = desk.rows(
        "SELECT product(1 + total_return), arg_max(close, ts) / arg_min(close, ts) FROM bars "
        "WHERE symbol = 'AAA' AND universe = 'stocks' AND ts < '2024-06-29'"
    )
    assert aaa[0] == 1.0
    assert aaa[-1] == pytest.approx(total)
    assert total > price * 1.01
    bars = book.members.bars
    np.testing.assert_allclose(book.members.opens / book.members.closes, bars.column("open") / bars.column("close"))


def test_sessions_of_hourly_bars_compound_their_returns(desk) -> None:
    book = load_portfolio_inputs(desk.night(FRIDAY, "perpetuals"))
    sessions = session_bars(book.members, book.decisions)
    day = book.members.bars.rows(24, 48).column("total_return")
    np.testing.assert_allclose(sessions.column("total_return")[1], np.prod(1 + day, axis=0) - 1)
    assert np.isnan(sessions.column("total_return")[0]).all()
    np.testing.assert_array_equal(sessions.column("close")[1], book.members.bars.column("close")[47])


def test_a_session_without_its_last_bar_is_masked_and_its_return_falls_into_the_next(desk) -> None:
    desk.execute(
        "DELETE FROM store.bars WHERE symbol = 'BBB' AND universe = 'perpetuals' AND ts = '2024-06-03 23:00:00+00'"
    )
    book = load_portfolio_inputs(desk.night(FRIDAY, "perpetuals"))
    sessions = session_bars(book.members, book.decisions)
    close = sessions.column("close")[:, 1]
    assert sessions.mask[1:4, 1].tolist() == [True, False, True]
    assert sessions.column("total_return")[3, 1] == pytest.approx(close[3] / close[1] - 1)


def test_funding_belongs_to_the_bar_that_it_settles_in_or_at_the_close_of(desk) -> None:
    desk.execute("DELETE FROM store.funding_rates")
    for ts, rate in (
        ("2024-06-01 00:00:00+00", 0.5),  # at the first bar's open: no position can have been held
        ("2024-06-01 08:00:00+00", 0.01),
        ("2024-06-01 12:00:00+00", 0.02),  # a four-hour interval
        ("2024-06-01 16:20:00+00", 0.03),
        ("2024-06-01 16:40:00+00", 0.04),  # and one more in the same bar
    ):
        desk.execute(
            "INSERT INTO store.funding_rates BY NAME SELECT 'recorded' AS source, 'perpetuals' AS universe, "
            "'BBB' AS symbol, $ts::TIMESTAMPTZ AS ts, $rate AS rate, now() AS fetched_at, 'x' AS run_id",
            ts=ts,
            rate=rate,
        )
    night = desk.night(date(2024, 6, 1), "perpetuals")
    funding = funding_by_bar(night, load_portfolio_inputs(night), ("AAA", "BBB"))
    assert np.isnan(funding[:, 0]).all()
    assert {int(k): float(funding[k, 1]) for k in np.flatnonzero(~np.isnan(funding[:, 1]))} == pytest.approx(
        {7: 0.01, 11: 0.02, 16: 0.07}
    )


def test_coverage_counts_the_eighth_hours_of_what_trades() -> None:
    closed = at("2024-06-01T07") + np.arange(12) * np.timedelta64(1, "h")  # closes at 7:00 to 18:00: 8 and 16 are due
    trades = np.ones((12, 2), dtype=bool)
    funding = np.full((12, 2), NAN)
    funding[1, 0] = funding[5, 0] = 1e-4  # 8:00, and 12:00 of a four-hour interval
    assert funding_coverage(funding, trades, closed) == pytest.approx(1 / 4)
    trades[:, 1] = False
    assert funding_coverage(funding, trades, closed) == pytest.approx(1 / 2)
    assert np.isnan(funding_coverage(funding, ~trades & False, closed))
