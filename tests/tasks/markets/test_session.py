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
    UnknownSourceError,
)
from tasks.markets import session
from tasks.markets.session import open_market

NIGHT = date(2024, 2, 1)


def test_an_unknown_source_raises_an_error_that_lists_the_sources() -> None:
    with pytest.raises(UnknownSourceError, match="live, recorded, simulated"), open_market("tape", NIGHT):
        pass


def test_a_recorded_market_needs_a_tape() -> None:
    with pytest.raises(TapeMissingError, match="--tape"), open_market("recorded", NIGHT):
        pass


@pytest.mark.parametrize("source", ["live", "simulated"])
def test_a_tape_with_another_source_is_refused_TRAP_14(source: str, small_tape: Path) -> None:
    with pytest.raises(TapeError, match=source), open_market(source, NIGHT, small_tape):
        pass


@pytest.mark.parametrize("source", ["live", "simulated"])
def test_a_provider_with_recordings_only_is_refused_before_any_request(source: str, monkeypatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    with (
        pytest.raises(OnlyRecordedError, match=f"no {source} market of binance: .*--source recorded.*--tape"),
        open_market(source, datetime.now(UTC).date(), providers=("binance",)),
    ):
        pass


def test_recorded_events_are_opened_only_for_their_provider(shared_data: Path, small_tape: Path) -> None:
    night = date(2024, 8, 8)
    with open_market("recorded", night, shared_data / "events", providers=("binance",)) as market:
        assert market.binance is not None and len(market.binance.symbols) == 6
    with open_market("recorded", night, shared_data / "events") as market:
        assert market.binance is None
    with (
        pytest.raises(TapeMissingError, match=r"no trades_\*\.parquet"),
        open_market("recorded", NIGHT, small_tape, providers=("binance",)),
    ):
        pass


def test_a_recorded_market_ends_at_the_end_of_its_night(small_tape: Path) -> None:
    with open_market("recorded", NIGHT, small_tape, providers=("yahoo", "bybit")) as market:
        assert market.clock == datetime(2024, 2, 2, tzinfo=UTC)
        bars, _ = market.yahoo.daily_bars("AAA", date(2024, 1, 1), date(2024, 4, 1))
        hours = market.bybit.klines("XUSDT", "1h", market.clock - timedelta(hours=2), market.clock + timedelta(days=9))
    assert bars["ts"][-1].as_py() == datetime(2024, 2, 1, 14, 30, tzinfo=UTC)
    assert hours["ts"].to_pylist() == [datetime(2024, 2, 1, h, tzinfo=UTC) for h in (22, 23)]


def test_a_night_outside_the_tape_is_refused_for_the_requested_provider(small_tape: Path) -> None:
    with open_market("recorded", date(2024, 1, 1), small_tape):  # bybit has it
        pass
    with (
        pytest.raises(NightOutOfRangeError),
        open_market("recorded", date(2024, 1, 1), small_tape, providers=("yahoo",)),
    ):
        pass
    with pytest.raises(NightOutOfRangeError), open_market("recorded", date(2030, 1, 1), small_tape):
        pass


@pytest.mark.parametrize("days", [-2, 1, 400])
def test_the_live_source_has_only_the_nights_of_today_and_yesterday(days: int) -> None:
    night = datetime.now(UTC).date() + timedelta(days=days)
    with pytest.raises(NightOutOfRangeError, match=str(night)), open_market("live", night):
        pass


def test_the_live_source_without_a_network_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(session, "PROBES", (f"http://127.0.0.1:{port}/",))
    with pytest.raises(NoNetworkError, match="nothing was changed"), open_market("live", datetime.now(UTC).date()):
        pass


@pytest.mark.live
def test_the_live_services_answer_in_the_expected_shapes() -> None:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    with open_market("live", yesterday) as market:
        bars, _ = market.yahoo.daily_bars("AAPL", yesterday - timedelta(days=14), yesterday)
        hours = market.bybit.klines("BTCUSDT", "1h", market.clock - timedelta(days=50), market.clock)
        rates = market.bybit.funding("BTCUSDT", market.clock - timedelta(days=90), market.clock)
        instruments = market.bybit.instruments(["BTCUSDT"])
    assert len(bars) >= 8
    assert len(hours) == 1200
    assert len(rates) >= 269
    assert instruments["tick_size"][0].as_py() > 0
