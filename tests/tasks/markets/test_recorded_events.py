"""A folder of recorded trades and books: whose they are, when a book stood, what is refused, and the bars of them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tasks.errors import (
    NightOutOfRangeError,
    NoPricesError,
    TapeMalformedError,
    TapeMissingError,
    UnknownSymbolError,
)
from tasks.markets.event_rows import EVENT_ROWS
from tasks.markets.recorded import Recorded
from tasks.markets.recorded_events import RecordedEvents

BEGAN_MS = 1_723_161_255_000
SLOW_NS = 1_250_000_000  # so much the recorder's clock is behind
BEGAN = datetime.fromtimestamp(BEGAN_MS / 1000, UTC)
LATER = BEGAN + timedelta(days=1)


def recording(**changes: list) -> dict[str, list]:
    """Four trades of two venues, each received 5, 2, 9 and 3 ms after it by a clock that is behind."""
    stamps, delays = [BEGAN_MS + 100 * k for k in range(4)], (5, 2, 9, 3)
    return {
        "venue": ["binance_usdm", "binance_usdm", "binance_usdm", "binance_spot"],
        "symbol": ["AAA", "BBB", "AAA", "AAA"],
        "ts_ms": stamps,
        "received_ns": [1_000_000 * (s + d) - SLOW_NS for s, d in zip(stamps, delays, strict=True)],
        "side": ["buy", "sell", "sell", "buy"],
        "price": [10.0, 20.0, 11.0, 10.5],
        "size": [1.0, 2.0, 3.0, 4.0],
        "trade_id": [1, 1, 2, 1],
        **changes,
    }


def books_at(*milliseconds: int, venue: str = "binance_usdm") -> dict[str, list]:
    """Books of AAA, received so many milliseconds after the beginning."""
    received = [1_000_000 * (BEGAN_MS + ms) - SLOW_NS for ms in milliseconds]
    prices = {"bid": 9.9, "bid_size": 5.0, "ask": 10.1, "ask_size": 6.0}
    columns = {name: [value] * len(received) for name, value in prices.items()}
    return {"venue": [venue] * len(received), "symbol": ["AAA"] * len(received), "received_ns": received, **columns}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "events"
    folder.mkdir()
    pq.write_table(pa.table(recording()), folder / "trades_2024-08-08.parquet")
    return folder


def test_a_symbol_is_named_with_its_market_and_has_its_own_events_of_a_span(folder: Path) -> None:
    recorded = RecordedEvents(folder)
    assert recorded.symbols == ("spot:AAA", "usdm:AAA", "usdm:BBB")
    assert (recorded.first, recorded.last) == (BEGAN, BEGAN + timedelta(milliseconds=300))
    events = recorded.events("usdm:AAA", BEGAN - timedelta(seconds=1), LATER)
    assert events.schema == EVENT_ROWS
    assert [(row["symbol"], row["event_id"], row["side"]) for row in events.to_pylist()] == [
        ("usdm:AAA", "1", "buy"),
        ("usdm:AAA", "2", "sell"),
    ]
    inside = recorded.events("usdm:AAA", BEGAN, BEGAN + timedelta(milliseconds=200))
    assert inside["event_id"].to_pylist() == ["2"]  # after its start, up to its end


def test_a_book_is_dated_by_the_fastest_trade_of_its_venue_before_it(folder: Path) -> None:
    pq.write_table(pa.table(books_at(1, 52, 152, 352)), folder / "top_of_book_x.parquet")
    events = RecordedEvents(folder).events("usdm:AAA", BEGAN - timedelta(seconds=1), LATER)
    stood = [row["ts"] - BEGAN for row in events.to_pylist() if row["kind"] == "book"]
    # 5 ms was the delay of the only trade by then, that also counts before it; from the second on it is 2 ms
    assert stood == [timedelta(milliseconds=ms) for ms in (-4, 47, 150, 350)]
    assert [row["ask_size"] for row in events.to_pylist() if row["kind"] == "book"] == [6.0] * 4


def test_a_trade_that_two_files_have_is_one(folder: Path) -> None:
    stamps = [BEGAN_MS, BEGAN_MS + 1100, BEGAN_MS + 1200, BEGAN_MS + 2000]
    whole = pa.table(recording(ts_ms=stamps, venue=["binance_usdm"] * 4, symbol=["AAA"] * 4, trade_id=[1, 2, 3, 4]))
    pq.write_table(whole, folder / "trades_2024-08-08.parquet")
    bars = RecordedEvents(folder).bars("usdm:AAA", "1s", BEGAN, LATER)
    assert bars["volume"].to_pylist() == [0.0, 9.0]
    pq.write_table(whole.slice(1), folder / "trades_2024-08-08b.parquet")
    assert RecordedEvents(folder).bars("usdm:AAA", "1s", BEGAN, LATER).equals(bars)


def test_no_later_trade_or_book_changes_an_earlier_event(shared_data: Path, tmp_path: Path) -> None:
    whole, cut_ms = RecordedEvents(shared_data / "events"), BEGAN_MS + 60_000
    for name, column, last in (
        ("trades", "ts_ms", cut_ms),
        ("top_of_book_100ms", "received_ns", 1_000_000 * cut_ms - 2_000_000_000),
    ):
        table = pq.read_table(shared_data / "events" / f"{name}_2024-08-08.parquet")
        pq.write_table(table.filter(pc.less_equal(table[column], last)), tmp_path / f"{name}_x.parquet")
    cut, until = RecordedEvents(tmp_path), BEGAN + timedelta(seconds=58.5)
    assert cut.last < whole.last
    for symbol in whole.symbols:
        events = whole.events(symbol, whole.first, until)
        assert events.num_rows > 100 and cut.events(symbol, whole.first, until).equals(events)
        bars = whole.bars(symbol, "1s", whole.first, until)
        assert bars.num_rows > 50 and cut.bars(symbol, "1s", whole.first, until).equals(bars)


def test_bars_end_with_the_recording_the_clock_or_the_span(shared_data: Path) -> None:
    recorded = RecordedEvents(shared_data / "events")
    midnight = datetime(2024, 8, 9, tzinfo=UTC)

    def last(end: datetime) -> datetime:
        return recorded.bars("cm:ETHUSD_PERP", "1s", recorded.first, end)["ts"][-1].as_py()

    assert last(midnight) == midnight - timedelta(seconds=1)  # of itself it was traded half a second before
    assert last(LATER) == midnight  # all of them were recorded a little beyond
    assert last(midnight - timedelta(seconds=0.5)) == midnight - timedelta(seconds=2)
    with pytest.raises(NoPricesError, match="no whole bar of spot:BTCUSDT"):
        recorded.bars("spot:BTCUSDT", "1s", midnight - timedelta(seconds=1), midnight - timedelta(seconds=0.1))


def test_a_symbol_that_was_not_recorded_is_answered_with_those_that_were(folder: Path) -> None:
    with pytest.raises(UnknownSymbolError, match="no trade of cm:AAA; it has spot:AAA, usdm:AAA, usdm:BBB"):
        RecordedEvents(folder).bars("cm:AAA", "1s", BEGAN, LATER)


@pytest.mark.parametrize("night", [date(2024, 8, 7), date(2024, 8, 9)])
def test_a_night_of_another_day_is_refused(folder: Path, night: date) -> None:
    Recorded(folder).check_night("binance", date(2024, 8, 8))
    with pytest.raises(NightOutOfRangeError, match=rf"{night} .*: its binance data runs from 2024-08-08 to 2024-08-08"):
        Recorded(folder).check_night("binance", night)


def test_a_folder_without_trades_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TapeMissingError, match=r"no trades_\*\.parquet in"):
        RecordedEvents(tmp_path)


def test_books_of_a_venue_without_a_trade_are_refused(folder: Path) -> None:
    pq.write_table(pa.table(books_at(52, venue="binance_cm")), folder / "top_of_book_x.parquet")
    with pytest.raises(TapeMalformedError, match="books of binance_cm without one trade"):
        RecordedEvents(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"side": ["buy", "sell", "both", "buy"]},
        {"price": [10.0, 20.0, 0.0, 10.5]},
        {"size": [1.0, 2.0, float("nan"), 4.0]},
        {"size": [1.0, 2.0, float("inf"), 4.0]},
        {"trade_id": [1, 1, None, 1]},
    ],
    ids=["side", "price", "size", "endless", "id"],
)
def test_a_row_that_no_trade_can_be_is_named(folder: Path, changes: dict[str, list]) -> None:
    pq.write_table(pa.table(recording(**changes)), folder / "trades_2024-08-08.parquet")
    with pytest.raises(TapeMalformedError, match=r"08\.parquet: row 2 is no event: \[\{'venue': 'binance_usdm'"):
        RecordedEvents(folder)


def test_a_file_that_lacks_a_column_or_is_none_is_refused(folder: Path) -> None:
    path = folder / "trades_2024-08-08.parquet"
    pq.write_table(pa.table(recording()).drop_columns("side"), path)
    with pytest.raises(TapeMalformedError, match="cannot be read as venue, symbol, side"):
        RecordedEvents(folder)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(TapeMalformedError, match="cannot be read as venue, symbol, side"):
        RecordedEvents(folder)
