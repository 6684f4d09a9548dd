"""Panels of a night: bars, benchmark and funding on the whole calendar grid, nothing after the night's clock.

A night is the run for one as-of date; its clock is the midnight (UTC) after it. A Desk is a test warehouse with
recorded bars; DDD has no bar before March 2024 and none on 7 May. Ids: .github/sources.md.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
import pytest

from models.sessions import bar_opens
from tasks.errors import NoBarsError
from tasks.panels import load_bars, load_benchmark, load_funding
from tests.desk import Desk

START = date(2024, 1, 2)
FRIDAY = date(2024, 6, 28)


def test_bars_lie_on_the_whole_calendar_grid_up_to_the_night(desk: Desk) -> None:
    bars = load_bars(desk.night(FRIDAY))
    assert bars.symbols == ("AAA", "BBB", "CCC", "DDD")
    np.testing.assert_array_equal(bars.ts, bar_opens("XNYS", "1d", START, date(2024, 6, 29)))
    ddd = bars.symbols.index("DDD")
    assert bars.mask[:, :ddd].all()
    missing_ts = bars.ts[~bars.mask[:, ddd]]
    assert missing_ts[-1] == np.datetime64("2024-05-07T13:30") and missing_ts[-2] < np.datetime64("2024-03-01")
    np.testing.assert_array_equal(bars.column("funding_rate")[bars.mask], 0.0)


def test_the_total_return_of_an_ex_date_includes_the_dividend(desk: Desk) -> None:
    bars = load_bars(desk.night(FRIDAY))
    ex_bar = int(np.searchsorted(bars.ts, np.datetime64("2024-04-01T13:30")))
    aaa = bars.symbols.index("AAA")
    close = bars.column("close")[:, aaa]
    total_return = bars.column("total_return")[:, aaa]
    dividend = 0.8
    np.testing.assert_allclose(total_return[ex_bar], (close[ex_bar] + dividend) / close[ex_bar - 1] - 1)
    np.testing.assert_allclose(total_return[ex_bar + 1], close[ex_bar + 1] / close[ex_bar] - 1)


def test_a_bar_still_open_at_the_clock_is_not_on_the_grid(desk: Desk) -> None:
    """The session of 2024-06-28 closes at 20:00."""
    for hour, last_open in ((19, "2024-06-27T13:30"), (20, "2024-06-28T13:30")):
        clock = datetime(2024, 6, 28, hour, tzinfo=UTC)
        assert load_bars(replace(desk.night(FRIDAY), clock=clock)).ts[-1] == np.datetime64(last_open)


def test_bars_can_end_earlier_than_the_night(desk: Desk) -> None:
    night = desk.night(FRIDAY)
    last = np.datetime64("2024-06-03T13:30", "us")
    all_bars = load_bars(night)
    earlier_bars = load_bars(night, last=last)
    assert earlier_bars.ts[-1] == last
    np.testing.assert_array_equal(earlier_bars.values, all_bars.values[all_bars.ts <= last])


def test_the_benchmark_is_one_asset_on_the_same_grid(desk: Desk) -> None:
    night = desk.night(FRIDAY)
    benchmark = load_benchmark(night)
    assert benchmark.symbols == ("IDX",) and benchmark.mask.all()
    np.testing.assert_array_equal(benchmark.ts, load_bars(night).ts)


def test_funding_of_a_bar_is_the_rate_last_settled_at_or_before_its_close(desk: Desk) -> None:
    """TGN-27, TRAP-10: a rate settled at 08:00 is the funding of the bar opened at 07:00, and of no earlier bar."""
    bars = load_bars(desk.night(FRIDAY, "perpetuals"))
    first_bar = int(np.searchsorted(bars.ts, np.datetime64("2024-06-10T07:00")))
    rates = bars.column("funding_rate")
    aaa = bars.symbols.index("AAA")
    bbb = bars.symbols.index("BBB")
    assert np.isnan(rates[:first_bar, aaa]).all() and np.isnan(rates[:, bbb]).all()
    # AAA settles every 8 hours, from 8:00 on, at the rates 0, 1e-5, 2e-5, …
    np.testing.assert_array_equal(rates[first_bar : first_bar + 17, aaa], [0.0] * 8 + [1e-5] * 8 + [2e-5])


def test_funding_ends_at_the_clock(desk: Desk) -> None:
    settled = load_funding(desk.night(FRIDAY, "perpetuals"))
    assert settled["ts"].to_pylist()[-1] == datetime(2024, 6, 29, tzinfo=UTC)
    assert load_funding(desk.night(FRIDAY, "perpetuals"), symbols=["BBB"]).num_rows == 0


def test_a_warehouse_without_bars_and_a_night_before_the_history_raise(desk: Desk) -> None:
    live = replace(desk.night(FRIDAY), source="live")
    with pytest.raises(NoBarsError, match="no live bar of stocks"):
        load_bars(live)
    with pytest.raises(NoBarsError, match="history starts on 2024-01-02"):
        load_bars(desk.night(date(2023, 12, 29)))


def test_a_bar_off_the_calendar_raises_an_error_that_names_it(desk: Desk) -> None:
    desk.execute("UPDATE store.bars SET ts = ts + INTERVAL 1 DAY WHERE symbol = 'BBB' AND ts::DATE = '2024-06-14'")
    with pytest.raises(NoBarsError, match="BBB has a bar at 2024-06-15"):
        load_bars(desk.night(FRIDAY))
