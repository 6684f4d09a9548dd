"""A stream's forecasts at the closes of bars equal those of a night with the same bars and events."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.graphs.stream import load_arrays, save_arrays
from models.training import fit
from tasks.markets.bybit_frames import topics_for
from tests.exchange import FakeExchange, run_until_script_ends
from tests.market_place import (
    HOUR_MS,
    RECIPE,
    SYMBOLS,
    LiveDesk,
    liquidation,
    market_frames,
    ms_after_midnight,
    row_ms,
    ticker,
    trade,
)

HORIZONS = RECIPE.horizons
ROWS_PER_BAR = len(SYMBOLS) * len(HORIZONS)


def assert_same_forecasts(rows: list[tuple], expected: list[tuple]) -> None:
    """Rows of LiveDesk.forecasts have equal keys, and values equal up to float32 rounding."""
    assert keys_of(rows) == keys_of(expected)
    np.testing.assert_allclose(values_of(rows), values_of(expected), rtol=0, atol=1e-7)


def keys_of(rows: list[tuple]) -> list[tuple]:
    """(symbol, ts, horizon_bars) of each row."""
    return [(symbol, ts, horizon_bars) for symbol, ts, horizon_bars, *_ in rows]


def values_of(rows: list[tuple]) -> list[list[float]]:
    """The predictions of each row."""
    return [predictions for _, _, _, *predictions in rows]


def rows_of_hours(rows: list[tuple], *hours: int) -> list[tuple]:
    """The forecasts of the bars that open in one of these hours of the day."""
    return [row for row in rows if row[1].hour in hours]


def test_the_forecasts_at_three_closes_equal_those_of_a_night(live_desk: LiveDesk) -> None:
    """TGN-29: from the frames of a websocket to the forecasts."""
    _, report = live_desk.run_stream(market_frames(0, 3.5))
    rows = live_desk.forecasts()
    assert len(rows) == 3 * ROWS_PER_BAR == report.counts["forecasts"]
    assert report.counts["unforecast"] == 0
    assert_same_forecasts(rows, live_desk.night_forecasts(3))


@pytest.mark.slow
def test_a_funding_settlement_at_a_close_is_used_at_that_close(live_desk: LiveDesk) -> None:
    live_desk.run_stream([*market_frames(0, 0.5), *market_frames(7.5, 8.5)])
    assert ms_after_midnight(8) in [row_ms(row) for row in live_desk.funding_rates]
    rows = live_desk.forecasts()
    assert len(rows) == 8 * ROWS_PER_BAR
    assert_same_forecasts(rows, live_desk.night_forecasts(8))


@pytest.mark.slow
@pytest.mark.parametrize("max_segment_bars", [34, 23], ids=["after one bar", "after two bars"])
def test_a_new_segment_restarts_the_memory_as_in_a_night(
    live_desk: LiveDesk, monkeypatch: pytest.MonkeyPatch, max_segment_bars: int
) -> None:
    """The test window starts 67 bars before midnight: its bar 68 = 2 · 34 or 69 = 3 · 23 starts a segment."""
    monkeypatch.setattr(fit, "MAX_SEGMENT_BARS", max_segment_bars)
    live_desk.run_stream(market_frames(0, 3.5))
    assert_same_forecasts(live_desk.forecasts(), live_desk.night_forecasts(3))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["rows", "nothing"])
def test_a_stream_killed_between_a_close_and_its_save_repeats_no_forecast(live_desk: LiveDesk, lost: str) -> None:
    """The stream is killed before the forecasts are written, or between writing them and saving the state."""
    steps = market_frames(0, 3.5)
    saved = steps.index(trade(0.8))  # the state is saved here, before the first close
    killed = steps.index(trade(1.55)) + 1
    stream, _ = live_desk.run_stream(steps[:saved])
    older_state = stream.job.state_file.read_bytes()
    live_desk.run_stream([*opening_snapshots(0.75), *steps[saved:killed]])
    first = live_desk.forecasts("made_at, *")
    assert len(first) == ROWS_PER_BAR
    stream.job.state_file.write_bytes(older_state)
    if lost == "rows":
        live_desk.desk.execute("DELETE FROM store.stream_forecasts")
    _, report = live_desk.run_stream([*opening_snapshots(1.5), *steps[killed:]])
    assert report.counts["forecasts"] == (3 * ROWS_PER_BAR if lost == "rows" else 2 * ROWS_PER_BAR)
    if lost == "nothing":
        assert live_desk.forecasts("made_at, *")[:ROWS_PER_BAR] == first
    assert_same_forecasts(live_desk.forecasts(), live_desk.night_forecasts(3))


def opening_snapshots(hour: float) -> list[str]:
    """The snapshot that the exchange sends to a new subscriber: the ticker of that quarter of an hour."""
    return [ticker(hour + 0.15)]


@pytest.mark.slow
def test_with_rest_down_at_a_close_its_forecasts_are_missing_and_the_next_are_right(
    live_desk: LiveDesk, caplog: pytest.LogCaptureFixture
) -> None:
    steps = market_frames(0, 3.5)
    cut = steps.index(trade(1.8))
    _, report = live_desk.run_stream(steps[:cut], is_rest_down=True)
    assert (report.counts["unforecast"], report.counts["forecasts"]) == (1, 0)
    assert "no forecast at 2024-06-29T01:00:00" in caplog.text
    _, report = live_desk.run_stream([*opening_snapshots(1.5), *steps[cut:]])
    assert (report.counts["unforecast"], report.counts["forecasts"]) == (0, 2 * ROWS_PER_BAR)
    assert_same_forecasts(live_desk.forecasts(), rows_of_hours(live_desk.night_forecasts(3), 1, 2))


@pytest.mark.slow
def test_a_bar_missing_everywhere_is_a_gap(live_desk: LiveDesk) -> None:
    live_desk.bars = [bar for bar in live_desk.bars if row_ms(bar) != ms_after_midnight(1)]
    steps = market_frames(0, 3.5)
    cut = steps.index(trade(2.3))
    _, report = live_desk.run_stream(steps[:cut])
    assert (report.counts["unforecast"], report.counts["forecasts"]) == (1, ROWS_PER_BAR)
    live_desk.run_stream([*opening_snapshots(2), *steps[cut:]])
    assert_same_forecasts(live_desk.forecasts(), rows_of_hours(live_desk.night_forecasts(3), 0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("defect", ["missing", "impossible", "off the grid"])
def test_a_bar_missing_for_one_symbol_removes_only_its_forecasts(
    live_desk: LiveDesk, defect: str, caplog: pytest.LogCaptureFixture
) -> None:
    (odd,) = (bar for bar in live_desk.bars if (bar["symbol"], row_ms(bar)) == ("BBB", ms_after_midnight(1)))
    others = [bar for bar in live_desk.bars if bar is not odd]
    if defect == "missing":
        live_desk.bars = others
    odd |= {"low": -1.0} if defect == "impossible" else {"ts": odd["ts"] + timedelta(seconds=7)}
    live_desk.run_stream(market_frames(0, 3.5))
    assert ("1 invalid bars" in caplog.text) == (defect != "missing")
    live_desk.bars = others
    expected = [row for row in live_desk.night_forecasts(3) if (row[0], row[1].hour) != ("BBB", 1)]
    assert_same_forecasts(live_desk.forecasts(), expected)


@pytest.mark.slow
def test_an_event_that_arrives_too_late_changes_no_forecast(live_desk: LiveDesk, other_desk: LiveDesk) -> None:
    steps = market_frames(0, 2.5)
    live_desk.run_stream(steps)
    position = steps.index(trade(0.8))
    steps[position:position] = [trade(0.3, value=900_000.0, name="late")]
    _, report = other_desk.run_stream(steps)
    assert report.counts["late"] == 1
    assert other_desk.forecasts() == live_desk.forecasts()


def test_events_after_a_close_change_no_forecast_at_it(live_desk: LiveDesk, other_desk: LiveDesk) -> None:
    """From a millisecond after the first close, the other desk has other events and other bars."""
    live_desk.run_stream(market_frames(0, 2.5))
    for bar in other_desk.bars:
        if row_ms(bar) >= ms_after_midnight(1):
            bar |= {name: 2 * bar[name] for name in ("open", "high", "low", "close")}
    after = [trade(1 + 1 / HOUR_MS, value=5e6), liquidation(1.01), trade(2.2), trade(2.3)]
    other_desk.run_stream([*market_frames(0, 1), *after])
    first = live_desk.forecasts()
    second = other_desk.forecasts()
    assert len(rows_of_hours(first, 0)) == ROWS_PER_BAR
    assert rows_of_hours(first, 0) == rows_of_hours(second, 0)
    later_first = values_of(rows_of_hours(first, 1))
    later_second = values_of(rows_of_hours(second, 1))
    assert not np.allclose(later_first, later_second, rtol=1e-3)


@pytest.mark.slow
def test_an_event_exactly_at_a_close_is_used_at_that_close(live_desk: LiveDesk, other_desk: LiveDesk) -> None:
    live_desk.run_stream(market_frames(0, 1.5))
    steps = market_frames(0, 1.5)
    steps.insert(steps.index(trade(1.05)), trade(1, "BBB", value=5e6))
    other_desk.run_stream(steps)
    assert live_desk.forecasts() != other_desk.forecasts()
    assert_same_forecasts(other_desk.forecasts(), other_desk.night_forecasts(1))


@pytest.fixture
def other_desk(published_folder: Path, tmp_path: Path, live_desk: LiveDesk) -> Iterator[LiveDesk]:
    """A second desk with the same published night, to compare two streams."""
    shutil.copytree(published_folder, tmp_path / "other")
    desk = LiveDesk(live_desk.desk.copy_to(tmp_path / "another"), tmp_path / "other")
    shutil.copytree(published_folder, tmp_path / "another", dirs_exist_ok=True)
    yield desk
    for client in desk.clients:
        client.close()


def test_a_symbol_without_events_for_an_hour_is_stale(live_desk: LiveDesk) -> None:
    """TGN-34, TGN-38. A forecast has a row per horizon; every second row is compared."""
    steps = [*market_frames(0, 1), *(frame for frame in market_frames(1, 3.5) if "BBB" not in frame)]
    live_desk.run_stream(steps)
    rows = live_desk.forecasts("symbol, hour(ts), stale, round(freshness, 2)")[:: len(HORIZONS)]
    assert rows == [
        *(("AAA", 0, False, 1.0), ("BBB", 0, False, 0.97)),
        *(("AAA", 1, False, 1.0), ("BBB", 1, True, 0.48)),
        *(("AAA", 2, False, 1.0), ("BBB", 2, True, 0.24)),
    ]


def test_signals_now_has_the_newest_forecasts_of_each_symbol_and_their_confidence(live_desk: LiveDesk) -> None:
    live_desk.run_stream(market_frames(0, 2.5))
    rows = live_desk.desk.rows(
        "SELECT symbol, hour(ts), horizon_bars, p_up + p_hold + p_down FROM signals_now ORDER BY ALL"
    )
    assert [row[:3] for row in rows] == [(symbol, 1, horizon) for symbol in SYMBOLS for horizon in HORIZONS]
    assert [row[3] for row in rows] == pytest.approx([1.0] * 4)
    wrong = "confidence <> greatest(p_up, p_hold, p_down) OR closes_at <> ts + INTERVAL 1 HOUR OR made_at < closes_at"
    assert live_desk.desk.rows(f"FROM stream_forecasts WHERE {wrong}") == []


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["fold", "symbols"])
def test_with_another_fold_or_symbol_list_the_memory_restarts_from_the_stored_events(
    live_desk: LiveDesk, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    steps = market_frames(0, 2.5)
    cut = steps.index(trade(1.3))
    stream, _ = live_desk.run_stream(steps[:cut], symbols=SYMBOLS if changed == "fold" else ("BBB", "AAA"))
    if changed == "fold":
        arrays = load_arrays(stream.job.state_file)
        save_arrays(stream.job.state_file, {**arrays, "memory.fold": np.array("another")})
    live_desk.run_stream([*opening_snapshots(1.0), *steps[cut:]])
    reason = {
        "fold": "the network has been fitted anew",
        "symbols": "it was saved for BBB, AAA, this stream has AAA, BBB",
    }[changed]
    assert f"is not used: {reason}; starting again from the stored events" in caplog.text
    assert_same_forecasts(live_desk.forecasts(), live_desk.night_forecasts(2))


@pytest.mark.slow
def test_a_stored_row_that_is_not_a_valid_event_is_left_out_and_counted(live_desk: LiveDesk) -> None:
    steps = market_frames(0, 2.5)
    cut = steps.index(trade(0.55))
    stream, _ = live_desk.run_stream(steps[:cut])
    state = load_arrays(stream.job.state_file)
    live_desk.desk.execute(
        "INSERT INTO store.events BY NAME SELECT * REPLACE (0 AS price, 'odd' AS event_id, "
        "fetched_at + INTERVAL 1 SECOND AS fetched_at) FROM store.events WHERE kind = 'liquidation' LIMIT 1"
    )
    _, report = live_desk.run_stream([*opening_snapshots(0.25), *steps[cut:]])
    assert int(state["received"]) > 0
    assert report.counts["unreadable"] == 1
    live_desk.desk.execute("DELETE FROM store.events WHERE event_id = 'odd'")
    assert_same_forecasts(live_desk.forecasts(), live_desk.night_forecasts(2))


@pytest.mark.slow
def test_the_stream_continues_while_bars_are_requested(live_desk: LiveDesk) -> None:
    with FakeExchange(market_frames(0, 3.5), topics_for(SYMBOLS)) as exchange:
        live_desk.serve_rest_data(exchange)
        stream = live_desk.stream(exchange)
        market = stream.bar_closer.forecaster.market
        data_at_close = market.data_at_close
        events_meanwhile: list[int] = []

        def slow_data_at_close(close: np.datetime64) -> Any:
            events_before = stream.counts["events"]
            deadline_s = time.monotonic() + 10
            while not events_meanwhile and stream.counts["events"] == events_before and time.monotonic() < deadline_s:
                time.sleep(0.01)
            events_meanwhile.append(stream.counts["events"] - events_before)
            return data_at_close(close)

        object.__setattr__(market, "data_at_close", slow_data_at_close)
        asyncio.run(run_until_script_ends(stream, exchange))
    assert events_meanwhile[0] > 0
    assert len(live_desk.forecasts()) == 3 * ROWS_PER_BAR
