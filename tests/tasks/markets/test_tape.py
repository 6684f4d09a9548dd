"""The answers of a tape (recorded market data) equal those of the live service at the clock, without later data."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tasks.markets.bybit import Bybit
from tasks.markets.recorded import RecordedMarket
from tasks.markets.recording import Bars, Stock
from tasks.markets.retry_policy import NO_RETRY
from tasks.markets.tape import Tape, adjusted_history
from tasks.markets.yahoo import Yahoo

YAHOO = "https://query2.finance.yahoo.com/v8/finance/chart/"
BYBIT = "https://api.bybit.com/v5/market/"
CLOCKS = [datetime(2023, 8, 12, tzinfo=UTC), datetime(2024, 2, 10, tzinfo=UTC), datetime(2024, 6, 29, tzinfo=UTC)]


@pytest.fixture(scope="module")
def recording(shared_data: Path) -> RecordedMarket:
    return RecordedMarket(shared_data / "tape")


def cut_tape(tape: Path, clock: datetime, folder: Path) -> Path:
    """A copy in ``folder`` of the tape's files, without the rows that had not closed at the clock."""
    hour = timedelta(hours=1)
    day = timedelta(days=1)
    for name, time_column, last_time in (
        ("yahoo/bars_1d", "date", (clock - day).date()),
        ("bybit/klines_60", "ts", clock - hour),
        ("bybit/klines_D", "ts", clock - day),
        ("bybit/funding", "ts", clock),
    ):
        table = pq.read_table(tape / f"{name}.parquet")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pc.less_equal(table[time_column], last_time)), folder / f"{name}.parquet")
    return folder


def answer_bodies(market: RecordedMarket, clock: datetime) -> list[str]:
    """The bodies of a tape's answers to requests of every kind."""
    session = Tape(market, clock).session()
    end_ms = int(clock.timestamp() * 1000)
    charts = [f"{YAHOO}{s}?period1=1546300800&period2=1893456000" for s in ("AAPL", "SPY", "BKNG", "ABNB", "NVDA")]
    perpetuals = ("BTCUSDT", "WIFUSDT", "XRPUSDT")
    klines = [f"{BYBIT}kline?category=linear&symbol={s}&interval={i}&limit=1000&start=0&end={end_ms}"
             for s in perpetuals for i in ("60", "D")]  # fmt: skip
    funding = [f"{BYBIT}funding/history?category=linear&symbol={s}&limit=200" for s in perpetuals]
    listing = [f"{BYBIT}instruments-info?category=linear&limit=1000"]
    return [session.get(url).text for url in [*charts, *klines, *funding, *listing]]


@pytest.mark.parametrize("clock", CLOCKS, ids=str)
def test_a_tape_cut_at_the_clock_answers_like_the_whole_one(
    recording: RecordedMarket, shared_data: Path, tmp_path: Path, clock: datetime
) -> None:
    cut = RecordedMarket(cut_tape(shared_data / "tape", clock, tmp_path))
    assert answer_bodies(cut, clock) == answer_bodies(recording, clock)


def daily_bars(recording: RecordedMarket, clock: datetime, symbol: str, start: date) -> tuple[pa.Table, pa.Table]:
    """The bars and actions that a Yahoo client receives from the tape."""
    return Yahoo(clock, Tape(recording, clock).session(), NO_RETRY).daily_bars(symbol, start, clock.date())


def test_dividends_are_exact_to_the_cent(recording: RecordedMarket) -> None:
    _, actions = daily_bars(recording, CLOCKS[-1], "AAPL", date(2023, 1, 1))
    dividends = [(row["ts"].date(), row["value"]) for row in actions.to_pylist()]
    assert dividends == [
        (date(2023, 2, 10), 0.23),
        (date(2023, 5, 12), 0.24),
        (date(2023, 8, 11), 0.24),
        (date(2023, 11, 10), 0.24),
        (date(2024, 2, 9), 0.24),
        (date(2024, 5, 10), 0.25),
    ]
    assert daily_bars(recording, CLOCKS[-1], "NVDA", date(2024, 3, 1))[1]["value"].to_pylist() == [0.004, 0.01]
    assert daily_bars(recording, CLOCKS[-1], "BLK", date(2024, 3, 1))[1]["value"].to_pylist() == [5.1, 5.1]
    assert len(daily_bars(recording, CLOCKS[-1], "SPY", date(2019, 1, 1))[1]) == 0


def test_adjusted_closes_equal_the_recorded_ones_up_to_a_factor(recording: RecordedMarket, shared_data: Path) -> None:
    bars, _ = daily_bars(recording, CLOCKS[-1], "KO", date(2019, 1, 1))
    table = pq.read_table(shared_data / "tape/yahoo/bars_1d.parquet", filters=[("symbol", "==", "KO")])
    ratio = (table["adj_close"].to_numpy() / table["close"].to_numpy())[: len(bars)]
    tape_ratio = bars["close_adjusted"].to_numpy() / bars["close"].to_numpy()
    assert bars["close_adjusted"][-1] == bars["close"][-1]
    np.testing.assert_allclose(tape_ratio, ratio / ratio[-1], rtol=2e-5)


def test_adjusted_closes_are_bit_identical_until_the_next_dividend(recording: RecordedMarket) -> None:
    start = date(2019, 1, 1)
    before, _ = daily_bars(recording, CLOCKS[-1] - timedelta(days=7), "AAPL", start)
    after, _ = daily_bars(recording, CLOCKS[-1], "AAPL", start)
    assert after.slice(0, len(before)).equals(before)


def test_a_symbol_is_unknown_before_its_first_bar_and_known_after(recording: RecordedMarket) -> None:
    for day, status in ((10, 404), (11, 200)):  # listed on 2020-12-10
        session = Tape(recording, datetime(2020, 12, day, tzinfo=UTC)).session()
        assert session.get(f"{YAHOO}ABNB?period1=0&period2=1893456000").status_code == status
    for day, code in ((11, 10001), (12, 0)):  # launched on 2024-01-11
        session = Tape(recording, datetime(2024, 1, day, tzinfo=UTC)).session()
        listed = session.get(f"{BYBIT}instruments-info?category=linear").json()["result"]["list"]
        assert session.get(f"{BYBIT}kline?category=linear&symbol=WIFUSDT&interval=60").json()["retCode"] == code
        assert ("WIFUSDT" in [row["symbol"] for row in listed]) == (code == 0)


def test_the_funding_interval_is_computed_from_the_last_settlements_TRAP_10(recording: RecordedMarket) -> None:
    rows = Bybit(CLOCKS[-1], Tape(recording, CLOCKS[-1]).session(), NO_RETRY).instruments(
        ["BTCUSDT", "WIFUSDT", "XRPUSDT"]
    )
    minutes = dict(zip(rows["symbol"].to_pylist(), rows["funding_interval_minutes"].to_pylist(), strict=True))
    assert minutes["BTCUSDT"] == 480
    assert minutes["WIFUSDT"] in (240, 480)
    assert minutes["XRPUSDT"] is None  # no settlement recorded


@pytest.mark.parametrize("limit", ["", "&limit=1000", "&limit=5000"])
def test_klines_are_strings_newest_first_and_at_most_a_thousand(small_tape: Path, limit: str) -> None:
    session = Tape(RecordedMarket(small_tape), datetime(2024, 4, 1, tzinfo=UTC)).session()
    rows = session.get(f"{BYBIT}kline?category=linear&symbol=XUSDT&interval=60{limit}").json()["result"]["list"]
    stamps = [int(row[0]) for row in rows]
    assert len(rows) == 1000
    assert stamps == sorted(stamps, reverse=True)
    assert all(isinstance(cell, str) for row in rows for cell in row)


@pytest.mark.parametrize(
    "query",
    ["kline?symbol=XUSDT&interval=60", "kline?category=linear&symbol=XUSDT&interval=61",
     "kline?category=linear&symbol=NOPE&interval=60", "funding/history?category=linear&symbol=XUSDT&startTime=0"],
)  # fmt: skip
def test_a_bad_parameter_is_answered_with_10001(small_tape: Path, query: str) -> None:
    session = Tape(RecordedMarket(small_tape), datetime(2024, 4, 1, tzinfo=UTC)).session()
    assert session.get(BYBIT + query).json()["retCode"] == 10001


@pytest.mark.parametrize("minutes", [0, 1, 59])
def test_the_bar_that_has_not_closed_is_sent_and_dropped_by_the_client(small_tape: Path, minutes: int) -> None:
    clock = datetime(2024, 2, 1, 12, minutes, tzinfo=UTC)
    session = Tape(RecordedMarket(small_tape), clock, partial=True).session()
    sent = session.get(f"{BYBIT}kline?category=linear&symbol=XUSDT&interval=60").json()["result"]["list"]
    bars = Bybit(clock, session, NO_RETRY).klines("XUSDT", "1h", clock - timedelta(days=1), clock + timedelta(hours=1))
    newest_open_ms = int(sent[0][0])
    assert newest_open_ms == int(clock.replace(minute=0).timestamp() * 1000)
    assert bars["ts"][-1].as_py() == datetime(2024, 2, 1, 11, tzinfo=UTC)


def test_yahoos_null_bar_of_the_current_session_is_sent_and_dropped(small_tape: Path) -> None:
    clock = datetime(2024, 2, 1, 16, tzinfo=UTC)
    session = Tape(RecordedMarket(small_tape), clock, partial=True).session()
    quote = session.get(f"{YAHOO}AAA?period1=0&period2=1893456000").json()["chart"]["result"][0]["indicators"]["quote"][
        0
    ]
    bars, _ = Yahoo(clock, session, NO_RETRY).daily_bars("AAA", date(2024, 1, 1), date(2024, 4, 1))
    assert quote["close"][-1] is None
    assert bars["ts"][-1].as_py() == datetime(2024, 1, 31, 14, 30, tzinfo=UTC)


def test_prices_are_as_traded_before_a_split_and_adjusted_after_it() -> None:
    ts = np.arange("2024-01-01", "2024-01-05", dtype="datetime64[D]").astype("datetime64[us]")
    close = np.array([100.0, 98.0, 49.0, 50.0])
    bars = Bars(ts, ts, close, close, close, close, volume=np.full(4, 10.0))
    stock = Stock(bars, dividends=np.array([0.0, 2.0, 0.0, 0.0]), splits=np.array([0.0, 0.0, 2.0, 0.0]))
    before, dividends_before = adjusted_history(stock, 2)
    after, dividends_after = adjusted_history(stock, 4)
    assert before["close"].tolist() == [100.0, 98.0]
    assert before["adjclose"].tolist() == [98.0, 98.0]
    assert after["close"].tolist() == [50.0, 49.0, 49.0, 50.0]
    assert after["adjclose"].tolist() == [49.0, 49.0, 49.0, 50.0]
    assert after["volume"].tolist() == [20.0, 20.0, 10.0, 10.0]
    assert (dividends_before.tolist(), dividends_after.tolist()) == ([0.0, 2.0], [0.0, 1.0, 0.0, 0.0])
