"""The demo night as users run it: its tables, its output, and that running it again changes no row.

A night is the run for one as-of date; the published copy is the read-only file that users open. Ids:
.github/sources.md.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.end_to_end.command_line import ReadContents, RunCommand

RELATIONS = [  # the contract: tables and views of the published copy that users may rely on
    "bars",
    "corporate_actions",
    "funding_rates",
    "universe_members",
    "features",
    "graph_snapshots",
    "graph_edges",
    "trials",
    "folds",
    "predictions",
    "backtests",
    "equity_curves",
    "positions",
    "metrics",
    "leaderboard",
    "model_registry",
    "signals",
    "signals_next_day",
    "checks",
    "leak_audit",
    "nights",
]


@pytest.fixture(scope="module")
def published(night: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection to the published copy."""
    with duckdb.connect(str(night.with_name("warehouse.published.duckdb")), read_only=True) as con:
        con.execute("SET TimeZone='UTC'")
        yield con


def scalar(con: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """The single value of a query."""
    return con.execute(sql).fetchone()[0]


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_of_the_contract_has_rows(published: duckdb.DuckDBPyConnection, relation: str) -> None:
    assert scalar(published, f"SELECT count(*) FROM {relation}") > 0


def test_every_universe_is_published_with_signals_for_its_next_session(published: duckdb.DuckDBPyConnection) -> None:
    """S4-51: one command runs a universe of Yahoo and one of Bybit."""
    rows = published.execute(
        "SELECT universe, state, for_session::VARCHAR FROM nights WHERE published_at IS NOT NULL ORDER BY 1"
    ).fetchall()
    assert rows == [("demo_crypto", "published", "2024-06-29"), ("demo_stocks", "published", "2024-07-01")]
    sessions = published.execute("SELECT DISTINCT universe, for_session::VARCHAR FROM signals_next_day ORDER BY 1")
    assert sessions.fetchall() == [("demo_crypto", "2024-06-29"), ("demo_stocks", "2024-07-01")]


def test_the_leaderboard_has_every_model_and_buy_and_hold(published: duckdb.DuckDBPyConnection) -> None:
    models = published.execute("SELECT list_sort(list(model)) FROM leaderboard GROUP BY universe").fetchall()
    assert models == [(["buy_and_hold", "equal_weight", "lstm", "mamba", "momentum", "s4d", "ssm_gnn"],)] * 2


def test_every_row_of_a_simulated_night_has_source_simulated(published: duckdb.DuckDBPyConnection) -> None:
    tables = published.execute(
        "SELECT table_name FROM duckdb_columns() WHERE column_name = 'source' AND schema_name = 'store'"
    )
    for (name,) in tables.fetchall():
        assert {s for (s,) in published.execute(f"SELECT DISTINCT source FROM store.{name}").fetchall()} <= {
            "simulated"
        }


def test_no_prediction_is_made_by_a_fold_that_trained_on_its_bar(published: duckdb.DuckDBPyConnection) -> None:
    assert (
        scalar(
            published,
            "SELECT count(*) FROM predictions p JOIN folds f USING (source, universe, trial_id, fold) "
            "WHERE p.ts < f.test_start OR f.last_label_end >= p.ts OR p.ts >= f.test_end",
        )
        == 0
    )


def test_the_keys_of_the_contract_are_unique(published: duckdb.DuckDBPyConnection) -> None:
    keys = {
        "bars": "source, universe, symbol, interval, ts",
        "features": "source, universe, symbol, interval, ts",
        "graph_edges": "source, universe, graph, as_of, src, dst",
        "predictions": "source, trial_id, symbol, ts, horizon_bars",
        "equity_curves": "backtest_id, ts",
        "leaderboard": "source, night, universe, model",
        "signals": "source, night, universe, model, symbol",
        "checks": "source, universe, night, table_name, rule",
    }
    for relation, key in keys.items():
        duplicates = scalar(
            published, f"SELECT count(*) FROM (SELECT 1 FROM {relation} GROUP BY {key} HAVING count(*) > 1)"
        )
        assert duplicates == 0, relation


def test_running_the_night_again_changes_no_row(night: Path, nightgraph: RunCommand, contents: ReadContents) -> None:
    before = contents(night)
    code, printed = nightgraph("night", "--as-of", "2024-06-28", "--warehouse", str(night))
    assert code == 0, printed
    after = contents(night)
    assert [name for name in before if not before[name].equals(after[name])] == []


def test_the_sql_command_prints_csv_of_the_published_copy(night: Path, nightgraph: RunCommand) -> None:
    sql = "SELECT symbol, side, weight FROM signals_next_day WHERE universe = 'demo_stocks'"
    code, printed = nightgraph("sql", sql, "--csv", "--warehouse", str(night))
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert code == 0
    assert len(rows) == 12
    assert {row["side"] for row in rows} <= {"LONG", "SHORT", "FLAT"}


def test_other_settings_for_a_published_night_are_refused(night: Path, nightgraph: RunCommand) -> None:
    code, printed = nightgraph(
        "night", "--as-of", "2024-06-28", "--universe", "demo_stocks", "--model", "s4d", "--warehouse", str(night)
    )
    assert code != 0
    assert "published with other settings" in printed
    assert "Traceback" not in printed
