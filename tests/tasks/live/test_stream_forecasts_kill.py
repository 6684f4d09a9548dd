"""A stream that is killed at any time forecasts, in all its runs together, what one that never was does."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.markets.bybit_frames import topics_of
from tests.exchange import Exchange
from tests.market_place import SYMBOLS, Place, hours

REPOSITORY = Path(__file__).parents[2]
COMMAND = "import sys; from flows.cli import main; sys.argv[0] = 'nightgraph'; main()"


def started(exchange: Exchange, place: Place) -> subprocess.Popen[str]:
    asked = ["--universe", "perpetuals", "--model", "tgn", "--url", exchange.url, "--rest-url", exchange.rest_url]
    command = [sys.executable, "-c", COMMAND, "stream", *asked, "--warehouse", str(place.desk.warehouse.path)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_three_times_a_stream_forecasts_every_bar_once_and_as_a_night(place: Place) -> None:
    steps = hours(0, 8.5)
    place.name_universe()
    with Exchange(steps, topics_of(SYMBOLS)) as exchange:
        place.tells(exchange)
        for left in (150, 100, 50):
            process = started(exchange, place)
            while len(exchange.script) > left and process.poll() is None:
                time.sleep(0.001)
            time.sleep(0.02 * (left % 7))  # a close may be under way, or its forecasts unwritten
            process.kill()
            process.communicate()
        process = started(exchange, place)
        assert exchange.done.wait(60)
        patience = time.monotonic() + 60
        while len(place.forecasts()) < 8 * 2 * 2 and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.5)
        process.terminate()
        printed, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
    assert "forecasts" in printed
    rows, expected = place.forecasts(), place.night_forecasts(8)
    assert [row[:3] for row in rows] == [row[:3] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row[3:] == pytest.approx(other[3:], rel=0, abs=1e-7)
