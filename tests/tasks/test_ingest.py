"""Ingest of whole nights from small tapes: what is written, and what a second look changes."""

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

from tasks import ingest
from tasks.errors import MarketDownError, NightOutOfRangeError, OutageError, TapeMissingError, TooManyBadSymbolsError
from tasks.ingest import IngestReport, ingest_bars, ingest_universe, is_outage
from tasks.markets.recording import OHLC, Bars
from tasks.markets.simulated import Simulated
from tasks.markets.tape import as_seen
from tasks.night import Night
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.universes import Member, Universe, load_universe

START, FRIDAY, MONDAY, LAST = date(2024, 5, 1), date(2024, 5, 17), date(2024, 5, 20), date(2024, 6, 28)
STOCKS = Universe(
    name="stocks",
    provider="yahoo",
    interval="1d",
    calendar="XNYS",
    benchmark="SPY",
    history_start=datetime.combine(START, datetime.min.time(), UTC),
    commission_bps=1.0,
    slippage_bps=5.0,
    survivorship_biased=True,
    members=tuple(Member(symbol, None, None, START, None) for symbol in ("AAPL", "MSFT", "NVDA")),
)
PERPETUALS = replace(
    STOCKS,
    name="perpetuals",
    provider="bybit",
    interval="1h",
    calendar="24/7",
    benchmark="BTCUSDT",
    members=tuple(Member(symbol, None, None, START, None) for symbol in ("BTCUSDT", "SOLUSDT")),
)
OPTIONS: dict[str, Any] = {"overlap_bars": 5, "max_bad_fraction": 0.3, "threads": 4}


@pytest.fixture(scope="session")
def tape_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tape in the recorded layout, of simulated bars."""
    folder, market = tmp_path_factory.mktemp("tape"), Simulated(LAST)
    for name, table in {
        "yahoo/bars_1d": pa.concat_tables([_daily(market, symbol) for symbol in STOCKS.fetched]),
        "bybit/klines_60": pa.concat_tables([_hourly(market, symbol) for symbol in PERPETUALS.fetched]),
        "bybit/funding": pa.concat_tables([_settled(market, symbol) for symbol in PERPETUALS.fetched]),
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def _daily(market: Simulated, symbol: str) -> pa.Table:
    stock = market.stock(symbol)
    columns, _ = as_seen(stock, len(stock.bars.ts))
    columns["adj_close"] = columns.pop("adjclose")
    return pa.table({"symbol": [symbol] * len(stock.bars.ts), "date": stock.bars.ts.astype("datetime64[D]"), **columns})


def _hourly(market: Simulated, symbol: str) -> pa.Table:
    bars: Bars = market.perpetual(symbol).bars["1h"]
    ts = pa.array(bars.ts).cast(pa.timestamp("us", "UTC"))
    prices = {name: getattr(bars, name) for name in (*OHLC, "volume")}
    return pa.table({"symbol": [symbol] * len(ts), "ts": ts, **prices})


def _settled(market: Simulated, symbol: str) -> pa.Table:
    perpetual = market.perpetual(symbol)
    ts = pa.array(perpetual.funding_ts).cast(pa.timestamp("us", "UTC"))
    return pa.table({"symbol": [symbol] * len(ts), "ts": ts, "funding_rate": perpetual.funding_rate})


@pytest.fixture
def tape(tape_file: Path, tmp_path: Path) -> Path:
    """A copy of the tape that the test may spoil."""
    return Path(shutil.copytree(tape_file, tmp_path / "tape"))


def spoil(tape: Path, name: str, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Changes one file of the tape, given and taken as columns."""
    path = tape / f"{name}.parquet"
    table = pq.read_table(path)
    columns = {column: table[column].to_numpy(zero_copy_only=False).copy() for column in table.column_names}
    change(columns)
    arrays = [pa.array(columns[f.name]).cast(f.type if f.name == "ts" else table[f.name].type) for f in table.schema]
    pq.write_table(pa.table(arrays, names=table.column_names), path)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly migrated file, to copy."""
    path = tmp_path_factory.mktemp("migrated") / "w.duckdb"
    migrate(Warehouse.at(path))
    return path


@pytest.fixture
def warehouse(migrated: Path, tmp_path: Path) -> Warehouse:
    return Warehouse.at(shutil.copy(migrated, tmp_path / "w.duckdb"))


@pytest.fixture
def other(migrated: Path, tmp_path: Path) -> Warehouse:
    """A second warehouse, to compare with."""
    return Warehouse.at(shutil.copy(migrated, tmp_path / "other.duckdb"))


@pytest.fixture
def run(warehouse: Warehouse, tape: Path) -> Callable[..., IngestReport]:
    """run(night, universe=…, **options): one night from the tape into the warehouse."""

    def night(as_of: date, universe: Universe = STOCKS, **options: Any) -> IngestReport:
        into = options.pop("warehouse", warehouse)
        run_id = options.pop("run_id", f"{universe.name} {as_of}")
        options = {**OPTIONS, **options}
        return ingest_universe(into, universe, "recorded", as_of, run_id, tape, **options)

    return night


def rows(warehouse: Warehouse, table: str) -> list[dict[str, Any]]:
    with warehouse.read() as con:
        return con.execute(f"SELECT * FROM raw.{table} ORDER BY ALL").to_arrow_table().to_pylist()


def everything(warehouse: Warehouse) -> dict[str, list[dict[str, Any]]]:
    names = ("bars", "corporate_actions", "funding_rates", "instruments", "fetches")
    return {name: rows(warehouse, name) for name in names}


def test_the_first_night_writes_every_closed_bar_with_its_stamps(run, warehouse) -> None:
    report = run(FRIDAY)
    assert (report.fetched, report.failed, report.bars, report.restated) == (4, {}, 4 * 13, 0)
    bars = rows(warehouse, "bars")
    assert {bar["symbol"] for bar in bars} == {"AAPL", "MSFT", "NVDA", "SPY"}
    assert max(bar["ts"] for bar in bars) == datetime(2024, 5, 17, 13, 30, tzinfo=UTC)
    assert {(b["source"], b["universe"], b["provider"], b["run_id"], b["fetched_at"]) for b in bars} == {
        ("recorded", "stocks", "yahoo", f"stocks {FRIDAY}", datetime(2024, 5, 18, tzinfo=UTC))
    }


def test_perpetuals_come_with_funding_and_instruments_once(run, warehouse) -> None:
    report = run(FRIDAY, PERPETUALS)
    assert report.bars == 2 * 17 * 24
    settled = {row["symbol"]: row for row in rows(warehouse, "funding_rates")}
    last = datetime(2024, 5, 18, tzinfo=UTC)
    assert all(row["ts"] == last for row in settled.values())
    assert [row["funding_interval_minutes"] for row in rows(warehouse, "instruments")] == [480, 240]
    run(MONDAY, PERPETUALS)
    assert len(rows(warehouse, "instruments")) == 2
    assert len(rows(warehouse, "funding_rates")) == (3 + 6) * (17 + 3 + 2) + 2


@pytest.mark.parametrize("universe", [STOCKS, PERPETUALS], ids=lambda u: u.name)
def test_the_same_night_again_changes_no_row(run, warehouse, universe: Universe) -> None:
    first = run(FRIDAY, universe)
    before = everything(warehouse)
    assert run(FRIDAY, universe) == first
    assert everything(warehouse) == before


def test_a_night_that_has_its_data_goes_on_without_its_market(run, tape) -> None:
    first = run(FRIDAY)
    shutil.rmtree(tape)
    assert run(FRIDAY) == first


@pytest.mark.parametrize(("universe", "new"), [(STOCKS, 4), (PERPETUALS, 2 * 72)], ids=["stocks", "perpetuals"])
def test_the_next_night_adds_only_what_is_new(run, warehouse, universe: Universe, new: int) -> None:
    run(FRIDAY, universe)
    report = run(MONDAY, universe)
    assert (report.bars, report.restated) == (new, 0)
    keys = [(bar["symbol"], bar["ts"]) for bar in rows(warehouse, "bars")]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("universe", [STOCKS, PERPETUALS], ids=lambda u: u.name)
def test_night_by_night_ends_as_one_night_does(run, warehouse, other, universe: Universe) -> None:
    for day in (17, 18, 21):
        run(date(2024, 5, day), universe)
    run(date(2024, 5, 21), universe, warehouse=other)
    for table in ("bars", "corporate_actions", "funding_rates"):
        assert values(latest(warehouse, table)) == values(latest(other, table)), table


def test_recorded_events_come_with_the_bars_made_of_them_up_to_the_clock_and_each_once(
    shared_data: Path, warehouse: Warehouse, other: Warehouse
) -> None:
    universe, as_of = load_universe(warehouse, "binance_seconds"), date(2024, 8, 8)
    midnight, early = datetime(2024, 8, 9, tzinfo=UTC), datetime(2024, 8, 8, 23, 57, tzinfo=UTC)

    def night(into: Warehouse, clock: datetime) -> IngestReport:
        asked = (into, universe, "recorded", as_of, "seconds", shared_data / "events")
        return ingest_universe(*asked, **OPTIONS, clock=clock)

    def events(of: Warehouse, columns: str) -> list[tuple]:
        with of.read() as con:
            return con.execute(f"SELECT {columns} FROM events ORDER BY ALL").fetchall()

    assert (report := night(warehouse, early)).fetched == 6 and report.failed == {}
    bars = rows(warehouse, "bars")
    assert len(bars) == report.bars == 2057 - 6 * 180
    assert max(bar["ts"] for bar in bars) == early - timedelta(seconds=1)
    stamps = events(warehouse, "DISTINCT fetched_at, run_id, source, venue")
    assert stamps == [(early, "seconds", "recorded", "binance")]
    assert all(known for (known,) in events(warehouse, "ts <= fetched_at"))
    assert night(warehouse, midnight).restated == 0
    night(other, midnight)
    key = "kind, symbol, ts, event_id, price, bid"
    assert len(events(other, key)) > 70_000 and events(warehouse, key) == events(other, key)
    assert values(latest(warehouse, "bars")) == values(latest(other, "bars"))


def latest(warehouse: Warehouse, table: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The newest version of each row by its key."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows(warehouse, table), key=lambda row: row["fetched_at"]):
        newest[row["symbol"], row["ts"], row.get("kind")] = row
    return newest


def values(newest: dict[tuple[Any, ...], dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {k: {c: v for c, v in row.items() if c not in ("fetched_at", "run_id")} for k, row in newest.items()}


def restate(symbol: str, day: str, close: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(columns: dict[str, np.ndarray]) -> None:
        row = (columns["symbol"] == symbol) & (columns["date"] == np.datetime64(day))
        columns["adj_close"][row] *= close / columns["close"][row]
        columns["close"][row] = close

    return change


def test_a_restated_bar_becomes_a_second_version_and_its_history_is_pulled_again(run, warehouse, tape) -> None:
    run(FRIDAY)
    spoil(tape, "yahoo/bars_1d", restate("AAPL", "2024-05-14", 1.5))  # in the overlap
    spoil(tape, "yahoo/bars_1d", restate("AAPL", "2024-05-02", 2.5))  # long before it
    report = run(MONDAY)
    assert (report.bars, report.restated) == (4 + 2, 2)
    for day, close in ((14, 1.5), (2, 2.5)):
        ts = datetime(2024, 5, day, 13, 30, tzinfo=UTC)
        versions = [bar for bar in rows(warehouse, "bars") if (bar["symbol"], bar["ts"]) == ("AAPL", ts)]
        assert [bar["run_id"] for bar in versions if bar["close"] == close] == [f"stocks {MONDAY}"]
        assert len(versions) == 2
    pulled = {row["symbol"]: row["first_ts"].date() for row in rows(warehouse, "fetches") if row["night"] == MONDAY}
    assert pulled == {"AAPL": START, **dict.fromkeys(("MSFT", "NVDA", "SPY"), date(2024, 5, 10))}


def test_a_restated_last_bar_alone_is_versioned_without_a_full_pull(run, warehouse, tape) -> None:
    run(FRIDAY)
    spoil(tape, "yahoo/bars_1d", restate("AAPL", "2024-05-17", 1.5))
    spoil(tape, "yahoo/bars_1d", restate("AAPL", "2024-05-02", 2.5))
    report = run(MONDAY)
    assert (report.bars, report.restated) == (4 + 1, 1)


def test_a_change_below_a_billionth_is_no_restatement(run, tape) -> None:
    run(FRIDAY)

    def noise(columns: dict[str, np.ndarray]) -> None:
        columns["open"] *= 1 + 1e-12

    spoil(tape, "yahoo/bars_1d", noise)
    assert run(MONDAY).restated == 0


def test_a_dividend_is_written_and_restates_no_bar(run, warehouse, tape) -> None:
    run(FRIDAY)

    def pay(columns: dict[str, np.ndarray]) -> None:
        before = (columns["symbol"] == "AAPL") & (columns["date"] < np.datetime64(MONDAY))
        columns["adj_close"][before] *= 0.99

    spoil(tape, "yahoo/bars_1d", pay)
    report = run(MONDAY)
    assert (report.bars, report.restated) == (4, 0)
    actions = [(a["symbol"], a["kind"], a["ts"].date()) for a in rows(warehouse, "corporate_actions")]
    assert ("AAPL", "dividend", MONDAY) in actions


@pytest.mark.parametrize("overlap_bars", [0, 5])
def test_a_split_leaves_one_vintage_of_prices(warehouse, overlap_bars: int) -> None:
    options = {**OPTIONS, "overlap_bars": overlap_bars}

    def simulated(night: date) -> IngestReport:
        return ingest_universe(warehouse, STOCKS, "simulated", night, str(night), None, **options)

    simulated(date(2024, 6, 7))
    before = {key: row["close"] for key, row in latest(warehouse, "bars").items() if key[0] == "NVDA"}
    simulated(date(2024, 6, 10))  # ten for one
    after = {key: row["close"] for key, row in latest(warehouse, "bars").items() if key[0] == "NVDA"}
    assert [row["value"] for row in rows(warehouse, "corporate_actions") if row["kind"] == "split"] == [10.0]
    assert all(after[key] == pytest.approx(close / 10) for key, close in before.items())


def test_an_earlier_night_after_a_later_one_sees_only_its_own_past(run, warehouse, other) -> None:
    run(MONDAY)
    run(FRIDAY)
    run(FRIDAY, warehouse=other)
    of_friday = [row for row in rows(warehouse, "bars") if row["run_id"] == f"stocks {FRIDAY}"]
    assert of_friday == rows(other, "bars")


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize(("after", "threads"), [(1, 1), (2, 4), (3, 4)])
def test_a_killed_night_goes_on_where_it_stopped_and_ends_the_same(
    run, warehouse, other, monkeypatch, after: int, threads: int
) -> None:
    run(FRIDAY, warehouse=other)
    monkeypatch.setattr(ingest, "BATCH_SYMBOLS", 1)

    def die(done: int, _total: int, _symbol: str) -> None:
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        run(FRIDAY, on_progress=die, threads=threads)
    assert len(rows(warehouse, "fetches")) == after
    asked: list[str] = []
    run(FRIDAY, on_progress=lambda _done, _total, symbol: asked.append(symbol), threads=threads)
    assert len(asked) == 4 - after
    assert everything(warehouse) == everything(other)


def test_a_ledger_row_never_comes_without_its_bars(run, warehouse, monkeypatch) -> None:
    written = ingest.upsert

    def fail(*arguments: Any, **options: Any) -> int:
        written(*arguments, **options)
        raise Killed

    monkeypatch.setattr(ingest, "upsert", fail)
    with pytest.raises(Killed):
        run(FRIDAY)
    assert all(table == [] for table in everything(warehouse).values())


def with_member(universe: Universe, *symbols: str, since: date = START, until: date | None = None) -> Universe:
    added = tuple(Member(symbol, None, None, since, until) for symbol in symbols)
    return replace(universe, members=universe.members + added)


@pytest.mark.parametrize(("universe", "good"), [(STOCKS, 4), (PERPETUALS, 2)], ids=["stocks", "perpetuals"])
def test_an_unknown_symbol_is_recorded_and_skipped(run, warehouse, universe: Universe, good: int) -> None:
    report = run(FRIDAY, with_member(universe, "NOPE"), max_bad_fraction=0.4)
    assert report.fetched == good
    assert list(report.failed) == ["NOPE"]
    assert report.failed["NOPE"].startswith("UnknownSymbolError")
    ledger = {row["symbol"]: (row["status"], row["bars"]) for row in rows(warehouse, "fetches")}
    assert ledger["NOPE"] == ("failed", 0)


def test_a_failed_symbol_is_asked_again_and_its_ledger_row_replaced(run, warehouse) -> None:
    universe = with_member(STOCKS, "NOPE")
    assert run(FRIDAY, universe) == run(FRIDAY, universe)
    assert len(rows(warehouse, "fetches")) == 5


def test_too_many_bad_symbols_stop_the_night(run, warehouse) -> None:
    with pytest.raises(TooManyBadSymbolsError, match=r"2 of 6 symbols.*30%.*NO"):
        run(FRIDAY, with_member(STOCKS, "NOPE", "NOWAY"), threads=1)


def test_a_member_is_not_asked_for_before_it_joined_nor_after_it_left(run, warehouse) -> None:
    later = with_member(STOCKS, "ABNB", since=MONDAY)  # not on this tape: asking would fail
    assert run(FRIDAY, later).failed == {}
    left = replace(STOCKS, members=(*STOCKS.members[1:], Member("AAPL", None, None, START, date(2024, 5, 10))))
    run(MONDAY, left, run_id="left")
    bars = [bar["ts"].date() for bar in rows(warehouse, "bars") if bar["symbol"] == "AAPL"]
    assert max(bars) == FRIDAY
    assert "AAPL" not in [row["symbol"] for row in rows(warehouse, "fetches") if row["run_id"] == "left"]


def test_a_member_that_had_left_before_the_first_night_is_pulled_to_its_end(run, warehouse) -> None:
    left = replace(STOCKS, members=(*STOCKS.members[1:], Member("AAPL", None, None, START, date(2024, 5, 10))))
    run(FRIDAY, left)
    assert max(bar["ts"].date() for bar in rows(warehouse, "bars") if bar["symbol"] == "AAPL") == date(2024, 5, 9)


def test_a_night_before_the_universe_begins_is_refused(run, warehouse) -> None:
    with pytest.raises(NightOutOfRangeError, match="begins on 2024-05-01"):
        run(START - timedelta(days=1))


def test_a_missing_tape_is_refused_before_anything_is_written(run, warehouse, tape) -> None:
    shutil.rmtree(tape)
    with pytest.raises(TapeMissingError, match=str(tape)):
        run(FRIDAY)
    assert all(table == [] for table in everything(warehouse).values())


def test_without_overlap_the_next_night_still_joins_up(run, warehouse) -> None:
    run(FRIDAY, PERPETUALS, overlap_bars=0)
    assert run(MONDAY, PERPETUALS, overlap_bars=0).bars == 2 * 72


def test_progress_counts_every_symbol(run) -> None:
    seen: list[tuple[int, int]] = []
    run(FRIDAY, on_progress=lambda done, total, _symbol: seen.append((done, total)))
    assert seen == [(k, 4) for k in range(1, 5)]


def test_the_task_runs_a_night_and_is_tried_again_for_outages_only(warehouse, tape) -> None:
    night = Night(FRIDAY, "recorded", STOCKS, warehouse, datetime(2024, 5, 18, tzinfo=UTC), tape)
    assert ingest_bars.fn(night, **OPTIONS).bars == 4 * 13
    assert {row["run_id"] for row in rows(warehouse, "bars")} == {night.run_id}
    verdicts = [is_outage(None, None, Failed(data=error("x"))) for error in (OutageError, MarketDownError, ValueError)]
    assert verdicts == [True, True, False]
