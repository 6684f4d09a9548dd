"""Sessions of the New York Stock Exchange and of a market that never closes."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.sessions import (
    UnknownCalendarError,
    bar_after,
    bar_closes,
    bar_opens,
    bars_per_session,
    last_session,
    next_session,
    periods_per_year,
    session_dates,
    session_ends,
    sessions_per_year,
)


def instants(*texts: str) -> list:
    """The texts as datetimes in UTC, in the form that ``tolist`` gives."""
    return np.array(texts, dtype="datetime64[us]").tolist()


def test_opens_and_closes_follow_daylight_saving_and_half_days() -> None:
    opens = bar_opens("XNYS", "1d", date(2024, 3, 8), date(2024, 3, 12))
    assert opens.tolist() == instants("2024-03-08T14:30", "2024-03-11T13:30")
    assert bar_closes("XNYS", "1d", opens).tolist() == instants("2024-03-08T21:00", "2024-03-11T20:00")
    half_day = bar_opens("XNYS", "1d", date(2024, 7, 3), date(2024, 7, 5))
    assert half_day.tolist() == instants("2024-07-03T13:30")
    assert bar_closes("XNYS", "1d", half_day).tolist() == instants("2024-07-03T17:00")


def test_session_dates_do_not_include_the_end_date() -> None:
    assert session_dates("XNYS", date(2024, 6, 27), date(2024, 6, 28)).tolist() == [date(2024, 6, 27)]
    assert session_dates("24/7", date(2024, 6, 27), date(2024, 6, 28)).tolist() == [date(2024, 6, 27)]


def test_a_market_that_never_closes_has_a_bar_for_every_hour_of_the_day() -> None:
    hourly_opens = bar_opens("24/7", "1h", date(2024, 6, 28), date(2024, 6, 30))
    assert len(hourly_opens) == 2 * 24
    assert hourly_opens[[0, -1]].tolist() == instants("2024-06-28T00:00", "2024-06-29T23:00")
    assert bar_closes("24/7", "1h", hourly_opens)[-1:].tolist() == instants("2024-06-30T00:00")
    daily_opens = bar_opens("24/7", "1d", date(2024, 6, 28), date(2024, 6, 30))
    assert bar_closes("24/7", "1d", daily_opens).tolist() == instants("2024-06-29T00:00", "2024-06-30T00:00")


def test_a_bar_of_a_day_without_a_session_closes_one_interval_after_its_open() -> None:
    saturday = np.array(["2024-06-29T13:30"], dtype="datetime64[us]")
    assert bar_closes("XNYS", "1d", saturday).tolist() == instants("2024-06-30T13:30")


def test_last_and_next_session_skip_weekends_and_holidays() -> None:
    assert last_session("XNYS", date(2024, 6, 30)) == date(2024, 6, 28)
    assert last_session("XNYS", date(2024, 6, 28)) == date(2024, 6, 28)
    assert next_session("XNYS", date(2024, 7, 3)) == date(2024, 7, 5)
    assert next_session("24/7", date(2024, 7, 3)) == date(2024, 7, 4)
    assert last_session("24/7", date(2024, 7, 4)) == date(2024, 7, 4)


def test_a_year_is_252_daily_365_daily_or_8760_hourly_bars() -> None:
    """MAM-26, TRAP-03: hourly perpetuals must not be annualised with 252."""
    assert periods_per_year("XNYS", "1d") == 252
    assert periods_per_year("24/7", "1d") == 365
    assert periods_per_year("24/7", "1h") == 8760
    assert (bars_per_session("1h"), bars_per_session("1d")) == (24, 1)


def test_every_bar_of_one_second_is_a_session() -> None:
    assert periods_per_year("24/7", "1s") == sessions_per_year("24/7", "1s") == 365 * 86_400
    assert bars_per_session("1s") == 1
    opens = bar_opens("24/7", "1s", date(2024, 8, 8), date(2024, 8, 9))
    assert len(opens) == 86_400
    last_opens = opens[-9:]
    assert session_ends("24/7", "1s", bar_closes("24/7", "1s", last_opens)).tolist() == list(range(len(last_opens)))
    assert opens[-2] == np.datetime64("2024-08-08T23:59:58")
    assert bar_after("24/7", "1s", opens[-2], 3) == np.datetime64("2024-08-09T00:00:01")


def test_a_session_that_has_not_ended_has_no_end() -> None:
    """The closes are those of one whole day, at the positions 0 to 23, and of eleven hours of the next day."""
    closes = np.arange("2024-06-01T01", "2024-06-02T12", np.timedelta64(1, "h"), dtype="datetime64[us]")
    assert session_ends("24/7", "1h", closes).tolist() == [23]


def test_every_bar_of_an_exchange_ends_its_session() -> None:
    closes = bar_closes("XNYS", "1d", bar_opens("XNYS", "1d", date(2024, 6, 3), date(2024, 6, 8)))
    assert session_ends("XNYS", "1d", closes).tolist() == [0, 1, 2, 3, 4]


def test_the_error_for_an_unknown_calendar_lists_the_known_calendars() -> None:
    with pytest.raises(UnknownCalendarError, match="'XLON'; known: XNYS, 24/7"):
        session_dates("XLON", date(2024, 1, 1), date(2024, 2, 1))


def test_sessions_equal_those_of_the_recorded_tape(shared_data: Path) -> None:
    table = pq.read_table(shared_data / "tape/yahoo/bars_1d.parquet", filters=[("symbol", "=", "SPY")])
    recorded = np.sort(table["date"].to_numpy().astype("datetime64[D]"))
    expected = session_dates("XNYS", recorded[0].astype(date), (recorded[-1] + 1).astype(date))
    np.testing.assert_array_equal(recorded, expected)
