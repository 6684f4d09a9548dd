"""A night (the run for one as-of date) that is killed inside any step and run again ends like an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.command_line import ReadContents, RunCommand, StartProcess

pytestmark = pytest.mark.slow
STEPS = ("ingest", "validate", "graphs", "train", "backtest", "audit", "publish")
NETWORKS = ("s4d", "ssm_gnn")
NIGHT = (
    *("night", "--as-of", "2024-06-28", "--universe", "demo_stocks"),
    *(word for model in (*NETWORKS, "buy_and_hold") for word in ("--model", model)),
)
N_SYMBOLS = 12  # members of demo_stocks


def test_a_night_killed_inside_every_step_ends_with_the_rows_of_an_undisturbed_one(
    start: StartProcess, nightgraph: RunCommand, contents: ReadContents, tmp_path: Path
) -> None:
    undisturbed = tmp_path / "undisturbed.duckdb"
    killed = tmp_path / "killed.duckdb"
    code, printed = nightgraph(*NIGHT, "--warehouse", str(undisturbed))
    assert code == 0, printed[-3000:]
    delay_s = random.Random(7)
    for step in STEPS:
        process = start(*NIGHT, "--warehouse", str(killed))
        for line in process.stdout:
            if f"demo_stocks: {step}" in line:
                break
        else:
            pytest.fail(f"the night ended before it reached {step}")
        time.sleep(delay_s.uniform(0.0, 0.8))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    code, printed = nightgraph(*NIGHT, "--warehouse", str(killed))
    assert code == 0, printed[-3000:]
    expected = contents(undisturbed)
    actual = contents(killed)
    assert expected.keys() == actual.keys()
    different = [name for name in expected if not expected[name].equals(actual[name])]
    assert not different
    assert len(expected["store.signals"]) == len(NETWORKS) * N_SYMBOLS
