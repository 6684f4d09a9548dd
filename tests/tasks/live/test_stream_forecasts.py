"""What a stream forecasts at the closes of bars is what a night forecasts of the same bars and events."""

from __future__ import annotations

import asyncio
import shutil
import time
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from models.graphs.stream import load_arrays, save_arrays
from models.training import fit
from tasks.markets.bybit_frames import topics_of
from tests.exchange import Exchange
from tests.market_place import SYMBOLS, Place, at, hours, liquidation, stamp_ms, ticker, trade, until_closed


def assert_same(rows: list[tuple], expected: list[tuple], atol: float = 1e-7) -> None:
    assert [row[:3] for row in rows] == [row[:3] for row in expected]
    np.testing.assert_allclose([row[3:] for row in rows], [row[3:] for row in expected], rtol=0, atol=atol)


def hour(rows: list[tuple], *which: int) -> list[tuple]:
    return [row for row in rows if row[1].hour in which]


def test_the_forecasts_at_three_closes_are_those_of_a_night(place: Place) -> None:
    _, report = place.plays(hours(0, 3.5))
    rows = place.forecasts()
    assert len(rows) == 3 * 2 * 2 == report.counts["forecasts"]
    assert report.counts["unforecast"] == 0
    assert_same(rows, place.night_forecasts(3))


@pytest.mark.slow
def test_a_settlement_at_a_close_is_heard_at_it(place: Place) -> None:
    place.plays([*hours(0, 0.5), *hours(7.5, 8.5)])
    assert at(8) in [stamp_ms(one) for one in place.settled]
    rows = place.forecasts()
    assert len(rows) == 8 * 2 * 2
    assert_same(rows, place.night_forecasts(8))


@pytest.mark.slow
@pytest.mark.parametrize("bars", [34, 23], ids=["after the first bar", "after the second"])
def test_with_a_new_segment_the_memory_begins_anew_as_a_night_s_does(place: Place, monkeypatch, bars: int) -> None:
    """The fold's test window began 67 bars before midnight."""
    monkeypatch.setattr(fit, "SEGMENT_BARS", bars)
    place.plays(hours(0, 3.5))
    assert_same(place.forecasts(), place.night_forecasts(3))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["rows", "nothing"])
def test_killed_between_a_close_and_its_state_a_stream_forecasts_the_same_once(place: Place, lost: str) -> None:
    """Killed before the forecasts were written, or after them and before the state was."""
    steps = hours(0, 3.5)
    before, after = steps.index(trade(0.8)), steps.index(trade(1.55)) + 1
    stream, _ = place.plays(steps[:before])
    older = stream.job.state_file.read_bytes()
    place.plays([*opening(0.75), *steps[before:after]])
    first = place.forecasts("made_at, *")
    assert {row[0] for row in first} and len(first) == 4
    stream.job.state_file.write_bytes(older)
    if lost == "rows":
        place.desk.execute("DELETE FROM store.stream_forecasts")
    _, report = place.plays([*opening(1.5), *steps[after:]])
    assert report.counts["forecasts"] == (12 if lost == "rows" else 8)
    if lost == "nothing":
        assert place.forecasts("made_at, *")[:4] == first
    assert_same(place.forecasts(), place.night_forecasts(3))


def opening(when: float) -> list[str]:
    """What an exchange answers a second subscriber with: the ticker as it was."""
    return [ticker(when + 0.15)]


@pytest.mark.slow
def test_rest_down_at_a_close_costs_its_forecasts_and_the_next_are_right(place: Place, caplog) -> None:
    steps = hours(0, 3.5)
    cut = steps.index(trade(1.8))
    _, report = place.plays(steps[:cut], down=True)
    assert (report.counts["unforecast"], report.counts["forecasts"]) == (1, 0)
    assert "no forecast at 2024-06-29T01:00:00" in caplog.text
    _, report = place.plays([*opening(1.5), *steps[cut:]])
    assert (report.counts["unforecast"], report.counts["forecasts"]) == (0, 8)
    assert_same(place.forecasts(), hour(place.night_forecasts(3), 1, 2))


@pytest.mark.slow
def test_a_bar_that_nobody_has_is_a_gap(place: Place) -> None:
    place.bars = [bar for bar in place.bars if stamp_ms(bar) != at(1)]
    steps = hours(0, 3.5)
    cut = steps.index(trade(2.3))
    _, report = place.plays(steps[:cut])
    assert (report.counts["unforecast"], report.counts["forecasts"]) == (1, 4)
    place.plays([*opening(2), *steps[cut:]])
    assert_same(place.forecasts(), hour(place.night_forecasts(3), 0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["missing", "impossible", "off the grid"])
def test_a_bar_that_one_symbol_lacks_costs_its_forecasts_alone(place: Place, harm: str, caplog) -> None:
    (odd,) = (bar for bar in place.bars if (bar["symbol"], stamp_ms(bar)) == ("BBB", at(1)))
    whole = [bar for bar in place.bars if bar is not odd]
    if harm == "missing":
        place.bars = whole
    odd |= {"low": -1.0} if harm == "impossible" else {"ts": odd["ts"] + timedelta(seconds=7)}
    place.plays(hours(0, 3.5))
    assert ("1 impossible bars" in caplog.text) == (harm != "missing")
    place.bars = whole
    expected = [row for row in place.night_forecasts(3) if (row[0], row[1].hour) != ("BBB", 1)]
    assert_same(place.forecasts(), expected)


@pytest.mark.slow
def test_an_event_that_comes_too_late_changes_no_forecast(place: Place, other_place: Place) -> None:
    steps = hours(0, 2.5)
    place.plays(steps)
    late = steps.index(trade(0.8))
    steps[late:late] = [trade(0.3, value=900_000.0, name="late")]
    _, report = other_place.plays(steps)
    assert report.counts["late"] == 1
    assert other_place.forecasts() == place.forecasts()


def test_what_happens_after_a_close_changes_no_forecast_at_it(place: Place, other_place: Place) -> None:
    """A millisecond after the first close everything turns out otherwise, and so does the bar of that hour."""
    place.plays(hours(0, 2.5))
    for bar in other_place.bars:
        if stamp_ms(bar) >= at(1):
            bar |= {name: 2 * bar[name] for name in ("open", "high", "low", "close")}
    after = [trade(1 + 1 / 3_600_000, value=5e6), liquidation(1.01), trade(2.2), trade(2.3)]
    other_place.plays([*hours(0, 1), *after])
    one, two = place.forecasts(), other_place.forecasts()
    assert len(hour(one, 0)) == 4
    assert hour(one, 0) == hour(two, 0)
    assert not np.allclose([row[3:] for row in hour(one, 1)], [row[3:] for row in hour(two, 1)], rtol=1e-3)


@pytest.mark.slow
def test_what_happens_at_a_close_is_heard_at_it(place: Place, other_place: Place) -> None:
    place.plays(hours(0, 1.5))
    steps = hours(0, 1.5)
    steps.insert(steps.index(trade(1.05)), trade(1, "BBB", value=5e6))
    other_place.plays(steps)
    assert place.forecasts() != other_place.forecasts()
    assert_same(other_place.forecasts(), other_place.night_forecasts(1))


@pytest.fixture
def other_place(published_folder, tmp_path, place: Place):
    shutil.copytree(published_folder, tmp_path / "other")
    made = Place(place.desk.another(tmp_path / "another"), tmp_path / "other")
    shutil.copytree(published_folder, tmp_path / "another", dirs_exist_ok=True)
    yield made
    for client in made.clients:
        client.close()


def test_a_symbol_without_events_for_an_hour_is_stale(place: Place) -> None:
    steps = [*hours(0, 1), *(one for one in hours(1, 3.5) if "BBB" not in one)]
    place.plays(steps)
    told = place.forecasts("symbol, hour(ts), stale, round(freshness, 2)")[::2]
    assert told == [
        *(("AAA", 0, False, 1.0), ("BBB", 0, False, 0.97)),
        *(("AAA", 1, False, 1.0), ("BBB", 1, True, 0.48)),
        *(("AAA", 2, False, 1.0), ("BBB", 2, True, 0.24)),
    ]


def test_signals_now_are_the_newest_of_each_symbol_with_how_sure_they_are(place: Place) -> None:
    place.plays(hours(0, 2.5))
    rows = place.desk.rows(
        "SELECT symbol, hour(ts), horizon_bars, p_up + p_hold + p_down FROM signals_now ORDER BY ALL"
    )
    assert [row[:3] for row in rows] == [(symbol, 1, h) for symbol in SYMBOLS for h in (1, 4)]
    assert [row[3] for row in rows] == pytest.approx([1.0] * 4)
    odd = "confidence <> greatest(p_up, p_hold, p_down) OR closes_at <> ts + INTERVAL 1 HOUR OR made_at < closes_at"
    assert place.desk.rows(f"FROM stream_forecasts WHERE {odd}") == []


@pytest.mark.slow
@pytest.mark.parametrize("other", ["fold", "symbols"])
def test_on_another_fold_or_symbol_list_the_memory_begins_warm_again(place: Place, other: str, caplog) -> None:
    steps = hours(0, 2.5)
    cut = steps.index(trade(1.3))
    stream, _ = place.plays(steps[:cut], symbols=SYMBOLS if other == "fold" else ("BBB", "AAA"))
    if other == "fold":
        arrays = load_arrays(stream.job.state_file)
        save_arrays(stream.job.state_file, {**arrays, "memory.fold": np.array("another")})
    place.plays([*opening(1.0), *steps[cut:]])
    said = "the network has been fitted anew" if other == "fold" else "it is of BBB, AAA, this stream of AAA, BBB"
    assert f"is put aside: {said}; beginning anew from what is stored" in caplog.text
    assert_same(place.forecasts(), place.night_forecasts(2))


@pytest.mark.slow
def test_a_stored_row_that_is_no_event_is_left_out_and_counted(place: Place) -> None:
    steps = hours(0, 2.5)
    cut = steps.index(trade(0.55))
    stream, _ = place.plays(steps[:cut])
    state = load_arrays(stream.job.state_file)
    place.desk.execute(
        "INSERT INTO store.events BY NAME SELECT * REPLACE (0 AS price, 'odd' AS event_id, "
        "fetched_at + INTERVAL 1 SECOND AS fetched_at) FROM store.events WHERE kind = 'liquidation' LIMIT 1"
    )
    _, report = place.plays([*opening(0.25), *steps[cut:]])
    assert int(state["received"]) > 0
    assert report.counts["unreadable"] == 1
    place.desk.execute("DELETE FROM store.events WHERE event_id = 'odd'")
    assert_same(place.forecasts(), place.night_forecasts(2))


@pytest.mark.slow
def test_while_the_exchange_is_asked_for_bars_the_stream_goes_on(place: Place) -> None:
    with Exchange(hours(0, 3.5), topics_of(SYMBOLS)) as exchange:
        place.tells(exchange)
        stream, taken = place.stream(exchange), []
        market = stream.closes.memory.market.at

        def slow(close: np.datetime64) -> Any:
            began, patience = stream.counts["events"], time.monotonic() + 10
            while not taken and stream.counts["events"] == began and time.monotonic() < patience:
                time.sleep(0.01)
            taken.append(stream.counts["events"] - began)
            return market(close)

        object.__setattr__(stream.closes.memory.market, "at", slow)
        asyncio.run(until_closed(stream, exchange))
    assert taken[0] > 0
    assert len(place.forecasts()) == 12
