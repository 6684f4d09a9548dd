"""Opening a market: every wrong combination of arguments is refused before any request."""

import socket
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from tasks.errors import (
    NightOutOfRangeError,
    NoNetworkError,
    OnlyRecordedError,
    TapeError,
    TapeMissingError,
    UnknownProviderError,
    UnknownSourceError,
)
from tasks.markets import session
from tasks.markets.recorded_events import RecordedEvents
from tasks.markets.session import open_provider

NIGHT = date(2024, 2, 1)


def test_an_unknown_source_raises_an_error_that_lists_the_sources() -> None:
    with pytest.raises(UnknownSourceError, match="live, recorded, simulated"), open_provider("yahoo", "tape", NIGHT):
        pass


def test_a_recorded_market_needs_a_tape() -> None:
    with pytest.raises(TapeMissingError, match="--tape"), open_provider("bybit", "recorded", NIGHT):
        pass


@pytest.mark.parametrize("source", ["live", "simulated"])
def test_a_tape_with_another_source_is_refused_TRAP_14(source: str, small_tape: Path) -> None:
    with pytest.raises(TapeError, match=source), open_provider("yahoo", source, NIGHT, small_tape):
        pass


@pytest.mark.parametrize("source", ["live", "simulated"])
def test_a_provider_with_recordings_only_is_refused_before_any_request(source: str, monkeypatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    with (
        pytest.raises(OnlyRecordedError, match=f"no {source} market of binance: .*--source recorded.*--tape"),
        open_provider("binance", source, datetime.now(UTC).date()),
    ):
        pass


def test_an_unregistered_provider_raises_an_error_that_lists_the_registered_ones(small_tape: Path) -> None:
    with (
        pytest.raises(UnknownProviderError, match=r"'paper'.*yahoo, bybit, binance"),
        open_provider("paper", "recorded", NIGHT, small_tape),
    ):
        pass


def test_recorded_events_are_one_provider_and_need_their_files(shared_data: Path, small_tape: Path) -> None:
    with open_provider("binance", "recorded", date(2024, 8, 8), shared_data / "events") as provider:
        assert isinstance(provider, RecordedEvents) and len(provider.symbols) == 6
    with (
        pytest.raises(TapeMissingError, match=r"no trades_\*\.parquet"),
        open_provider("binance", "recorded", NIGHT, small_tape),
    ):
        pass


def test_a_recorded_night_ends_at_the_end_of_its_date(small_tape: Path) -> None:
    clock = datetime(2024, 2, 2, tzinfo=UTC)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    with open_provider("yahoo", "recorded", NIGHT, small_tape) as yahoo:
        bars = yahoo.fetch("AAA", "1d", start, datetime(2024, 4, 1, tzinfo=UTC))["bars"]
    with open_provider("bybit", "recorded", NIGHT, small_tape) as bybit:
        hours = bybit.fetch("XUSDT", "1h", clock - timedelta(hours=2), clock + timedelta(days=9))["bars"]
    assert bars["ts"][-1].as_py() == datetime(2024, 2, 1, 14, 30, tzinfo=UTC)
    assert hours["ts"].to_pylist() == [datetime(2024, 2, 1, h, tzinfo=UTC) for h in (22, 23)]


def test_a_night_outside_the_tape_is_refused_for_the_requested_provider(small_tape: Path) -> None:
    with open_provider("bybit", "recorded", date(2024, 1, 1), small_tape):  # yahoo does not have it
        pass
    for name, night in (("yahoo", date(2024, 1, 1)), ("bybit", date(2030, 1, 1))):
        with pytest.raises(NightOutOfRangeError), open_provider(name, "recorded", night, small_tape):
            pass


@pytest.mark.parametrize("days", [-2, 1, 400])
def test_the_live_source_has_only_the_nights_of_today_and_yesterday(days: int) -> None:
    night = datetime.now(UTC).date() + timedelta(days=days)
    with pytest.raises(NightOutOfRangeError, match=str(night)), open_provider("yahoo", "live", night):
        pass


def test_the_live_source_without_a_network_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(session, "PROBE_URLS", (f"http://127.0.0.1:{port}/",))
    with (
        pytest.raises(NoNetworkError, match="nothing was changed"),
        open_provider("bybit", "live", datetime.now(UTC).date()),
    ):
        pass


@pytest.mark.live
def test_the_live_services_answer_in_the_expected_shapes() -> None:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with open_provider("yahoo", "live", yesterday) as yahoo:
        bars = yahoo.fetch("AAPL", "1d", end - timedelta(days=14), end)["bars"]
    with open_provider("bybit", "live", yesterday) as bybit:
        hours = bybit.fetch("BTCUSDT", "1h", end - timedelta(days=50), end)["bars"]
        rates = bybit.fetch("BTCUSDT", "1h", end - timedelta(days=90), end)["funding_rates"]
        instruments = bybit.instruments(["BTCUSDT"])
    assert len(bars) >= 8
    assert len(hours) == 1200
    assert len(rates) >= 269
    assert instruments["tick_size"][0].as_py() > 0
