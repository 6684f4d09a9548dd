"""The flow `stream` and its command, against a local exchange."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
from pydantic import ValidationError

from flows import cli
from flows.settings import SettingsError
from flows.stream import StreamParameters
from tasks.markets.bybit_frames import topics_for
from tests.exchange import FakeExchange
from warehouse.connect import Warehouse

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT")


def trade_frame(number: int) -> str:
    """The websocket message of one trade."""
    stamp = 1_789_299_660_000 + 100 * number
    data = [{"T": stamp, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "60000", "i": str(number)}]
    return json.dumps({"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": stamp, "data": data})


def send_signal_at_end(exchange: FakeExchange, number: signal.Signals) -> None:
    """Sends this process a signal once the exchange's script is at its end."""

    def wait() -> None:
        assert exchange.done.wait(30)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def stored_trades(warehouse: Warehouse) -> list[tuple]:
    with warehouse.read() as con:
        return con.execute("SELECT source, symbol, trade_id FROM trades ORDER BY ts").fetchall()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_streams_until_a_signal_and_saves_everything(
    empty: Warehouse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with FakeExchange([trade_frame(1), trade_frame(2)], topics_for(SYMBOLS)) as exchange:
        options = ["--universe", "demo_crypto", "--url", exchange.url, "--rest-url", exchange.rest_url]
        monkeypatch.setattr("sys.argv", ["nightgraph", "stream", *options, "--warehouse", str(empty.path)])
        send_signal_at_end(exchange, number)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    printed = capsys.readouterr()
    assert ended.value.code in (0, None), printed.err
    assert signal.getsignal(number) is before
    assert stored_trades(empty) == [("recorded", "BTCUSDT", "1"), ("recorded", "BTCUSDT", "2")]
    assert ["stored", "2"] in [line.split() for line in printed.out.splitlines()]
    state = empty.path.with_name("warehouse.streams") / "recorded-demo_crypto.npz"
    assert state.exists()
    assert str(state) in printed.out.replace("\n", "")
    assert "2 events" in printed.err


def test_the_command_ends_after_the_given_minutes(
    empty: Warehouse, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeExchange([trade_frame(1)], topics_for(SYMBOLS)) as exchange:
        options = ["--universe", "demo_crypto", "--url", exchange.url, "--minutes", "0.02"]
        monkeypatch.setattr("sys.argv", ["nightgraph", "stream", *options, "--warehouse", str(empty.path)])
        with pytest.raises(SystemExit):
            cli.main()
    assert "demo_crypto, recorded, 1 s" in capsys.readouterr().out
    assert len(stored_trades(empty)) == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--universe", "us_stocks"], "us_stocks is no universe of Bybit's"),
        (["--universe", "nowhere"], "unknown universe 'nowhere'"),
        (["--url", "https://stream.bybit.com"], "url: String should match pattern"),
        (["--rest-url", "https://api.bybit.com"], "rest_url goes with url"),
        (["--minutes", "0"], "minutes: Input should be greater than 0"),
    ],
)
def test_a_stream_that_cannot_run_is_refused_before_any_request(
    empty: Warehouse, monkeypatch, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    monkeypatch.setattr("sys.argv", ["nightgraph", "stream", *options, "--warehouse", str(empty.path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"error: {complaint}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cancelled_flow_run_saves_everything_and_completes(empty: Warehouse) -> None:
    """Prefect cancels a run with SIGTERM: it must end as completed, with everything saved."""
    from prefect.testing.utilities import prefect_test_harness

    from flows.stream import stream

    with prefect_test_harness(), FakeExchange([trade_frame(1), trade_frame(2)], topics_for(SYMBOLS)) as exchange:
        send_signal_at_end(exchange, signal.SIGTERM)
        state = stream(
            StreamParameters(universe="demo_crypto", url=exchange.url, warehouse=str(empty.path)), return_state=True
        )
    assert state.is_completed()
    assert len(stored_trades(empty)) == 2


def test_a_model_that_reads_no_events_is_refused_before_anything_is_streamed(
    empty: Warehouse, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["nightgraph", "stream", "--model", "oracle", "--warehouse", str(empty.path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "only networks can be fed" in capsys.readouterr().err


def test_bybits_own_websocket_is_live_and_any_other_recorded(empty: Warehouse) -> None:
    with StreamParameters(universe="crypto", warehouse=str(empty.path)).job() as job:
        assert (job.source, job.url) == ("live", "wss://stream.bybit.com/v5/public/linear")
        assert job.rest is not None
        assert "BTCUSDT" in job.symbols
    with StreamParameters(universe="crypto", warehouse=str(empty.path), url="ws://127.0.0.1:1").job() as job:
        assert (job.source, job.rest) == ("recorded", None)


@pytest.mark.parametrize("wrong", [{"save_every_s": 0}, {"book_every_ms": 0}, {"bound_ms": -1}, {"speed": 2}])
def test_parameters_out_of_bounds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        StreamParameters.model_validate(wrong)


def test_a_stream_needs_a_universe_of_perpetuals(empty: Warehouse) -> None:
    with pytest.raises(SettingsError), StreamParameters(universe="demo_stocks", warehouse=str(empty.path)).job():
        pass
