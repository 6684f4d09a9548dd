"""Prices, decisions and funding that a night's portfolios trade with, on the desk's bars (TRAP-10)."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from tasks.portfolio_inputs import funding_by_bar, funding_coverage, load_portfolio_inputs, session_bars

FRIDAY = date(2024, 6, 28)
NAN = np.nan


def instant(text: str) -> np.datetime64:
    return np.datetime64(text, "us")


def test_every_daily_bar_is_a_decision_and_of_hourly_bars_the_last_of_a_utc_day(desk) -> None:
    stocks = load_portfolio_inputs(desk.night(FRIDAY))
    perpetuals = load_portfolio_inputs(desk.night(FRIDAY, "perpetuals"))
    assert len(stocks.decisions) == len(stocks.ts)
    decided = perpetuals.ts[perpetuals.decisions]
    assert (decided == np.arange(instant("2024-06-01T23"), instant("2024-06-29"), np.timedelta64(24, "h"))).all()


def test_index_prices_start_at_one_and_include_the_dividend(desk) -> None:
    inputs = load_portfolio_inputs(desk.night(FRIDAY))
    aaa = inputs.members.closes[:, 0]
    ((total, price),) = desk.rows(
        "SELECT product(1 + total_return), arg_max(close, ts) / arg_min(close, ts) FROM bars "
        "WHERE symbol = 'AAA' AND universe = 'stocks' AND ts < '2024-06-29'"
    )
    assert aaa[0] == 1.0
    assert aaa[-1] == pytest.approx(total)
    assert total > price * 1.01
    bars = inputs.members.bars
    np.testing.assert_allclose(inputs.members.opens / inputs.members.closes, bars.column("open") / bars.column("close"))


def test_sessions_of_hourly_bars_compound_their_returns(desk) -> None:
    inputs = load_portfolio_inputs(desk.night(FRIDAY, "perpetuals"))
    sessions = session_bars(inputs.members, inputs.decisions)
    day = inputs.members.bars.rows(24, 48).column("total_return")
    np.testing.assert_allclose(sessions.column("total_return")[1], np.prod(1 + day, axis=0) - 1)
    assert np.isnan(sessions.column("total_return")[0]).all()
    np.testing.assert_array_equal(sessions.column("close")[1], inputs.members.bars.column("close")[47])


def test_a_session_without_its_last_bar_is_masked_and_the_next_return_includes_its_own(desk) -> None:
    desk.execute(
        "DELETE FROM store.bars WHERE symbol = 'BBB' AND universe = 'perpetuals' AND ts = '2024-06-03 23:00:00+00'"
    )
    inputs = load_portfolio_inputs(desk.night(FRIDAY, "perpetuals"))
    sessions = session_bars(inputs.members, inputs.decisions)
    close = sessions.column("close")[:, 1]
    assert sessions.mask[1:4, 1].tolist() == [True, False, True]
    assert sessions.column("total_return")[3, 1] == pytest.approx(close[3] / close[1] - 1)


def test_funding_is_summed_in_the_bar_from_its_open_exclusive_to_its_close_inclusive(desk) -> None:
    desk.execute("DELETE FROM store.funding_rates")
    for ts, rate in (
        ("2024-06-01 00:00:00+00", 0.5),  # at the first bar's open: no position can exist yet
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


def test_coverage_counts_settlements_at_eighth_hours_of_assets_with_a_bar() -> None:
    closed_at = instant("2024-06-01T07") + np.arange(12) * np.timedelta64(
        1, "h"
    )  # closes at 7:00 to 18:00: 8 and 16 are due
    has_bar = np.ones((12, 2), dtype=bool)
    funding = np.full((12, 2), NAN)
    funding[1, 0] = funding[5, 0] = 1e-4  # 8:00, and 12:00 of a four-hour interval
    assert funding_coverage(funding, has_bar, closed_at) == pytest.approx(1 / 4)
    has_bar[:, 1] = False
    assert funding_coverage(funding, has_bar, closed_at) == pytest.approx(1 / 2)
    assert np.isnan(funding_coverage(funding, ~has_bar & False, closed_at))
