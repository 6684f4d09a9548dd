"""Validation of a night in a real warehouse: rows accepted, flagged, quarantined or blocked, and repeated runs.

A night is the run for one as-of date; its delta is the raw rows that it must check.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from models.panel import TS_TYPE
from models.sessions import bar_opens, midnight_after
from tasks.errors import NightBlockedError
from tasks.night import Night
from tasks.validate import ValidationReport, validate_night
from tests.universes import make_perpetuals, make_stocks
from warehouse.connect import Warehouse
from warehouse.tables import append
from warehouse.universes import Universe

START = date(2024, 1, 2)
FRIDAY = date(2024, 3, 1)
SATURDAY = date(2024, 3, 2)
MONDAY = date(2024, 3, 4)
TUESDAY = date(2024, 3, 5)
WEDNESDAY = date(2024, 3, 6)
MEMBERS = ("AAA", "BBB", "CCC", "DDD")
SYMBOLS = (*MEMBERS, "IDX")
STOCKS = make_stocks(MEMBERS, "IDX", START)
PERPETUALS = make_perpetuals(MEMBERS, FRIDAY)
STORE_TABLES = ("bars", "corporate_actions", "funding_rates", "quarantine", "checks")
Rows = list[dict[str, object]]


class FailedCheck(NamedTuple):
    """A failed rule of one night: its policy (block, quarantine or flag), its number of failed rows, and their keys."""

    policy: str
    n_rows: int
    keys: list[dict[str, str]]


@dataclass(frozen=True)
class RawDesk:
    """A warehouse whose raw tables a test fills in the place of ingest."""

    warehouse: Warehouse

    def night(self, as_of: date, universe: Universe = STOCKS) -> Night:
        """The recorded night whose clock is the midnight (UTC) that ends ``as_of``."""
        return Night(as_of, "recorded", universe, self.warehouse, clock=midnight_after(as_of))

    def receive(self, night: Night, bars: Rows, actions: Rows = (), funding: Rows = ()) -> None:
        """Writes the rows as received by the night, and a pull status of the night."""
        stamps = {**night.slice, **night.stamp}
        with self.warehouse.write("test") as con:
            for table, rows in (("bars", bars), ("corporate_actions", actions), ("funding_rates", funding)):
                if rows:
                    interval = {"interval": night.universe.interval} if table == "bars" else {}
                    received = pa.Table.from_pylist(list(rows))
                    ts = received["ts"].cast(TS_TYPE)
                    received = received.set_column(received.column_names.index("ts"), "ts", ts)
                    append(con, f"raw.{table}", received, **interval, provider=night.universe.provider, **stamps)
            counts = dict.fromkeys(("bars", "restated", "actions", "funding"), 0)
            status = pa.Table.from_pylist([{"symbol": "AAA", "status": "ok", **counts}])
            append(con, "raw.fetches", status, night=night.as_of, **stamps)

    def rows(self, query: str) -> list[tuple]:
        """Result rows of ``query``."""
        with self.warehouse.read() as con:
            return con.execute(query).fetchall()

    def contents(self) -> dict[str, pa.Table]:
        """Every row of the tables that validation writes."""
        with self.warehouse.read() as con:
            return {name: con.execute(f"FROM store.{name} ORDER BY ALL").to_arrow_table() for name in STORE_TABLES}

    def failed_checks(self, night: Night) -> dict[str, FailedCheck]:
        """By rule name, the rules that failed in the night."""
        checks = self.rows(
            f"SELECT rule, policy, rows_failed, failing_keys FROM checks WHERE night = '{night.as_of}' AND NOT passed"
        )
        return {rule: FailedCheck(policy, n_rows, json.loads(keys)) for rule, policy, n_rows, keys in checks}


@pytest.fixture
def raw(warehouse: Warehouse) -> RawDesk:
    """An empty warehouse to receive raw rows."""
    return RawDesk(warehouse)


def make_bars(first: date, last: date, universe: Universe = STOCKS, symbols: Iterable[str] = SYMBOLS) -> Rows:
    """Every bar of the sessions from ``first`` to ``last``: a random walk of about 1 % a bar, equal on every call."""
    grid = bar_opens(universe.calendar, universe.interval, START, last + timedelta(days=1))
    rows = []
    for k, symbol in enumerate(SYMBOLS):
        close = 50 * np.exp(np.cumsum(np.random.default_rng(k).normal(0, 0.01, len(grid))))
        rows += [
            {"symbol": symbol, "ts": ts, "open": c, "high": c * 1.01, "low": c * 0.99, "close": c, "volume": 1e3}
            for ts, c in zip(grid.tolist(), close.tolist(), strict=True)
            if symbol in symbols and ts.date() >= first
        ]
    return rows


def with_values(rows: Rows, symbol: str, day: date, **values: float) -> Rows:
    """The rows with ``values`` in the bar of ``symbol`` on ``day``."""
    return [r | values if (r["symbol"], r["ts"].date()) == (symbol, day) else r for r in rows]


def validate_history(raw: RawDesk) -> RawDesk:
    """Receives and validates the history up to FRIDAY; returns ``raw``."""
    night = raw.night(FRIDAY)
    dividends = [{"symbol": "AAA", "ts": datetime(2024, 2, 1, 14, 30), "kind": "dividend", "value": 0.4}]
    raw.receive(night, make_bars(START, FRIDAY), dividends)
    validate_night.fn(night)
    return raw


def test_a_clean_first_night_accepts_every_row_with_run_and_clock(raw: RawDesk) -> None:
    night = raw.night(FRIDAY)
    raw.receive(night, make_bars(START, FRIDAY), [{"symbol": "AAA", "ts": START, "kind": "dividend", "value": 0.4}])
    report = validate_night.fn(night)
    n_bars = len(make_bars(START, FRIDAY))
    assert report == ValidationReport(n_bars + 1, n_bars + 1, flagged=0, quarantined=0, failed=())
    assert raw.rows("SELECT count(*), any_value(run_id), any_value(fetched_at) FROM store.bars WHERE flag IS NULL") == [
        (n_bars, night.run_id, night.clock)
    ]
    assert raw.rows("SELECT symbol, kind, value FROM corporate_actions") == [("AAA", "dividend", 0.4)]
    assert raw.rows("SELECT DISTINCT passed, night, run_id FROM checks") == [(True, FRIDAY, night.run_id)]


def test_a_bad_row_is_quarantined_with_its_reasons_and_the_rest_is_accepted(raw: RawDesk) -> None:
    night = raw.night(MONDAY)
    validate_history(raw).receive(
        night, with_values(make_bars(MONDAY, MONDAY), "BBB", MONDAY, close=float("nan"), volume=-1.0)
    )
    report = validate_night.fn(night)
    assert (report.accepted, report.quarantined) == (4, 1)
    assert report.failed == ("bars null", "bars volume", "bars gap")
    assert raw.rows(f"SELECT symbol FROM store.bars WHERE ts::DATE = '{MONDAY}' ORDER BY symbol") == [
        (s,) for s in ("AAA", "CCC", "DDD", "IDX")
    ]
    assert raw.rows("SELECT table_name, symbol, rule FROM quarantine ORDER BY rule") == [
        ("bars", "BBB", "null"),
        ("bars", "BBB", "volume"),
    ]
    assert raw.rows("SELECT reason FROM quarantine WHERE rule = 'volume'") == [("volume is negative or infinite",)]
    ((contents_json,),) = raw.rows("SELECT contents FROM quarantine WHERE rule = 'null'")
    contents = json.loads(contents_json)
    assert (contents["close"], contents["volume"], contents["ts"]) == ("nan", -1.0, "2024-03-04T14:30:00+00:00")
    assert raw.failed_checks(night)["volume"] == (
        "quarantine",
        1,
        [{"symbol": "BBB", "ts": "2024-03-04T14:30:00Z"}],
    )
    (message,) = raw.rows(f"SELECT message FROM checks WHERE rule = 'volume' AND night = '{MONDAY}'")[0]
    assert message.startswith("1 of 5 rows: volume is negative or infinite (BBB 2024-03-04T14:30:00Z). These rows wait")


def test_a_flagged_bar_is_accepted_with_the_names_of_its_rules(raw: RawDesk) -> None:
    night = raw.night(MONDAY)
    prices = dict.fromkeys(("open", "high", "low", "close"), 100.0)
    validate_history(raw).receive(night, with_values(make_bars(MONDAY, MONDAY), "BBB", MONDAY, **prices, volume=0.0))
    report = validate_night.fn(night)
    assert (report.accepted, report.flagged) == (5, 1)
    assert raw.rows("SELECT symbol, close, flag FROM bars WHERE flag IS NOT NULL") == [
        ("BBB", 100.0, "jump,zero_volume")
    ]


def test_a_blocked_night_raises_the_reason_and_leaves_the_store_unchanged(raw: RawDesk) -> None:
    night = raw.night(MONDAY)
    before = validate_history(raw).contents()
    raw.receive(night, make_bars(MONDAY, TUESDAY))
    with pytest.raises(NightBlockedError, match=r"night 2024-03-04 of stocks.*bars future: 5 of 10 rows"):
        validate_night.fn(night)
    after = raw.contents()
    assert all(after[name].equals(before[name]) for name in STORE_TABLES if name != "checks")
    failed = raw.failed_checks(night)
    assert list(failed) == ["future"]
    assert (failed["future"].policy, failed["future"].n_rows) == ("block", 5)


def test_rows_of_a_blocked_night_are_checked_again_by_the_next_night(raw: RawDesk) -> None:
    """Otherwise they would be lost, because ingest writes only new and changed rows."""
    validate_history(raw).receive(raw.night(MONDAY), make_bars(MONDAY, TUESDAY))
    with pytest.raises(NightBlockedError):
        validate_night.fn(raw.night(MONDAY))
    night = raw.night(TUESDAY)
    raw.receive(night, [])
    assert validate_night.fn(night).accepted == 10
    wednesday = raw.night(WEDNESDAY)
    raw.receive(wednesday, make_bars(WEDNESDAY, WEDNESDAY))
    assert validate_night.fn(wednesday).checked == 5  # the rows of the night before are accepted by now


def test_too_many_quarantined_rows_block_the_night(raw: RawDesk) -> None:
    night = raw.night(FRIDAY)
    received = make_bars(START, FRIDAY)  # two of five symbols, 40 % of the rows, become bad
    raw.receive(night, [r | {"volume": -1.0} if r["symbol"] in ("AAA", "BBB") else r for r in received])
    with pytest.raises(NightBlockedError, match="quarantined_share"):
        validate_night.fn(night, max_quarantined_fraction=0.3)
    assert raw.rows("SELECT count(*) FROM store.bars") == raw.rows("SELECT count(*) FROM quarantine") == [(0,)]
    assert validate_night.fn(night, max_quarantined_fraction=0.5).quarantined == 0.4 * len(received)


def test_validating_a_night_twice_changes_no_row(raw: RawDesk) -> None:
    night = raw.night(MONDAY)
    received = with_values(make_bars(date(2024, 2, 27), MONDAY), "BBB", MONDAY, volume=0.0)
    received = with_values(received, "CCC", MONDAY, close=1e9)
    received = with_values(received, "AAA", FRIDAY, close=51.0, high=52.0, low=49.0, open=50.0)
    validate_history(raw).receive(night, received, [{"symbol": "AAA", "ts": MONDAY, "kind": "dividend", "value": 9e9}])
    first = validate_night.fn(night)
    after_first = raw.contents()
    assert validate_night.fn(night) == first
    assert raw.contents() == after_first


def test_validating_an_earlier_night_again_restores_no_old_price(raw: RawDesk) -> None:
    friday, monday, tuesday = (raw.night(day) for day in (FRIDAY, MONDAY, TUESDAY))
    validate_history(raw).receive(monday, make_bars(MONDAY, MONDAY))
    validate_night.fn(monday)
    after_split = [
        r | {name: r[name] / 4 for name in ("open", "high", "low", "close")} for r in make_bars(START, TUESDAY)
    ]
    raw.receive(tuesday, after_split, [{"symbol": s, "ts": TUESDAY, "kind": "split", "value": 4.0} for s in SYMBOLS])
    assert validate_night.fn(tuesday).failed == ()
    after = raw.contents()
    for night in (friday, monday):
        validate_night.fn(night)
        assert raw.contents() == after


def test_a_restated_bar_replaces_its_former_version(raw: RawDesk) -> None:
    night = raw.night(MONDAY)
    restated = {"open": 50.0, "high": 52.0, "low": 49.0, "close": 51.0}
    received = [r for r in make_bars(FRIDAY, MONDAY) if r["ts"].date() == MONDAY or r["symbol"] == "AAA"]
    validate_history(raw).receive(night, with_values(received, "AAA", FRIDAY, **restated))
    validate_night.fn(night)
    assert raw.rows(f"SELECT close, run_id FROM store.bars WHERE symbol = 'AAA' AND ts::DATE = '{FRIDAY}'") == [
        (51.0, night.run_id)
    ]
    assert raw.rows("SELECT count(*) FROM store.bars") == [(len(make_bars(START, MONDAY)),)]


def test_a_bad_restatement_leaves_the_last_good_version(raw: RawDesk) -> None:
    night = raw.night(MONDAY)
    received = with_values(make_bars(FRIDAY, MONDAY), "AAA", FRIDAY, close=-1.0)
    before = validate_history(raw).rows(f"SELECT * FROM store.bars WHERE symbol = 'AAA' AND ts::DATE = '{FRIDAY}'")
    raw.receive(night, received)
    assert validate_night.fn(night).quarantined == 1
    after = raw.rows(f"SELECT * FROM store.bars WHERE symbol = 'AAA' AND ts::DATE = '{FRIDAY}'")
    assert after == before


def test_only_the_latest_version_of_a_row_in_a_night_is_checked(raw: RawDesk) -> None:
    """A live night that was killed and run again has pulled twice, at two clocks, under one run id."""
    night = validate_history(raw).night(MONDAY)
    raw.receive(night, with_values(make_bars(MONDAY, MONDAY), "AAA", MONDAY, close=-1.0))
    later = replace(night, clock=night.clock + timedelta(minutes=5))
    raw.receive(later, make_bars(MONDAY, MONDAY, symbols=["AAA"]))
    assert validate_night.fn(later).failed == ()


def test_exact_duplicates_count_once_and_contradictory_ones_are_quarantined(raw: RawDesk) -> None:
    night = validate_history(raw).night(MONDAY)
    received = make_bars(MONDAY, MONDAY)
    exact_duplicate = [r for r in received if r["symbol"] == "AAA"]
    contradictory = [r | {"volume": 2e3} for r in received if r["symbol"] == "BBB"]
    raw.receive(night, received + exact_duplicate + contradictory)
    report = validate_night.fn(night)
    assert (report.checked, report.accepted, report.quarantined) == (6, 4, 2)
    failure = raw.failed_checks(night)["duplicate"]
    assert (failure.policy, failure.n_rows) == ("quarantine", 2)


def test_a_night_without_a_session_passes_with_nothing_to_check(raw: RawDesk) -> None:
    report = validate_night.fn(validate_history(raw).night(SATURDAY))
    assert report == ValidationReport(0, 0, flagged=0, quarantined=0, failed=())
    results = raw.rows(f"SELECT DISTINCT passed, rows_checked FROM checks WHERE night = '{SATURDAY}' AND rule = 'null'")
    assert results == [(True, 0)]


def test_a_session_without_bars_blocks_and_a_single_missing_bar_is_flagged(raw: RawDesk) -> None:
    with pytest.raises(NightBlockedError, match="latest closed bar is missing"):
        validate_night.fn(validate_history(raw).night(MONDAY))
    night = raw.night(MONDAY)
    raw.receive(night, [r for r in make_bars(MONDAY, MONDAY) if r["symbol"] != "CCC"])
    assert validate_night.fn(night).failed == ("bars gap",)
    assert raw.failed_checks(night)["gap"] == ("flag", 1, [{"symbol": "CCC", "ts": "2024-03-04T14:30:00Z"}])


def test_a_night_started_late_expects_no_bars_of_the_next_day(raw: RawDesk) -> None:
    """The clock of a live night is the time of its start, which may be after the midnight that ends its date."""
    night = raw.night(FRIDAY, PERPETUALS)
    late_night = replace(night, clock=night.clock + timedelta(hours=5))
    raw.receive(late_night, make_bars(FRIDAY, FRIDAY, PERPETUALS, MEMBERS))
    assert validate_night.fn(late_night).failed == ()


def test_a_bar_off_the_calendar_is_quarantined_even_on_the_last_day(raw: RawDesk) -> None:
    """Yahoo appends the current price as a further row whose ts is the time of the request."""
    night = validate_history(raw).night(MONDAY)
    stray = [r | {"ts": datetime(2024, 3, 4, 20, 59, 7)} for r in make_bars(MONDAY, MONDAY, symbols=["AAA"])]
    raw.receive(night, make_bars(MONDAY, MONDAY) + stray)
    assert validate_night.fn(night).failed == ("bars off_grid",)


def test_hourly_perpetuals_and_their_funding_are_validated(raw: RawDesk) -> None:
    night = raw.night(FRIDAY, PERPETUALS)
    received = make_bars(FRIDAY, FRIDAY, PERPETUALS, MEMBERS)
    hours = (0, 8, 16, 24)  # the settlement at the clock itself counts too
    settled = [{"symbol": "AAA", "ts": datetime(2024, 3, 1) + timedelta(hours=h), "rate": 1e-4} for h in hours]
    settled[1]["rate"] = 0.3
    raw.receive(night, received, funding=settled)
    report = validate_night.fn(night)
    assert report.failed == ("funding_rates bounds",)
    assert raw.rows("SELECT count(*) FROM store.bars") == [(24 * 4,)]
    assert raw.rows("SELECT hour(ts), rate FROM funding_rates ORDER BY ts") == [(0, 1e-4), (16, 1e-4), (0, 1e-4)]
    next_night = raw.night(SATURDAY, PERPETUALS)
    raw.receive(
        next_night,
        make_bars(SATURDAY, SATURDAY, PERPETUALS, MEMBERS),
        funding=[{"symbol": "AAA", "ts": datetime(2024, 3, 2, 16), "rate": 1e-4}],
    )
    assert validate_night.fn(next_night).failed == ("funding_rates gap",)


def test_a_settlement_that_the_night_before_quarantined_leaves_a_gap(raw: RawDesk) -> None:
    night = raw.night(FRIDAY, PERPETUALS)
    settled = [{"symbol": "AAA", "ts": datetime(2024, 3, 1, h), "rate": rate} for h, rate in ((8, 1e-4), (16, 0.3))]
    raw.receive(night, make_bars(FRIDAY, FRIDAY, PERPETUALS, MEMBERS), funding=settled)
    validate_night.fn(night)
    next_night = raw.night(SATURDAY, PERPETUALS)
    settled = [{"symbol": "AAA", "ts": datetime(2024, 3, 2), "rate": 1e-4}]
    raw.receive(next_night, make_bars(SATURDAY, SATURDAY, PERPETUALS, MEMBERS), funding=settled)
    assert validate_night.fn(next_night).failed == ("funding_rates gap",)
