"""Recorded folders that are missing, malformed or too short, and the dividends of recorded prices."""

import csv
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import NightOutOfRangeError, TapeMalformedError, TapeMissingError
from tasks.markets.recorded import RecordedMarket, infer_dividends
from tasks.markets.recorded_events import RecordedEvents


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TapeMissingError, match=str(tmp_path / "nowhere")):
        RecordedMarket(tmp_path / "nowhere")


def test_a_folder_without_recordings_raises_an_error_that_names_the_files(tmp_path: Path) -> None:
    with pytest.raises(TapeMissingError, match=r"yahoo/bars_1d\.parquet"):
        RecordedMarket(tmp_path)


def test_a_tape_without_the_provider_names_the_missing_file(small_tape: Path) -> None:
    (small_tape / "yahoo/bars_1d.parquet").unlink()
    assert RecordedMarket(small_tape).providers == ("bybit",)
    with pytest.raises(TapeMissingError, match=r"yahoo/bars_1d\.parquet"):
        RecordedMarket(small_tape).check_night("yahoo", date(2024, 2, 1))


def with_defect(table: pa.Table, defect: str) -> pa.Table:
    """A copy of a table of daily bars with one defect; "empty" has no rows."""
    if defect == "no column":
        return table.drop_columns(["close"])
    if defect == "text":
        return table.set_column(table.column_names.index("close"), "close", pa.array(["x"] * len(table)))
    if defect == "twice":
        return pa.concat_tables([table, table.slice(3, 1)])
    if defect == "no symbol":
        return table.set_column(0, "symbol", pa.nulls(len(table), pa.string()))
    return table.slice(0, 0)


@pytest.mark.parametrize(
    ("defect", "message"),
    [("no column", "lacks the columns close"), ("text", "cannot be read"), ("twice", "AAA 2024-01-05 twice"),
     ("no symbol", "without a symbol"), ("empty", "empty")],
)  # fmt: skip
def test_a_malformed_file_is_named_with_its_defect(small_tape: Path, defect: str, message: str) -> None:
    path = small_tape / "yahoo/bars_1d.parquet"
    pq.write_table(with_defect(pq.read_table(path), defect), path)
    with pytest.raises(TapeMalformedError, match=message) as raised:
        RecordedMarket(small_tape).check_night("yahoo", date(2024, 2, 1))
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_parquet_is_malformed(small_tape: Path) -> None:
    (small_tape / "bybit/klines_60.parquet").write_text("symbol,ts\n")
    with pytest.raises(TapeMalformedError, match="klines_60"):
        RecordedMarket(small_tape).check_night("bybit", date(2024, 2, 1))


@pytest.mark.parametrize(
    ("provider", "night", "is_covered"),
    [
        ("yahoo", date(2023, 12, 31), False),
        ("yahoo", date(2024, 1, 2), True),
        ("yahoo", date(2024, 3, 28), True),
        ("yahoo", date(2024, 3, 31), True),  # Easter: the last session due is on the tape
        ("yahoo", date(2024, 4, 1), False),
        ("bybit", date(2023, 12, 31), False),
        ("bybit", date(2024, 1, 1), True),
        ("bybit", date(2024, 3, 31), True),
        ("bybit", date(2024, 4, 1), False),
    ],
)
def test_a_night_outside_the_tape_is_refused(small_tape: Path, provider: str, night: date, is_covered: bool) -> None:
    recording = RecordedMarket(small_tape)
    if is_covered:
        recording.check_night(provider, night)
    else:
        with pytest.raises(NightOutOfRangeError, match=f"{night}.*from 2024-01"):
            recording.check_night(provider, night)


def test_an_incomplete_last_day_is_refused_as_a_night(shared_data: Path) -> None:
    recording = RecordedMarket(shared_data / "tape")
    recording.check_night("bybit", date(2026, 1, 4))
    with pytest.raises(NightOutOfRangeError):
        recording.check_night("bybit", date(2026, 1, 5))  # the recording of this day ends at 10:00


def test_every_symbol_of_the_seeds_is_recorded_from_its_valid_from_date(shared_data: Path) -> None:
    seeds = Path(__file__).parents[3] / "warehouse/seeds"
    with (seeds / "universes.csv").open() as universes:
        providers = {row["universe"]: row["provider"] for row in csv.DictReader(universes)}
    with (seeds / "universe_members.csv").open() as members:
        rows = [row for row in csv.DictReader(members) if providers[row["universe"]] in ("yahoo", "bybit", "binance")]
    tape = RecordedMarket(shared_data / "tape")
    wide_tape = RecordedMarket(shared_data / "tape_wide")
    events = RecordedEvents(shared_data / "events")
    first_days = {symbol: str(events.first_ts.date()) for symbol in events.symbols}
    for row in rows:
        if providers[row["universe"]] == "binance":
            assert first_days[row["symbol"]] == row["valid_from"], row
            continue
        recording = wide_tape if row["universe"] == "crypto_wide" else tape
        symbol = row["symbol"]
        is_perpetual = symbol.endswith("USDT")
        ts = recording.perpetual(symbol).bars["1h"].ts if is_perpetual else recording.stock(symbol).bars.ts
        assert str(ts[0].astype("datetime64[D]")) == row["valid_from"], row


def test_dividends_are_computed_from_the_steps_of_the_adjusted_close() -> None:
    close = np.array([50.0, 51.0, 50.0, 52.0])
    first_factor = 1 - 0.5 / 50  # a dividend of 0.5 on the second day, after the close of 50
    second_factor = 1 - 0.25 / 50  # a dividend of 0.25 on the fourth day, after the close of 50
    adjusted = close * np.array([first_factor * second_factor, second_factor, second_factor, 1.0])
    np.testing.assert_allclose(infer_dividends(close, adjusted), [0.0, 0.5, 0.0, 0.25])


def test_the_noise_of_recorded_floats_gives_no_dividend() -> None:
    close = np.full(100, 99.0)
    noise = 1 + 4e-7 * np.random.default_rng(0).uniform(-1, 1, 100)
    assert not infer_dividends(close, close * noise).any()
