"""The flow `stream` and its command, against an exchange of our own."""

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
from tasks.markets.bybit_frames import topics_of
from tests.exchange import Exchange
from warehouse.connect import Warehouse

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT")


def trade(number: int) -> str:
    stamp = 1_789_299_660_000 + 100 * number
    data = [{"T": stamp, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "60000", "i": str(number)}]
    return json.dumps({"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": stamp, "data": data})


def end_when_played(exchange: Exchange, number: signal.Signals) -> None:
    """Sends this process a signal once the script is at its end."""

    def wait() -> None:
        assert exchange.done.wait(30)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def trades(warehouse: Warehouse) -> list[tuple]:
    with warehouse.read() as con:
        return con.execute("SELECT source, symbol, trade_id FROM trades ORDER BY ts").fetchall()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_streams_until_a_signal_and_then_all_is_saved(
    empty: Warehouse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with Exchange([trade(1), trade(2)], topics_of(SYMBOLS)) as exchange:
        options = ["--universe", "demo_crypto", "--url", exchange.url, "--rest-url", exchange.rest_url]
        monkeypatch.setattr("sys.argv", ["nightgraph", "stream", *options, "--warehouse", str(empty.path)])
        end_when_played(exchange, number)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    printed = capsys.readouterr()
    assert ended.value.code in (0, None), printed.err
    assert signal.getsignal(number) is before
    assert trades(empty) == [("recorded", "BTCUSDT", "1"), ("recorded", "BTCUSDT", "2")]
    assert ["stored", "2"] in [line.split() for line in printed.out.splitlines()]
    state = empty.path.with_name("warehouse.streams") / "recorded-demo_crypto.npz"
    assert state.exists()
    assert str(state) in printed.out.replace("\n", "")
    assert "2 events" in printed.err


def test_the_command_ends_after_its_minutes(empty: Warehouse, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Exchange([trade(1)], topics_of(SYMBOLS)) as exchange:
        options = ["--universe", "demo_crypto", "--url", exchange.url, "--minutes", "0.02"]
        monkeypatch.setattr("sys.argv", ["nightgraph", "stream", *options, "--warehouse", str(empty.path)])
        with pytest.raises(SystemExit):
            cli.main()
    assert "demo_crypto, recorded, 1 s" in capsys.readouterr().out
    assert len(trades(empty)) == 1


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
def test_what_cannot_be_streamed_is_said_and_nothing_is_asked(
    empty: Warehouse, monkeypatch, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    monkeypatch.setattr("sys.argv", ["nightgraph", "stream", *options, "--warehouse", str(empty.path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"error: {complaint}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cancelled_flow_run_ends_in_order(empty: Warehouse) -> None:
    """Prefect cancels a run with SIGTERM: it must come out as completed, with everything saved."""
    from prefect.testing.utilities import prefect_test_harness

    from flows.stream import stream

    with prefect_test_harness(), Exchange([trade(1), trade(2)], topics_of(SYMBOLS)) as exchange:
        end_when_played(exchange, signal.SIGTERM)
        state = stream(
            StreamParameters(universe="demo_crypto", url=exchange.url, warehouse=str(empty.path)), return_state=True
        )
    assert state.is_completed()
    assert len(trades(empty)) == 2


def test_a_model_that_cannot_be_fed_is_said_before_anything_is_streamed(
    empty: Warehouse, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["nightgraph", "stream", "--model", "oracle", "--warehouse", str(empty.path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "only networks can be fed" in capsys.readouterr().err


def test_bybit_s_own_websocket_is_live_and_any_other_recorded(empty: Warehouse) -> None:
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
