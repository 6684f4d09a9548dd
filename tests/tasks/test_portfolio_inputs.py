"""Prices, decisions and funding of a night's portfolios, on recorded bars (TRAP-10).

A night is the run for one as-of date. A Desk is a test warehouse, see tests/desk.py. Ids: .github/sources.md.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from tasks.portfolio_inputs import funding_by_bar, funding_coverage, load_portfolio_inputs, session_bars
from tests.desk import Desk

FRIDAY = date(2024, 6, 28)
ONE_HOUR = np.timedelta64(1, "h")


def instant(text: str) -> np.datetime64:
    """The UTC time in ``text`` as datetime64[us]."""
    return np.datetime64(text, "us")


def test_decisions_are_all_daily_bars_and_the_last_hourly_bar_of_each_utc_day(desk: Desk) -> None:
    stocks = load_portfolio_inputs(desk.night(FRIDAY))
    perpetuals = load_portfolio_inputs(desk.night(FRIDAY, "perpetuals"))
    assert len(stocks.decisions) == len(stocks.ts)
    decision_ts = perpetuals.ts[perpetuals.decisions]
    assert (decision_ts == np.arange(instant("2024-06-01T23"), instant("2024-06-29"), np.timedelta64(24, "h"))).all()


def test_index_prices_start_at_one_and_include_the_dividend(desk: Desk) -> None:
    inputs = load_portfolio_inputs(desk.night(FRIDAY))
    bars = inputs.members.bars
    index = inputs.members.close_index[:, bars.symbols.index("AAA")]
    ((total_growth, price_growth),) = desk.rows(
        "SELECT product(1 + total_return), arg_max(close, ts) / arg_min(close, ts) FROM bars "
        "WHERE symbol = 'AAA' AND universe = 'stocks' AND ts < '2024-06-29'"
    )
    assert index[0] == 1.0
    assert index[-1] == pytest.approx(total_growth)
    assert total_growth > price_growth * 1.01  # the dividend of 0.8 is more than 1 % of the price
    np.testing.assert_allclose(
        inputs.members.open_index / inputs.members.close_index, bars.column("open") / bars.column("close")
    )


def test_sessions_of_hourly_bars_compound_their_returns(desk: Desk) -> None:
    inputs = load_portfolio_inputs(desk.night(FRIDAY, "perpetuals"))
    sessions = session_bars(inputs.members, inputs.decisions)
    bars = inputs.members.bars
    second_day = bars.slice_bars(24, 48)
    first_return, second_return = sessions.column("total_return")[:2]
    assert np.isnan(first_return).all()
    np.testing.assert_allclose(second_return, np.prod(1 + second_day.column("total_return"), axis=0) - 1)
    np.testing.assert_array_equal(sessions.column("close")[1], second_day.column("close")[-1])


def test_a_session_without_its_last_bar_is_masked_and_the_next_return_covers_both_sessions(desk: Desk) -> None:
    desk.execute(
        "DELETE FROM store.bars WHERE symbol = 'BBB' AND universe = 'perpetuals' AND ts = '2024-06-03 23:00:00+00'"
    )
    inputs = load_portfolio_inputs(desk.night(FRIDAY, "perpetuals"))
    sessions = session_bars(inputs.members, inputs.decisions)
    bbb = sessions.symbols.index("BBB")
    close = sessions.column("close")[:, bbb]
    missing_session = 2  # position of 3 June among the sessions, which start on 1 June
    assert sessions.mask[missing_session - 1 : missing_session + 2, bbb].tolist() == [True, False, True]
    expected = close[missing_session + 1] / close[missing_session - 1] - 1
    assert sessions.column("total_return")[missing_session + 1, bbb] == pytest.approx(expected)


def test_funding_is_summed_in_the_bar_from_its_open_exclusive_to_its_close_inclusive(desk: Desk) -> None:
    desk.execute("DELETE FROM store.funding_rates")
    settlements = (
        ("2024-06-01 00:00:00+00", 0.5),  # at the first bar's open: no position can exist yet
        ("2024-06-01 08:00:00+00", 0.01),
        ("2024-06-01 12:00:00+00", 0.02),  # as with a four-hour interval
        ("2024-06-01 16:20:00+00", 0.03),
        ("2024-06-01 16:40:00+00", 0.04),  # in the same bar
    )
    for ts, rate in settlements:
        desk.execute(
            "INSERT INTO store.funding_rates BY NAME SELECT 'recorded' AS source, 'perpetuals' AS universe, "
            "'BBB' AS symbol, $ts::TIMESTAMPTZ AS ts, $rate AS rate, now() AS fetched_at, 'x' AS run_id",
            ts=ts,
            rate=rate,
        )
    night = desk.night(date(2024, 6, 1), "perpetuals")
    funding = funding_by_bar(night, load_portfolio_inputs(night), ("AAA", "BBB"))
    aaa_funding, bbb_funding = funding.T
    assert np.isnan(aaa_funding).all()
    funding_of_bar = {int(bar): float(bbb_funding[bar]) for bar in np.flatnonzero(~np.isnan(bbb_funding))}
    assert funding_of_bar == pytest.approx({7: 0.01, 11: 0.02, 16: 0.03 + 0.04})


def test_coverage_counts_the_settlements_every_eight_hours_of_assets_with_a_bar() -> None:
    """Two assets with hourly bars that close from 7:00 to 18:00: settlements are due at 8:00 and 16:00."""
    close_times = instant("2024-06-01T07") + np.arange(12) * ONE_HOUR
    has_bar = np.ones((12, 2), dtype=bool)
    funding = np.full((12, 2), np.nan)
    funding[1, 0] = 1e-4  # at 8:00
    funding[5, 0] = 1e-4  # at 12:00, which is not due
    assert funding_coverage(funding, has_bar, close_times) == pytest.approx(1 / 4)
    has_bar[:, 1] = False
    assert funding_coverage(funding, has_bar, close_times) == pytest.approx(1 / 2)
    assert np.isnan(funding_coverage(funding, np.zeros_like(has_bar), close_times))
