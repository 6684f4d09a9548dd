"""The command `nightgraph macro`: its output and its report file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import macro
from models.training.regimes import RegimeConfig
from tasks.macro import MacroReport

ROW = {"model": "mamba", "accuracy": 0.5, "low": 0.4, "high": 0.6, "seeds": 2, "parameters": 1234, "seconds": 1.5}
REPORT = MacroReport([ROW], {"transformer": (0.01, -0.02, 0.04)}, ["label: the coming [21] sessions"])


def test_table_setting_and_verdict_are_printed_and_the_markdown_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    received: dict[str, Any] = {}

    def fake_regimes(fred: Path, tape: Path, config: RegimeConfig, on_fold: Callable[[int, int], None]) -> MacroReport:
        received.update(fred=fred, tape=tape, seeds=config.seeds)
        on_fold(1, 8)
        return REPORT

    monkeypatch.setattr(macro, "macro_regimes", fake_regimes)  # the real comparison takes minutes
    markdown_file = tmp_path / "report.md"
    macro.run_macro(Path("fred"), Path("tape"), [3, 5], markdown_file, Console(width=160))
    captured = capsys.readouterr()
    assert received == {"fred": Path("fred"), "tape": Path("tape"), "seeds": (3, 5)}
    assert "fold 1 of 8" in captured.err
    assert ["mamba", "50.0%", "40.0%", "60.0%", "2", "1,234", "1.5"] in [
        line.split() for line in captured.out.split("\n")
    ]
    assert "label: the coming [21] sessions" in captured.out
    assert "source says +6.4 %, here +1.0 % [-2.0, +4.0]: no difference can be told; +6.4 % is outside" in captured.out
    assert markdown_file.read_text() == REPORT.markdown()
