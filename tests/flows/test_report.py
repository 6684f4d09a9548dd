"""The report that is printed after a night (the run for one as-of date), on a terminal of 80 columns.

The fixture ``published`` is a warehouse with one published night, see conftest.py.
"""

from __future__ import annotations

import io
from datetime import date
from types import SimpleNamespace

import pytest
from rich.console import Console

from flows.report import show_universe, where_to_look_next
from warehouse.connect import Warehouse

STEPS = dict.fromkeys(("ingest", "validate", "graphs", "train", "backtest", "audit", "publish"), 12.3)


def report_text(warehouse: Warehouse, **changes: object) -> str:
    """The report on one universe, as printed on 80 columns; ``changes`` replace fields of the NightReport."""
    screen = Console(file=io.StringIO(), width=80)
    fields = {"universe": "us_stocks", "night": date(2024, 6, 28), "source": "recorded", "state": "published"}
    show_universe(SimpleNamespace(**fields | {"message": "done", "seconds": STEPS} | changes), warehouse, screen)
    return screen.file.getvalue()  # type: ignore[attr-defined]


def test_leaderboard_and_signals_fit_80_columns(published: Warehouse) -> None:
    text = report_text(published)
    assert "…" not in text
    assert "   1  s4d           -10.25   -10.50    -12.3%    +125.0%    -50.0%     123.4" in text
    assert "Champion: s4d, best" in text
    assert "AAA     LONG   HOLD         0.50  +5.00%  +1.00%  -2.00%" in text


def test_signals_come_with_the_largest_weights_first(published: Warehouse) -> None:
    text = report_text(published)
    assert text.index("AAA") < text.index("BBB") < text.index("CCC")


def test_signals_beyond_the_shown_ones_are_counted(published: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.report.SHOWN_SIGNALS", 1)
    text = report_text(published)
    assert "BBB" not in text
    assert "… and 2 more in signals_next_day" in text


def test_a_night_that_was_not_published_shows_why_and_no_tables(published: Warehouse) -> None:
    text = report_text(published, state="blocked", message="the audit found 3 rows that differ")
    assert "us_stocks, night 2024-06-28, recorded: blocked\nthe audit found 3 rows that differ\n" in text
    assert "Leaderboard" not in text


def test_where_to_look_next_names_the_warehouse_unless_it_is_the_default(
    published: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f'sql "SELECT * FROM leaderboard" --warehouse {published.path}' in where_to_look_next(published)
    monkeypatch.setenv("NIGHTLY_WAREHOUSE_URL", str(published.path))
    assert "--warehouse" not in where_to_look_next(published)
