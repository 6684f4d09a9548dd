"""A night (the run for one as-of date) that was killed in any step and is run again ends with the same rows."""

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


def test_rows_of_a_night_killed_in_every_step_equal_uninterrupted_ones(
    start: StartProcess, nightgraph: RunCommand, contents: ReadContents, tmp_path: Path
) -> None:
    uninterrupted_file = tmp_path / "uninterrupted.duckdb"
    killed_file = tmp_path / "killed.duckdb"
    code, printed = nightgraph(*NIGHT, "--warehouse", str(uninterrupted_file))
    assert code == 0, printed[-3000:]
    rng = random.Random(7)
    for step in STEPS:
        process = start(*NIGHT, "--warehouse", str(killed_file))
        for line in process.stdout:
            if f"demo_stocks: {step}" in line:
                break
        else:
            pytest.fail(f"the night ended before it reached {step}")
        time.sleep(rng.uniform(0.0, 0.8))  # so that the kill comes at any point of the step
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    code, printed = nightgraph(*NIGHT, "--warehouse", str(killed_file))
    assert code == 0, printed[-3000:]
    expected = contents(uninterrupted_file)
    actual = contents(killed_file)
    assert expected.keys() == actual.keys()
    different_tables = [name for name in expected if not expected[name].equals(actual[name])]
    assert not different_tables
    assert len(expected["store.signals"]) == len(NETWORKS) * N_SYMBOLS
