"""Tape folders that are missing, malformed or too short."""

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import NightOutOfRangeError, TapeMalformedError, TapeMissingError
from tasks.markets.recorded import Recorded, dividends


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TapeMissingError, match=str(tmp_path / "nowhere")):
        Recorded(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_told_what_a_tape_holds(tmp_path: Path) -> None:
    with pytest.raises(TapeMissingError, match=r"yahoo/bars_1d\.parquet"):
        Recorded(tmp_path)


def test_a_tape_without_the_provider_says_which_file_it_lacks(small_tape: Path) -> None:
    (small_tape / "yahoo/bars_1d.parquet").unlink()
    assert Recorded(small_tape).providers == ("bybit",)
    with pytest.raises(TapeMissingError, match=r"yahoo/bars_1d\.parquet"):
        Recorded(small_tape).check_night("yahoo", date(2024, 2, 1))


def spoil(table: pa.Table, how: str) -> pa.Table:
    if how == "no column":
        return table.drop_columns(["close"])
    if how == "text":
        return table.set_column(table.column_names.index("close"), "close", pa.array(["x"] * len(table)))
    if how == "twice":
        return pa.concat_tables([table, table.slice(3, 1)])
    if how == "no symbol":
        return table.set_column(0, "symbol", pa.nulls(len(table), pa.string()))
    return table.slice(0, 0)


@pytest.mark.parametrize(
    ("how", "says"),
    [("no column", "lacks the columns close"), ("text", "cannot be read"), ("twice", "AAA 2024-01-05 twice"),
     ("no symbol", "without a symbol"), ("empty", "empty")],
)  # fmt: skip
def test_a_malformed_file_is_named_with_what_is_wrong(small_tape: Path, how: str, says: str) -> None:
    path = small_tape / "yahoo/bars_1d.parquet"
    pq.write_table(spoil(pq.read_table(path), how), path)
    with pytest.raises(TapeMalformedError, match=says) as caught:
        Recorded(small_tape).check_night("yahoo", date(2024, 2, 1))
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_parquet_is_malformed(small_tape: Path) -> None:
    (small_tape / "bybit/klines_60.parquet").write_text("symbol,ts\n")
    with pytest.raises(TapeMalformedError, match="klines_60"):
        Recorded(small_tape).check_night("bybit", date(2024, 2, 1))


@pytest.mark.parametrize(
    ("provider", "night", "inside"),
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
def test_a_night_must_lie_on_the_tape(small_tape: Path, provider: str, night: date, inside: bool) -> None:
    recording = Recorded(small_tape)
    if inside:
        recording.check_night(provider, night)
    else:
        with pytest.raises(NightOutOfRangeError, match=f"{night}.*from 2024-01"):
            recording.check_night(provider, night)


def test_an_unfinished_last_day_is_not_a_night(shared_data: Path) -> None:
    recording = Recorded(shared_data / "tape")
    recording.check_night("bybit", date(2026, 1, 4))
    with pytest.raises(NightOutOfRangeError):
        recording.check_night("bybit", date(2026, 1, 5))  # ends at 10:00


def test_every_symbol_of_the_seeds_is_on_its_tape(shared_data: Path) -> None:
    import csv

    seeds = Path(__file__).parents[3] / "warehouse/seeds/universe_members.csv"
    tape, wide = Recorded(shared_data / "tape"), Recorded(shared_data / "tape_wide")
    recorded = Recorded(shared_data / "events").events
    events = {symbol: str(recorded.first.date()) for symbol in recorded.symbols}
    for row in csv.DictReader(seeds.open()):
        if row["universe"] == "binance_seconds":
            assert events[row["symbol"]] == row["valid_from"], row
            continue
        recording = wide if row["universe"] == "crypto_wide" else tape
        perpetual = row["symbol"].endswith("USDT")
        ts = recording.perpetual(row["symbol"]).bars["1h"].ts if perpetual else recording.stock(row["symbol"]).bars.ts
        assert str(ts[0].astype("datetime64[D]")) == row["valid_from"], row


def test_dividends_follow_from_the_steps_of_the_adjusted_close() -> None:
    close = np.array([50.0, 51.0, 50.0, 52.0])
    adjusted = close * np.array([(1 - 0.5 / 51) * (1 - 0.25 / 50), 1 - 0.25 / 50 - 0.0, 1 - 0.25 / 50, 1.0])
    adjusted[0] = close[0] * (1 - 0.5 / 50) * (1 - 0.25 / 50)
    np.testing.assert_allclose(dividends(close, adjusted), [0.0, 0.5, 0.0, 0.25])


def test_the_noise_of_recorded_floats_is_no_dividend() -> None:
    close = np.full(100, 99.0)
    noise = 1 + 4e-7 * np.random.default_rng(0).uniform(-1, 1, 100)
    assert not dividends(close, close * noise).any()
