"""Ingest of whole nights from small tapes: the rows written, restatements, failures, and repeated nights.

A night is the run for one as-of date; a tape is a folder of recorded market data. FRIDAY is the 13th session of May.
Ids: .github/sources.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.states import Failed

from models.sessions import midnight_after
from tasks import ingest
from tasks.errors import MarketDownError, NightOutOfRangeError, OutageError, TapeMissingError, TooManyBadSymbolsError
from tasks.ingest import IngestReport, PullOptions, ingest_bars, ingest_universe, is_outage
from tasks.markets.bybit import FUNDING_OVERLAP
from tasks.markets.recording import OHLC, Bars
from tasks.markets.simulated import SimulatedMarket
from tasks.markets.tape import adjusted_history
from tasks.night import Night
from tests.universes import make_perpetuals, make_stocks
from warehouse.connect import Warehouse
from warehouse.universes import Member, Universe, load_universe

START = date(2024, 5, 1)
FRIDAY = date(2024, 5, 17)
MONDAY = date(2024, 5, 20)
LAST = date(2024, 6, 28)
N_SESSIONS = 13  # of the exchange from START to FRIDAY
N_DAYS = 17  # from START to FRIDAY
STOCKS = make_stocks(("AAPL", "MSFT", "NVDA"), "SPY", START)
PERPETUALS = make_perpetuals(("BTCUSDT", "SOLUSDT"), START)
IngestNight = Callable[..., IngestReport]
OPTIONS: dict[str, Any] = {"overlap_bars": 5, "max_bad_fraction": 0.3, "threads": 4}


@pytest.fixture(scope="session")
def tape_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tape in the recorded layout, made of simulated bars up to LAST."""
    folder = tmp_path_factory.mktemp("tape")
    market = SimulatedMarket(LAST)
    for name, table in {
        "yahoo/bars_1d": pa.concat_tables([daily_bars(market, symbol) for symbol in STOCKS.symbols_to_fetch]),
        "bybit/klines_60": pa.concat_tables([hourly_bars(market, symbol) for symbol in PERPETUALS.symbols_to_fetch]),
        "bybit/funding": pa.concat_tables([settlements(market, symbol) for symbol in PERPETUALS.symbols_to_fetch]),
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def daily_bars(market: SimulatedMarket, symbol: str) -> pa.Table:
    """The symbol's rows of the tape's file yahoo/bars_1d."""
    stock = market.stock(symbol)
    columns, _ = adjusted_history(stock, len(stock.bars.ts))
    columns["adj_close"] = columns.pop("adjclose")
    return pa.table({"symbol": [symbol] * len(stock.bars.ts), "date": stock.bars.ts.astype("datetime64[D]"), **columns})


def hourly_bars(market: SimulatedMarket, symbol: str) -> pa.Table:
    """The symbol's rows of the tape's file bybit/klines_60."""
    bars: Bars = market.perpetual(symbol).bars["1h"]
    ts = pa.array(bars.ts).cast(pa.timestamp("us", "UTC"))
    prices = {name: getattr(bars, name) for name in (*OHLC, "volume")}
    return pa.table({"symbol": [symbol] * len(ts), "ts": ts, **prices})


def settlements(market: SimulatedMarket, symbol: str) -> pa.Table:
    """The symbol's rows of the tape's file bybit/funding."""
    perpetual = market.perpetual(symbol)
    ts = pa.array(perpetual.funding_ts).cast(pa.timestamp("us", "UTC"))
    return pa.table({"symbol": [symbol] * len(ts), "ts": ts, "funding_rate": perpetual.funding_rate})


@pytest.fixture
def tape(tape_file: Path, tmp_path: Path) -> Path:
    """A copy of the tape that a test may edit."""
    return Path(shutil.copytree(tape_file, tmp_path / "tape"))


def edit_tape(tape: Path, name: str, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Applies ``change`` to the columns of one file of the tape."""
    path = tape / f"{name}.parquet"
    table = pq.read_table(path)
    columns = {column: table[column].to_numpy(zero_copy_only=False).copy() for column in table.column_names}
    change(columns)
    arrays = [pa.array(columns[f.name]).cast(f.type if f.name == "ts" else table[f.name].type) for f in table.schema]
    pq.write_table(pa.table(arrays, names=table.column_names), path)


@pytest.fixture
def second_warehouse(migrated_file: Path, tmp_path: Path) -> Warehouse:
    """A second empty warehouse, to compare with."""
    return Warehouse.from_url(shutil.copy(migrated_file, tmp_path / "second.duckdb"))


def make_night(warehouse: Warehouse, as_of: date, universe: Universe = STOCKS, tape: Path | None = None) -> Night:
    """The night with its clock at midnight: recorded on ``tape``, simulated without one."""
    source = "simulated" if tape is None else "recorded"
    return Night(as_of, source, universe, warehouse, midnight_after(as_of), tape)


@pytest.fixture
def ingest_night(warehouse: Warehouse, tape: Path) -> Callable[..., IngestReport]:
    """ingest_night(as_of, universe, warehouse=…, on_progress=…, **options): ingests a night from the tape."""

    def run(
        as_of: date,
        universe: Universe = STOCKS,
        warehouse: Warehouse = warehouse,
        on_progress: ingest.Progress | None = None,
        **options: Any,
    ) -> IngestReport:
        return ingest_universe(
            make_night(warehouse, as_of, universe, tape), PullOptions(**OPTIONS | options), on_progress
        )

    return run


def rows(warehouse: Warehouse, table: str) -> list[dict[str, Any]]:
    """All rows of a raw table, ordered by all columns."""
    with warehouse.read() as con:
        return con.execute(f"SELECT * FROM raw.{table} ORDER BY ALL").to_arrow_table().to_pylist()


def raw_tables(warehouse: Warehouse) -> dict[str, list[dict[str, Any]]]:
    """All rows of every raw table."""
    names = ("bars", "corporate_actions", "funding_rates", "instruments", "fetches")
    return {name: rows(warehouse, name) for name in names}


def test_the_first_night_writes_every_closed_bar_with_run_and_clock(
    ingest_night: IngestNight, warehouse: Warehouse
) -> None:
    """HYB-20: a few stocks."""
    report = ingest_night(FRIDAY)
    assert (report.fetched, report.failed, report.bars, report.restated) == (4, {}, 4 * N_SESSIONS, 0)
    bars = rows(warehouse, "bars")
    assert {bar["symbol"] for bar in bars} == {"AAPL", "MSFT", "NVDA", "SPY"}
    assert max(bar["ts"] for bar in bars) == datetime(2024, 5, 17, 13, 30, tzinfo=UTC)
    assert {(b["source"], b["universe"], b["provider"], b["run_id"], b["fetched_at"]) for b in bars} == {
        (
            "recorded",
            "stocks",
            "yahoo",
            make_night(warehouse, FRIDAY, tape=tape).run_id,
            datetime(2024, 5, 18, tzinfo=UTC),
        )
    }


def test_perpetuals_are_ingested_with_funding_and_unchanged_instruments_only_once(
    ingest_night: IngestNight, warehouse: Warehouse
) -> None:
    """HYB-23: a few perpetuals."""
    report = ingest_night(FRIDAY, PERPETUALS)
    assert report.bars == 2 * N_DAYS * 24
    latest_settlement = {row["symbol"]: row["ts"] for row in rows(warehouse, "funding_rates")}
    assert latest_settlement == dict.fromkeys(PERPETUALS.symbols, datetime(2024, 5, 18, tzinfo=UTC))
    assert [row["funding_interval_minutes"] for row in rows(warehouse, "instruments")] == [480, 240]
    ingest_night(MONDAY, PERPETUALS)
    assert len(rows(warehouse, "instruments")) == 2
    settlements_per_day = 3 + 6  # every 8 hours of BTCUSDT, every 4 hours of SOLUSDT
    n_days = FUNDING_OVERLAP.days + N_DAYS + 3  # from before START to the end of MONDAY
    n_final = 2  # the settlement at the closing midnight, of each symbol
    assert len(rows(warehouse, "funding_rates")) == settlements_per_day * n_days + n_final


@pytest.mark.parametrize("universe", [STOCKS, PERPETUALS], ids=lambda u: u.name)
def test_ingesting_a_night_twice_changes_no_row(
    ingest_night: IngestNight, warehouse: Warehouse, universe: Universe
) -> None:
    first = ingest_night(FRIDAY, universe)
    before = raw_tables(warehouse)
    assert ingest_night(FRIDAY, universe) == first
    assert raw_tables(warehouse) == before


def test_a_night_with_all_its_data_does_not_open_its_market(ingest_night: IngestNight, tape: Path) -> None:
    first = ingest_night(FRIDAY)
    shutil.rmtree(tape)
    assert ingest_night(FRIDAY) == first


@pytest.mark.parametrize(("universe", "n_new"), [(STOCKS, 4), (PERPETUALS, 2 * 72)], ids=["stocks", "perpetuals"])
def test_the_next_night_adds_only_new_bars(
    ingest_night: IngestNight, warehouse: Warehouse, universe: Universe, n_new: int
) -> None:
    ingest_night(FRIDAY, universe)
    report = ingest_night(MONDAY, universe)
    assert (report.bars, report.restated) == (n_new, 0)
    keys = [(bar["symbol"], bar["ts"]) for bar in rows(warehouse, "bars")]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("universe", [STOCKS, PERPETUALS], ids=lambda u: u.name)
def test_several_nights_end_with_the_rows_of_one_night(
    ingest_night: IngestNight, warehouse: Warehouse, second_warehouse: Warehouse, universe: Universe
) -> None:
    for day in (17, 18, 21):
        ingest_night(date(2024, 5, day), universe)
    ingest_night(date(2024, 5, 21), universe, warehouse=second_warehouse)
    for table in ("bars", "corporate_actions", "funding_rates"):
        assert without_stamps(newest_versions(warehouse, table)) == without_stamps(
            newest_versions(second_warehouse, table)
        ), table


def test_recorded_events_and_their_bars_are_ingested_up_to_the_clock_each_once(
    shared_data: Path, warehouse: Warehouse, second_warehouse: Warehouse
) -> None:
    universe = load_universe(warehouse, "binance_seconds")
    midnight = datetime(2024, 8, 9, tzinfo=UTC)
    early_clock = datetime(2024, 8, 8, 23, 57, tzinfo=UTC)

    def ingest_seconds(into: Warehouse, clock: datetime) -> IngestReport:
        return ingest_universe(
            Night(date(2024, 8, 8), "recorded", universe, into, clock, shared_data / "events"), PullOptions(**OPTIONS)
        )

    def read_events(stored_in: Warehouse, columns: str) -> list[tuple]:
        with stored_in.read() as con:
            return con.execute(f"SELECT {columns} FROM events ORDER BY ALL").fetchall()

    report = ingest_seconds(warehouse, early_clock)
    assert report.fetched == 6 and report.failed == {}
    bars = rows(warehouse, "bars")
    # up to midnight the tape has 2,057 bars of 6 symbols; each symbol has one in each of the last 180 seconds
    assert len(bars) == report.bars == 2057 - 6 * 180
    assert max(bar["ts"] for bar in bars) == early_clock - timedelta(seconds=1)
    stamps = read_events(warehouse, "DISTINCT fetched_at, run_id, source, venue")
    run_id = Night(date(2024, 8, 8), "recorded", universe, warehouse, early_clock).run_id
    assert stamps == [(early_clock, run_id, "recorded", "binance")]
    assert all(is_past for (is_past,) in read_events(warehouse, "ts <= fetched_at"))
    assert ingest_seconds(warehouse, midnight).restated == 0
    ingest_seconds(second_warehouse, midnight)
    columns = "kind, symbol, ts, event_id, price, bid"
    expected = read_events(second_warehouse, columns)
    assert len(expected) > 70_000  # a bound below the tape's number of events, so that the comparison is not vacuous
    assert read_events(warehouse, columns) == expected
    assert without_stamps(newest_versions(warehouse, "bars")) == without_stamps(
        newest_versions(second_warehouse, "bars")
    )


def newest_versions(warehouse: Warehouse, table: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """By key (symbol, ts, kind), the newest version of each row; kind is None in tables without this column."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows(warehouse, table), key=lambda row: row["fetched_at"]):
        newest[row["symbol"], row["ts"], row.get("kind")] = row
    return newest


def without_stamps(newest: dict[tuple[Any, ...], dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows by key, without their columns run_id and fetched_at."""
    return {
        key: {name: value for name, value in row.items() if name not in ("fetched_at", "run_id")}
        for key, row in newest.items()
    }


def restate(symbol: str, day: str, close: float) -> Callable[[dict[str, np.ndarray]], None]:
    """A change for ``edit_tape``: sets the close of one bar, and scales its adjusted close alike."""

    def change(columns: dict[str, np.ndarray]) -> None:
        is_bar = (columns["symbol"] == symbol) & (columns["date"] == np.datetime64(day))
        columns["adj_close"][is_bar] *= close / columns["close"][is_bar]
        columns["close"][is_bar] = close

    return change


def test_a_restated_bar_is_stored_as_a_second_version_and_its_history_is_pulled_again(
    ingest_night: IngestNight, warehouse: Warehouse, tape: Path
) -> None:
    ingest_night(FRIDAY)
    # one of the OPTIONS["overlap_bars"] bars before the watermark
    edit_tape(tape, "yahoo/bars_1d", restate("AAPL", "2024-05-14", 1.5))
    edit_tape(tape, "yahoo/bars_1d", restate("AAPL", "2024-05-02", 2.5))  # before the overlap
    report = ingest_night(MONDAY)
    assert (report.bars, report.restated) == (4 + 2, 2)
    monday_run_id = make_night(warehouse, MONDAY, tape=tape).run_id
    for day, close in ((14, 1.5), (2, 2.5)):
        ts = datetime(2024, 5, day, 13, 30, tzinfo=UTC)
        versions = [bar for bar in rows(warehouse, "bars") if (bar["symbol"], bar["ts"]) == ("AAPL", ts)]
        assert [bar["run_id"] for bar in versions if bar["close"] == close] == [monday_run_id]
        assert len(versions) == 2
    first_day = {row["symbol"]: row["first_ts"].date() for row in rows(warehouse, "fetches") if row["night"] == MONDAY}
    assert first_day == {"AAPL": START, **dict.fromkeys(("MSFT", "NVDA", "SPY"), date(2024, 5, 10))}


def test_a_restatement_of_the_last_stored_bar_alone_pulls_no_history(
    ingest_night: IngestNight, warehouse: Warehouse, tape: Path
) -> None:
    ingest_night(FRIDAY)
    edit_tape(tape, "yahoo/bars_1d", restate("AAPL", "2024-05-17", 1.5))
    edit_tape(tape, "yahoo/bars_1d", restate("AAPL", "2024-05-02", 2.5))
    report = ingest_night(MONDAY)
    assert (report.bars, report.restated) == (4 + 1, 1)


def test_a_relative_change_below_a_billionth_is_no_restatement(ingest_night: IngestNight, tape: Path) -> None:
    ingest_night(FRIDAY)

    def add_noise(columns: dict[str, np.ndarray]) -> None:
        columns["open"] *= 1 + 1e-12

    edit_tape(tape, "yahoo/bars_1d", add_noise)
    assert ingest_night(MONDAY).restated == 0


def test_a_new_dividend_restates_no_bar(ingest_night: IngestNight, warehouse: Warehouse, tape: Path) -> None:
    ingest_night(FRIDAY)

    def pay_dividend(columns: dict[str, np.ndarray]) -> None:
        is_before_ex_date = (columns["symbol"] == "AAPL") & (columns["date"] < np.datetime64(MONDAY))
        columns["adj_close"][is_before_ex_date] *= 0.99

    edit_tape(tape, "yahoo/bars_1d", pay_dividend)
    report = ingest_night(MONDAY)
    assert (report.bars, report.restated) == (4, 0)
    actions = [(a["symbol"], a["kind"], a["ts"].date()) for a in rows(warehouse, "corporate_actions")]
    assert ("AAPL", "dividend", MONDAY) in actions


@pytest.mark.parametrize("overlap_bars", [0, 5])
def test_after_a_split_all_prices_are_adjusted_to_it(warehouse: Warehouse, overlap_bars: int) -> None:
    options = PullOptions(**OPTIONS | {"overlap_bars": overlap_bars})
    ingest_universe(make_night(warehouse, date(2024, 6, 7)), options)
    before = {key: row["close"] for key, row in newest_versions(warehouse, "bars").items() if key[0] == "NVDA"}
    ingest_universe(make_night(warehouse, date(2024, 6, 10)), options)  # the split is ten for one
    after = {key: row["close"] for key, row in newest_versions(warehouse, "bars").items() if key[0] == "NVDA"}
    assert [row["value"] for row in rows(warehouse, "corporate_actions") if row["kind"] == "split"] == [10.0]
    assert all(after[key] == pytest.approx(close / 10) for key, close in before.items())


def test_an_earlier_night_run_after_a_later_one_reads_only_its_own_past(
    ingest_night: IngestNight, warehouse: Warehouse, second_warehouse: Warehouse
) -> None:
    ingest_night(MONDAY)
    ingest_night(FRIDAY)
    ingest_night(FRIDAY, warehouse=second_warehouse)
    expected = rows(second_warehouse, "bars")
    assert [row for row in rows(warehouse, "bars") if row["run_id"] == expected[0]["run_id"]] == expected


class Killed(BaseException):
    """Stands for a kill of the process."""


@pytest.mark.parametrize(("n_done", "threads"), [(1, 1), (2, 4), (3, 4)])
def test_after_a_kill_a_second_run_pulls_only_the_remaining_symbols_and_ends_with_equal_rows(
    ingest_night: IngestNight,
    warehouse: Warehouse,
    second_warehouse: Warehouse,
    monkeypatch: pytest.MonkeyPatch,
    n_done: int,
    threads: int,
) -> None:
    ingest_night(FRIDAY, warehouse=second_warehouse)
    monkeypatch.setattr(ingest, "MAX_BATCH_SYMBOLS", 1)  # each symbol is written on its own, so the kill loses none

    def kill(done: int, _total: int, _symbol: str) -> None:
        if done == n_done:
            raise Killed

    with pytest.raises(Killed):
        ingest_night(FRIDAY, on_progress=kill, threads=threads)
    assert len(rows(warehouse, "fetches")) == n_done
    pulled: list[str] = []
    ingest_night(FRIDAY, on_progress=lambda _done, _total, symbol: pulled.append(symbol), threads=threads)
    assert len(pulled) == 4 - n_done
    assert raw_tables(warehouse) == raw_tables(second_warehouse)


def test_a_kill_during_the_write_of_a_batch_leaves_no_row(
    ingest_night: IngestNight, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsert = ingest.upsert

    def upsert_then_kill(*arguments: Any, **options: Any) -> int:
        upsert(*arguments, **options)
        raise Killed

    monkeypatch.setattr(ingest, "upsert", upsert_then_kill)
    with pytest.raises(Killed):
        ingest_night(FRIDAY)
    assert all(table == [] for table in raw_tables(warehouse).values())


def with_member(universe: Universe, *symbols: str, since: date = START, until: date | None = None) -> Universe:
    """The universe with further members."""
    new_members = tuple(Member(symbol, None, None, since, until) for symbol in symbols)
    return replace(universe, members=universe.members + new_members)


def with_apple_until_may_10() -> Universe:
    """STOCKS, where AAPL leaves on 10 May."""
    return replace(STOCKS, members=(*STOCKS.members[1:], Member("AAPL", None, None, START, date(2024, 5, 10))))


@pytest.mark.parametrize(("universe", "n_fetched"), [(STOCKS, 4), (PERPETUALS, 2)], ids=["stocks", "perpetuals"])
def test_an_unknown_symbol_is_recorded_as_failed_and_the_others_are_fetched(
    ingest_night: IngestNight, warehouse: Warehouse, universe: Universe, n_fetched: int
) -> None:
    report = ingest_night(FRIDAY, with_member(universe, "NOPE"), max_bad_fraction=0.4)
    assert report.fetched == n_fetched
    assert list(report.failed) == ["NOPE"]
    assert report.failed["NOPE"].startswith("UnknownSymbolError")
    statuses = {row["symbol"]: (row["status"], row["bars"]) for row in rows(warehouse, "fetches")}
    assert statuses["NOPE"] == ("failed", 0)


def test_a_failed_symbol_is_pulled_again_and_its_status_replaced(
    ingest_night: IngestNight, warehouse: Warehouse
) -> None:
    universe = with_member(STOCKS, "NOPE")
    assert ingest_night(FRIDAY, universe) == ingest_night(FRIDAY, universe)
    assert len(rows(warehouse, "fetches")) == 5


def test_too_many_bad_symbols_stop_the_night(ingest_night: IngestNight, warehouse: Warehouse) -> None:
    with pytest.raises(TooManyBadSymbolsError, match=r"2 of 6 symbols.*30%.*NO"):
        ingest_night(FRIDAY, with_member(STOCKS, "NOPE", "NOWAY"), threads=1)


def test_a_member_is_pulled_neither_before_it_joined_nor_after_it_left(
    ingest_night: IngestNight, warehouse: Warehouse
) -> None:
    universe = with_member(STOCKS, "ABNB", since=MONDAY)  # the tape has no ABNB: a pull would fail
    assert ingest_night(FRIDAY, universe).failed == {}
    ingest_night(MONDAY, with_apple_until_may_10())
    bar_dates = [bar["ts"].date() for bar in rows(warehouse, "bars") if bar["symbol"] == "AAPL"]
    assert max(bar_dates) == FRIDAY
    assert "AAPL" not in [row["symbol"] for row in rows(warehouse, "fetches") if row["night"] == MONDAY]


def test_a_member_that_left_before_the_first_night_is_pulled_up_to_its_last_day(
    ingest_night: IngestNight, warehouse: Warehouse
) -> None:
    ingest_night(FRIDAY, with_apple_until_may_10())
    assert max(bar["ts"].date() for bar in rows(warehouse, "bars") if bar["symbol"] == "AAPL") == date(2024, 5, 9)


def test_a_night_before_the_universe_begins_is_refused(ingest_night: IngestNight, warehouse: Warehouse) -> None:
    with pytest.raises(NightOutOfRangeError, match="begins on 2024-05-01"):
        ingest_night(START - timedelta(days=1))


def test_a_missing_tape_raises_before_anything_is_written(
    ingest_night: IngestNight, warehouse: Warehouse, tape: Path
) -> None:
    shutil.rmtree(tape)
    with pytest.raises(TapeMissingError, match=str(tape)):
        ingest_night(FRIDAY)
    assert all(table == [] for table in raw_tables(warehouse).values())


def test_without_overlap_the_next_night_leaves_no_gap(ingest_night: IngestNight, warehouse: Warehouse) -> None:
    ingest_night(FRIDAY, PERPETUALS, overlap_bars=0)
    assert ingest_night(MONDAY, PERPETUALS, overlap_bars=0).bars == 2 * 72


def test_progress_is_reported_after_every_symbol(ingest_night: IngestNight) -> None:
    calls: list[tuple[int, int]] = []
    ingest_night(FRIDAY, on_progress=lambda done, total, _symbol: calls.append((done, total)))
    assert calls == [(k, 4) for k in range(1, 5)]


def test_the_task_ingests_a_night_and_is_retried_only_after_outages(warehouse: Warehouse, tape: Path) -> None:
    night = make_night(warehouse, FRIDAY, tape=tape)
    assert ingest_bars.fn(night, **OPTIONS).bars == 4 * N_SESSIONS
    assert {row["run_id"] for row in rows(warehouse, "bars")} == {night.run_id}
    verdicts = [is_outage(None, None, Failed(data=error("x"))) for error in (OutageError, MarketDownError, ValueError)]
    assert verdicts == [True, True, False]
