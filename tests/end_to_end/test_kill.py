"""A night killed inside any step, and run again, ends like an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
STEPS = ("ingest", "validate", "graphs", "train", "backtest", "audit", "publish")
NIGHT = (
    "night",
    "--as-of",
    "2024-06-28",
    "--universe",
    "demo_stocks",
    "--model",
    "s4d",
    "--model",
    "ssm_gnn",
    "--model",
)


def test_a_night_killed_inside_every_step_ends_with_the_rows_of_an_undisturbed_one(
    start, nightgraph, contents, tmp_path: Path
) -> None:
    undisturbed = tmp_path / "undisturbed.duckdb"
    killed = tmp_path / "killed.duckdb"
    code, printed = nightgraph(*NIGHT, "buy_and_hold", "--warehouse", str(undisturbed))
    assert code == 0, printed[-3000:]
    delays = random.Random(7)
    for step in STEPS:
        process = start(*NIGHT, "buy_and_hold", "--warehouse", str(killed))
        for line in process.stdout:
            if f"demo_stocks: {step}" in line:
                break
        else:
            pytest.fail(f"the night ended before it reached {step}")
        time.sleep(delays.uniform(0.0, 0.8))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    code, printed = nightgraph(*NIGHT, "buy_and_hold", "--warehouse", str(killed))
    assert code == 0, printed[-3000:]
    expected = contents(undisturbed)
    actual = contents(killed)
    assert expected.keys() == actual.keys()
    different = [name for name in expected if not expected[name].equals(actual[name])]
    assert not different
    assert len(expected["store.signals"]) == 2 * 12
