"""A folder of recorded trades and books: their symbols, the times of books, refused files, and bars."""

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
from tasks.markets.event_rows import EVENT_SCHEMA
from tasks.markets.recorded_events import RecordedEvents

START_MS = 1_723_161_255_000
CLOCK_LAG_NS = 1_250_000_000  # the recorder's clock is behind the exchange's by this
START = datetime.fromtimestamp(START_MS / 1000, UTC)
LATER = START + timedelta(days=1)


def make_trades(**changes: list) -> dict[str, list]:
    """Columns of four trades of two venues, 100 ms apart, received by the lagging clock after 5, 2, 9 and 3 ms."""
    times_ms = [START_MS + 100 * k for k in range(4)]
    delays_ms = (5, 2, 9, 3)
    return {
        "venue": ["binance_usdm", "binance_usdm", "binance_usdm", "binance_spot"],
        "symbol": ["AAA", "BBB", "AAA", "AAA"],
        "ts_ms": times_ms,
        "received_ns": [1_000_000 * (ms + delay) - CLOCK_LAG_NS for ms, delay in zip(times_ms, delays_ms, strict=True)],
        "side": ["buy", "sell", "sell", "buy"],
        "price": [10.0, 20.0, 11.0, 10.5],
        "size": [1.0, 2.0, 3.0, 4.0],
        "trade_id": [1, 1, 2, 1],
        **changes,
    }


def make_books(*milliseconds: int, venue: str = "binance_usdm") -> dict[str, list]:
    """Columns of books of AAA, received these milliseconds after the first trade."""
    received = [1_000_000 * (START_MS + ms) - CLOCK_LAG_NS for ms in milliseconds]
    prices = {"bid": 9.9, "bid_size": 5.0, "ask": 10.1, "ask_size": 6.0}
    columns = {name: [value] * len(received) for name, value in prices.items()}
    return {"venue": [venue] * len(received), "symbol": ["AAA"] * len(received), "received_ns": received, **columns}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the trades of make_trades()."""
    folder = tmp_path / "events"
    folder.mkdir()
    pq.write_table(pa.table(make_trades()), folder / "trades_2024-08-08.parquet")
    return folder


def test_symbols_have_their_market_as_prefix_and_events_are_those_after_start_up_to_end(folder: Path) -> None:
    recorded = RecordedEvents(folder)
    assert recorded.symbols == ("spot:AAA", "usdm:AAA", "usdm:BBB")
    assert (recorded.first_ts, recorded.last_ts) == (START, START + timedelta(milliseconds=300))
    events = recorded.events("usdm:AAA", START - timedelta(seconds=1), LATER)
    assert events.schema == EVENT_SCHEMA
    assert [(row["symbol"], row["event_id"], row["side"]) for row in events.to_pylist()] == [
        ("usdm:AAA", "1", "buy"),
        ("usdm:AAA", "2", "sell"),
    ]
    between = recorded.events("usdm:AAA", START, START + timedelta(milliseconds=200))
    assert between["event_id"].to_pylist() == ["2"]  # the start is excluded, the end included


def test_a_books_time_is_corrected_by_the_smallest_delay_of_its_venues_trades_before_it(folder: Path) -> None:
    pq.write_table(pa.table(make_books(1, 52, 152, 352)), folder / "top_of_book_x.parquet")
    events = RecordedEvents(folder).events("usdm:AAA", START - timedelta(seconds=1), LATER)
    book_times = [row["ts"] - START for row in events.to_pylist() if row["kind"] == "book"]
    # the first trade's delay is 5 ms and also applies to earlier books; from the second trade on it is 2 ms
    assert book_times == [timedelta(milliseconds=ms) for ms in (-4, 47, 150, 350)]
    assert [row["ask_size"] for row in events.to_pylist() if row["kind"] == "book"] == [6.0] * 4


def test_a_trade_in_two_files_is_counted_once(folder: Path) -> None:
    stamps = [START_MS, START_MS + 1100, START_MS + 1200, START_MS + 2000]
    trades = pa.table(make_trades(ts_ms=stamps, venue=["binance_usdm"] * 4, symbol=["AAA"] * 4, trade_id=[1, 2, 3, 4]))
    pq.write_table(trades, folder / "trades_2024-08-08.parquet")
    bars = RecordedEvents(folder).bars("usdm:AAA", "1s", START, LATER)
    assert bars["volume"].to_pylist() == [0.0, 9.0]
    pq.write_table(trades.slice(1), folder / "trades_2024-08-08b.parquet")
    assert RecordedEvents(folder).bars("usdm:AAA", "1s", START, LATER).equals(bars)


def test_no_later_trade_or_book_changes_an_earlier_event(shared_data: Path, tmp_path: Path) -> None:
    whole = RecordedEvents(shared_data / "events")
    cut_ms = START_MS + 60_000
    for name, column, last in (
        ("trades", "ts_ms", cut_ms),
        ("top_of_book_100ms", "received_ns", 1_000_000 * cut_ms - 2_000_000_000),
    ):
        table = pq.read_table(shared_data / "events" / f"{name}_2024-08-08.parquet")
        pq.write_table(table.filter(pc.less_equal(table[column], last)), tmp_path / f"{name}_x.parquet")
    cut = RecordedEvents(tmp_path)
    until = START + timedelta(seconds=58.5)
    assert cut.last_ts < whole.last_ts
    for symbol in whole.symbols:
        events = whole.events(symbol, whole.first_ts, until)
        assert events.num_rows > 100 and cut.events(symbol, whole.first_ts, until).equals(events)
        bars = whole.bars(symbol, "1s", whole.first_ts, until)
        assert bars.num_rows > 50 and cut.bars(symbol, "1s", whole.first_ts, until).equals(bars)


def test_bars_end_with_the_recording_or_the_span(shared_data: Path) -> None:
    recorded = RecordedEvents(shared_data / "events")
    midnight = datetime(2024, 8, 9, tzinfo=UTC)

    def last_open(end: datetime) -> datetime:
        return recorded.bars("cm:ETHUSD_PERP", "1s", recorded.first_ts, end)["ts"][-1].as_py()

    # the symbol's last trade was half a second before midnight
    assert last_open(midnight) == midnight - timedelta(seconds=1)
    assert last_open(LATER) == midnight  # other symbols were recorded a little longer
    assert last_open(midnight - timedelta(seconds=0.5)) == midnight - timedelta(seconds=2)
    with pytest.raises(NoPricesError, match="no whole bar of spot:BTCUSDT"):
        recorded.bars("spot:BTCUSDT", "1s", midnight - timedelta(seconds=1), midnight - timedelta(seconds=0.1))


def test_an_unrecorded_symbol_raises_an_error_that_lists_the_recorded_ones(folder: Path) -> None:
    with pytest.raises(UnknownSymbolError, match="no trade of cm:AAA; it has spot:AAA, usdm:AAA, usdm:BBB"):
        RecordedEvents(folder).bars("cm:AAA", "1s", START, LATER)


@pytest.mark.parametrize("night", [date(2024, 8, 7), date(2024, 8, 9)])
def test_a_night_of_another_day_is_refused(folder: Path, night: date) -> None:
    RecordedEvents(folder).check_night(date(2024, 8, 8))
    with pytest.raises(NightOutOfRangeError, match=rf"{night} .*: its binance data runs from 2024-08-08 to 2024-08-08"):
        RecordedEvents(folder).check_night(night)


def test_a_folder_without_trades_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TapeMissingError, match=r"no trades_\*\.parquet in"):
        RecordedEvents(tmp_path)


def test_books_of_a_venue_without_a_trade_are_refused(folder: Path) -> None:
    pq.write_table(pa.table(make_books(52, venue="binance_cm")), folder / "top_of_book_x.parquet")
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
def test_a_row_that_is_not_a_valid_trade_is_named(folder: Path, changes: dict[str, list]) -> None:
    pq.write_table(pa.table(make_trades(**changes)), folder / "trades_2024-08-08.parquet")
    with pytest.raises(TapeMalformedError, match=r"08\.parquet: row 2 is no event: \[\{'venue': 'binance_usdm'"):
        RecordedEvents(folder)


def test_a_file_that_lacks_a_column_or_is_not_parquet_is_refused(folder: Path) -> None:
    path = folder / "trades_2024-08-08.parquet"
    pq.write_table(pa.table(make_trades()).drop_columns("side"), path)
    with pytest.raises(TapeMalformedError, match="cannot be read as venue, symbol, side"):
        RecordedEvents(folder)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(TapeMalformedError, match="cannot be read as venue, symbol, side"):
        RecordedEvents(folder)
