"""The flow `stream` and its command, against a local exchange.

The fixture ``empty_warehouse`` is a migrated warehouse without rows, see conftest.py.
"""

from __future__ import annotations

import json
import os
import re
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

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT")  # of the universe demo_crypto


def trade_frame(trade_id: int) -> str:
    """Bybit's websocket message of one trade of BTCUSDT; the ids are 100 ms apart."""
    ts_ms = 1_789_299_660_000 + 100 * trade_id
    data = [{"T": ts_ms, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "60000", "i": str(trade_id)}]
    return json.dumps({"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": ts_ms, "data": data})


def send_signal_at_end(exchange: FakeExchange, signal_number: signal.Signals) -> None:
    """Starts a thread that sends this process a signal after the exchange has sent its last message."""

    def send_signal() -> None:
        assert exchange.done.wait(30)
        time.sleep(0.3)  # the stream receives the last message
        os.kill(os.getpid(), signal_number)

    threading.Thread(target=send_signal, daemon=True).start()


def stored_trades(warehouse: Warehouse) -> list[tuple]:
    """(source, symbol, trade_id) of every stored trade, in the order of time."""
    with warehouse.read() as con:
        return con.execute("SELECT source, symbol, trade_id FROM trades ORDER BY ts").fetchall()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_streams_until_a_signal_and_saves_everything(
    empty_warehouse: Warehouse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signal_number: signal.Signals,
) -> None:
    handler_before = signal.getsignal(signal_number)
    with FakeExchange([trade_frame(1), trade_frame(2)], topics_for(SYMBOLS)) as exchange:
        options = ["--universe", "demo_crypto", "--url", exchange.url, "--rest-url", exchange.rest_url]
        monkeypatch.setattr("sys.argv", ["nightgraph", "stream", *options, "--warehouse", str(empty_warehouse.path)])
        send_signal_at_end(exchange, signal_number)
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
    captured = capsys.readouterr()
    assert exit_info.value.code in (0, None), captured.err
    assert signal.getsignal(signal_number) is handler_before
    assert stored_trades(empty_warehouse) == [("recorded", "BTCUSDT", "1"), ("recorded", "BTCUSDT", "2")]
    assert ["stored", "2"] in [line.split() for line in captured.out.splitlines()]
    state_file = empty_warehouse.path.with_name("warehouse.streams") / "recorded-demo_crypto.npz"
    assert state_file.exists()
    assert str(state_file) in captured.out.replace("\n", "")
    assert "2 events" in captured.err


def test_the_command_ends_after_the_given_minutes(
    empty_warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeExchange([trade_frame(1)], topics_for(SYMBOLS)) as exchange:
        options = ["--universe", "demo_crypto", "--url", exchange.url, "--minutes", "0.02"]
        monkeypatch.setattr("sys.argv", ["nightgraph", "stream", *options, "--warehouse", str(empty_warehouse.path)])
        with pytest.raises(SystemExit):
            cli.main()
    assert re.search(r"demo_crypto, recorded, \d+ s", capsys.readouterr().out)
    assert len(stored_trades(empty_warehouse)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--universe", "us_stocks"], "us_stocks is not a universe of Bybit"),
        (["--universe", "nowhere"], "unknown universe 'nowhere'"),
        (["--url", "https://stream.bybit.com"], "url: String should match pattern"),
        (["--rest-url", "https://api.bybit.com"], "rest_url needs url"),
        (["--minutes", "0"], "minutes: Input should be greater than 0"),
    ],
)
def test_a_stream_that_cannot_run_is_refused_before_any_request(
    empty_warehouse: Warehouse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["nightgraph", "stream", *options, "--warehouse", str(empty_warehouse.path)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cancelled_flow_run_saves_everything_and_completes(empty_warehouse: Warehouse) -> None:
    """Prefect cancels a run with SIGTERM: it must end as completed, with everything saved."""
    from prefect.testing.utilities import prefect_test_harness

    from flows.stream import stream

    with prefect_test_harness(), FakeExchange([trade_frame(1), trade_frame(2)], topics_for(SYMBOLS)) as exchange:
        send_signal_at_end(exchange, signal.SIGTERM)
        final_state = stream(
            StreamParameters(universe="demo_crypto", url=exchange.url, warehouse=str(empty_warehouse.path)),
            return_state=True,
        )
    assert final_state.is_completed()
    assert len(stored_trades(empty_warehouse)) == 2


def test_a_model_that_reads_no_events_is_refused_before_anything_is_streamed(
    empty_warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["nightgraph", "stream", "--model", "oracle", "--warehouse", str(empty_warehouse.path)]
    )
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 1
    assert "only networks can be fed" in capsys.readouterr().err


def test_bybits_own_websocket_is_live_and_any_other_recorded(empty_warehouse: Warehouse) -> None:
    with StreamParameters(universe="crypto", warehouse=str(empty_warehouse.path)).job() as job:
        assert (job.source, job.url) == ("live", "wss://stream.bybit.com/v5/public/linear")
        assert job.rest is not None
        assert "BTCUSDT" in job.symbols
    with StreamParameters(universe="crypto", warehouse=str(empty_warehouse.path), url="ws://127.0.0.1:1").job() as job:
        assert (job.source, job.rest) == ("recorded", None)


@pytest.mark.parametrize("parameter", [{"save_every_s": 0}, {"book_every_ms": 0}, {"bound_ms": -1}, {"speed": 2}])
def test_parameters_out_of_bounds_are_refused(parameter: dict[str, int]) -> None:
    (name,) = parameter
    with pytest.raises(ValidationError, match=name):
        StreamParameters.model_validate(parameter)


def test_a_stream_needs_a_universe_of_perpetuals(empty_warehouse: Warehouse) -> None:
    with (
        pytest.raises(SettingsError),
        StreamParameters(universe="demo_stocks", warehouse=str(empty_warehouse.path)).job(),
    ):
        pass
