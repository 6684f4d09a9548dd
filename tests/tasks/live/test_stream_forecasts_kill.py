"""A stream that is killed several times writes, over all its runs, the forecasts of an uninterrupted stream."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.markets.bybit_frames import topics_for
from tests.exchange import FakeExchange
from tests.market_place import RECIPE, SYMBOLS, LiveDesk, market_frames

REPOSITORY = Path(__file__).parents[3]
COMMAND = "import sys; from flows.cli import main; sys.argv[0] = 'nightgraph'; main()"


def start_stream(exchange: FakeExchange, live_desk: LiveDesk) -> subprocess.Popen[str]:
    options = ["--universe", "perpetuals", "--model", "tgn", "--url", exchange.url, "--rest-url", exchange.rest_url]
    command = [sys.executable, "-c", COMMAND, "stream", *options, "--warehouse", str(live_desk.desk.warehouse.path)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_stream_killed_three_times_forecasts_every_bar_once_and_as_a_night(live_desk: LiveDesk) -> None:
    n_bars = 8
    steps = market_frames(0, n_bars + 0.5)
    live_desk.store_universe()
    with FakeExchange(steps, topics_for(SYMBOLS)) as exchange:
        live_desk.serve_rest_data(exchange)
        for remaining_steps in (150, 100, 50):
            process = start_stream(exchange, live_desk)
            while len(exchange.script) > remaining_steps and process.poll() is None:
                time.sleep(0.001)
            time.sleep(0.02 * (remaining_steps % 7))  # kills it at different stages of a close and its save
            process.kill()
            process.communicate()
        process = start_stream(exchange, live_desk)
        assert exchange.done.wait(60)
        deadline_s = time.monotonic() + 60
        n_rows = n_bars * len(SYMBOLS) * len(RECIPE.horizons)
        while len(live_desk.forecasts()) < n_rows and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.5)
        process.terminate()
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
    assert "forecasts" in output
    rows = live_desk.forecasts()
    expected = live_desk.night_forecasts(n_bars)
    for row, expected_row in zip(rows, expected, strict=True):
        symbol, ts, horizon_bars, *predictions = row
        expected_symbol, expected_ts, expected_horizon_bars, *expected_predictions = expected_row
        assert (symbol, ts, horizon_bars) == (expected_symbol, expected_ts, expected_horizon_bars)
        assert predictions == pytest.approx(expected_predictions, rel=0, abs=1e-7)  # float32 rounding
