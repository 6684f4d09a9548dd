"""Progress bars on a terminal, progress lines in a log, and step lines."""

from __future__ import annotations

import io
import logging
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from flows import progress as progress_module
from flows import terminal
from flows.progress import start_progress

REDRAW_S = 0.3  # rich redraws a bar ten times a second


def test_progress_is_logged_at_most_every_five_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock is read at the start, at each report, and again when a report logs. The reports come at 1, 6, 7, 12 s.
    clock_s = iter([0.0, 1.0, 6.0, 6.0, 7.0, 12.0, 12.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock_s))
    caplog.set_level(logging.INFO, "flows.progress")
    report = start_progress()
    for done in (1, 2, 3, 4):
        report(done, 4, "s4d folds")
    assert caplog.messages == ["s4d folds: 2 of 4", "s4d folds: 4 of 4"]


def test_a_bar_is_drawn_on_a_terminal_and_disappears_when_done() -> None:
    output = io.StringIO()
    with terminal.progress_bars(Console(file=output, force_terminal=True, width=100)) as start:
        report = start()
        report(1, 2, "s4d folds")
        time.sleep(REDRAW_S)
        assert "s4d folds" in output.getvalue()
        report(2, 2, "s4d folds")
        time.sleep(REDRAW_S)
        output.truncate(0)
        time.sleep(REDRAW_S)
        assert "s4d folds" not in output.getvalue()


def test_steps_and_warnings_are_printed_and_the_log_file_has_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("", "prefect", "prefect.flow_runs"):  # other tests may have imported Prefect, which adds its own
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    with terminal.log_to_screen(tmp_path / "night.log"):
        logging.getLogger("tasks.ledger").info("2024-06-28 simulated demo_stocks: ingest")
        logging.getLogger("tasks.graphs").info("87 rows")
        logging.getLogger("tasks.ingest").warning("2 symbols failed: AAA, BBB")
        logging.getLogger("prefect.flow_runs").error("Encountered an exception", exc_info=ValueError("inside"))
    logging.getLogger("tasks.ledger").info("after the block")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [re.sub(r"^ *[\d.]+ s  ", "", line) for line in captured.err.splitlines()]
    assert lines == ["2024-06-28 simulated demo_stocks: ingest", "2 symbols failed: AAA, BBB"]
    log = (tmp_path / "night.log").read_text()
    assert "tasks.graphs: 87 rows" in log
    assert "ValueError: inside" in log
    assert "after the block" not in log
