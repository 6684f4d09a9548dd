"""A stream that is killed several times ends with the rows and the state of an uninterrupted one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.graphs.stream import load_arrays
from tasks.markets.bybit_frames import topics_for
from tests.exchange import FakeExchange
from warehouse.connect import Warehouse

REPOSITORY = Path(__file__).parents[2]
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT")
N_TRADES = 900


def trade(number: int) -> str:
    """A frame with the trade ``number``; the symbols take turns and the trades are 20 ms apart."""
    symbol = SYMBOLS[number % len(SYMBOLS)]
    stamp = 1_789_299_660_000 + 20 * number
    data = [{"T": stamp, "s": symbol, "S": "Buy", "v": "1", "p": "100", "i": f"{number:04}"}]
    return json.dumps({"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": stamp, "data": data})


STREAM_CODE = """
import sys
from flows.stream import StreamParameters
from tasks.live.stream import stream_events
url, rest_url, warehouse = sys.argv[1:]
options = {"universe": "demo_crypto", "url": url, "rest_url": rest_url, "warehouse": warehouse, "save_every_s": 0.2}
with StreamParameters(**options).job() as job:
    stream_events(job)
"""


def start_stream(exchange: FakeExchange, warehouse: Warehouse) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", STREAM_CODE, exchange.url, exchange.rest_url, str(warehouse.path)]
    return subprocess.Popen(command, cwd=REPOSITORY)


@pytest.mark.slow
def test_a_stream_killed_three_times_has_every_trade_once(tmp_path: Path) -> None:
    warehouse = Warehouse.from_url(tmp_path / "warehouse.duckdb")
    with FakeExchange([trade(number) for number in range(N_TRADES)], topics_for(SYMBOLS)) as exchange:
        for n_played in (300, 500, 700):
            process = start_stream(exchange, warehouse)
            while len(exchange.script) > N_TRADES - n_played and process.poll() is None:
                time.sleep(0.001)
            process.kill()
            process.wait()
        process = start_stream(exchange, warehouse)
        assert exchange.done.wait(60)
        time.sleep(2)
        process.terminate()
        assert process.wait(30) == 0
        assert exchange.connections == 4
    with warehouse.read() as con:
        stored = con.execute("SELECT trade_id FROM trades ORDER BY trade_id").fetchall()
    assert stored == [(f"{number:04}",) for number in range(N_TRADES)]
    state = load_arrays(tmp_path / "warehouse.streams" / "recorded-demo_crypto.npz")
    n_handed_over = int(state["buffer.counts"][-1])
    assert n_handed_over + len(state["buffer.waiting"]) == N_TRADES
