"""A stream that is killed again and again ends where one that never was does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.graphs.stream import load_arrays
from tasks.markets.bybit_frames import topics_of
from tests.exchange import Exchange
from warehouse.connect import Warehouse

REPOSITORY = Path(__file__).parents[2]
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT")
TRADES = 900


def trade(number: int) -> str:
    symbol, stamp = SYMBOLS[number % 4], 1_789_299_660_000 + 20 * number
    data = [{"T": stamp, "s": symbol, "S": "Buy", "v": "1", "p": "100", "i": f"{number:04}"}]
    return json.dumps({"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": stamp, "data": data})


STREAM = """
import sys
from flows.stream import StreamParameters
from tasks.live.stream import stream_events
url, rest_url, warehouse = sys.argv[1:]
asked = {"universe": "demo_crypto", "url": url, "rest_url": rest_url, "warehouse": warehouse, "save_every_s": 0.2}
with StreamParameters(**asked).job() as job:
    stream_events(job)
"""


def started(exchange: Exchange, warehouse: Warehouse) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", STREAM, exchange.url, exchange.rest_url, str(warehouse.path)]
    return subprocess.Popen(command, cwd=REPOSITORY)


@pytest.mark.slow
def test_killed_three_times_a_stream_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    warehouse = Warehouse.at(tmp_path / "warehouse.duckdb")
    with Exchange([trade(number) for number in range(TRADES)], topics_of(SYMBOLS)) as exchange:
        for played in (300, 500, 700):
            process = started(exchange, warehouse)
            while len(exchange.script) > TRADES - played and process.poll() is None:
                time.sleep(0.001)
            process.kill()
            process.wait()
        process = started(exchange, warehouse)
        assert exchange.done.wait(60)
        time.sleep(2)
        process.terminate()
        assert process.wait(30) == 0
        assert exchange.connections == 4
    with warehouse.read() as con:
        stored = con.execute("SELECT trade_id FROM trades ORDER BY trade_id").fetchall()
    assert stored == [(f"{number:04}",) for number in range(TRADES)]
    state = load_arrays(tmp_path / "warehouse.streams" / "recorded-demo_crypto.npz")
    handed_over = int(state["buffer.counts"][-1])
    assert handed_over + len(state["buffer.waiting"]) == TRADES
