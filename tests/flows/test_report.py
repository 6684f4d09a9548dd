"""The results that are printed after a night (the run for one as-of date), on a terminal of 80 columns.

The fixture ``published_warehouse`` is a warehouse with one published night, see conftest.py.
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


def printed_text(warehouse: Warehouse, **changes: object) -> str:
    """The printed results of one universe, on 80 columns; ``changes`` replace fields of the NightReport."""
    console = Console(file=io.StringIO(), width=80)
    fields = {"universe": "us_stocks", "night": date(2024, 6, 28), "source": "recorded", "state": "published"}
    show_universe(SimpleNamespace(**fields | {"message": "done", "seconds": STEPS} | changes), warehouse, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_leaderboard_and_signals_fit_80_columns(published_warehouse: Warehouse) -> None:
    text = printed_text(published_warehouse)
    assert "…" not in text
    assert "   1  s4d           -10.25   -10.50    -12.3%    +125.0%    -50.0%     123.4" in text
    assert "Champion: s4d, best" in text
    assert "AAA     LONG   HOLD         0.50  +5.00%  +1.00%  -2.00%" in text


def test_signals_are_printed_by_descending_absolute_weight(published_warehouse: Warehouse) -> None:
    text = printed_text(published_warehouse)
    assert text.index("AAA") < text.index("BBB") < text.index("CCC")


def test_signals_that_do_not_fit_in_the_table_are_counted(
    published_warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.report.SHOWN_SIGNALS", 1)  # of three signals
    text = printed_text(published_warehouse)
    assert "BBB" not in text
    assert "… and 2 more in signals_next_day" in text


def test_a_night_that_was_not_published_shows_why_and_no_tables(published_warehouse: Warehouse) -> None:
    text = printed_text(published_warehouse, state="blocked", message="the audit found 3 rows that differ")
    assert "us_stocks, night 2024-06-28, recorded: blocked\nthe audit found 3 rows that differ\n" in text
    assert "Leaderboard" not in text


def test_where_to_look_next_names_the_warehouse_unless_it_is_the_default(
    published_warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f'sql "SELECT * FROM leaderboard" --warehouse {published_warehouse.path}' in where_to_look_next(
        published_warehouse
    )
    monkeypatch.setenv("NIGHTLY_WAREHOUSE_URL", str(published_warehouse.path))
    assert "--warehouse" not in where_to_look_next(published_warehouse)
