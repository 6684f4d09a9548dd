"""The command line `nightgraph`: its output and its exit codes.

The fixtures are in conftest.py: ``published_warehouse`` has one published night (the run for one as-of date) and its
published copy, ``empty_warehouse`` has no nights.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flows import cli, sql
from warehouse.connect import Warehouse

REPOSITORY = Path(__file__).parents[2]
N_SIGNALS = 3  # of the published night, see conftest.py
Command = Callable[..., tuple[int, str, str]]  # arguments → exit code, standard output, standard error


@pytest.fixture
def nightgraph(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """nightgraph(*arguments): runs the command in this process; returns exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nightgraph", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


def query_output(nightgraph: Command, warehouse: Warehouse, statement: str, *options: str) -> str:
    """Standard output of `nightgraph sql`. Asserts exit code 0 and nothing on standard error."""
    code, out, err = nightgraph("sql", statement, "--warehouse", str(warehouse.path), *options)
    assert (code, err) == (0, "")
    return out


def test_sql_prints_a_table_of_the_published_copy(nightgraph: Command, published_warehouse: Warehouse) -> None:
    output = query_output(
        nightgraph, published_warehouse, "SELECT symbol, side, weight, stop_price FROM signals_next_day ORDER BY 1"
    )
    assert [line.split() for line in output.splitlines()] == [
        ["symbol", "side", "weight", "stop_price"],
        ["AAA", "LONG", "0.05"],
        ["BBB", "SHORT", "-0.02"],
        ["CCC", "FLAT", "0"],
    ]


def test_sql_csv_is_rfc_4180_with_maps_as_json(nightgraph: Command, published_warehouse: Warehouse) -> None:
    statement = (
        "SELECT symbol, 'a \"b\", c' AS text, expected_return, as_of, stop_price, true AS yes FROM signals_next_day"
    )
    output = query_output(nightgraph, published_warehouse, f"{statement} ORDER BY symbol LIMIT 1", "--csv")
    header, row = csv.reader(io.StringIO(output))
    assert header == ["symbol", "text", "expected_return", "as_of", "stop_price", "yes"]
    assert row == ["AAA", 'a "b", c', '{"1": 0.01, "5": -0.02}', "2024-06-29T00:00:00+00:00", "", "true"]
    assert output.startswith("symbol,text,expected_return,as_of,stop_price,yes\r\n")


def test_sql_json_has_iso_times_and_null_where_json_has_no_number(
    nightgraph: Command, published_warehouse: Warehouse
) -> None:
    statement = (
        "SELECT symbol, as_of, for_session, expected_return, [1, 2] AS list, 'nan'::DOUBLE AS nan FROM signals_next_day"
    )
    rows = json.loads(query_output(nightgraph, published_warehouse, f"{statement} ORDER BY symbol", "--json"))
    first_row, *_ = rows
    assert len(rows) == N_SIGNALS
    assert first_row == {
        "symbol": "AAA",
        "as_of": "2024-06-29T00:00:00+00:00",
        "for_session": "2024-07-01",
        "expected_return": {"1": 0.01, "5": -0.02},
        "list": [1, 2],
        "nan": None,
    }


def test_sql_json_of_no_rows_is_an_empty_array(nightgraph: Command, published_warehouse: Warehouse) -> None:
    assert json.loads(query_output(nightgraph, published_warehouse, "SELECT 1 AS a WHERE false", "--json")) == []


def test_sql_table_has_the_first_rows_and_the_number_of_the_others(
    nightgraph: Command, published_warehouse: Warehouse
) -> None:
    n_rows = 1000
    output = query_output(nightgraph, published_warehouse, f"SELECT unnest(range({n_rows})) AS n")
    assert f"… and {n_rows - sql.SHOWN_ROWS} more rows; --csv and --json print all" in output
    values = [int(line) for line in output.splitlines()[1:-1]]
    assert values == list(range(sql.SHOWN_ROWS))


def test_sql_csv_has_all_rows_of_a_result_larger_than_one_batch(
    nightgraph: Command, published_warehouse: Warehouse
) -> None:
    n_rows = 2 * sql.BATCH_ROWS + 5000
    output = query_output(nightgraph, published_warehouse, f"SELECT unnest(range({n_rows})) AS n", "--csv")
    header, *lines = output.splitlines()
    assert (header, len(lines)) == ("n", n_rows)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("SELEC 1", 'error: Parser Error: syntax error at or near "SELEC"'),
        ("SELECT nope FROM signals", 'error: Binder Error: Referenced column "nope" not found'),
        ("DELETE FROM store.signals", "read-only"),
        ("", "error: the statement returns no rows"),
    ],
)
def test_sql_that_duckdb_refuses_is_one_line_and_exit_code_1(
    nightgraph: Command, published_warehouse: Warehouse, statement: str, message: str
) -> None:
    code, out, err = nightgraph("sql", statement, "--warehouse", str(published_warehouse.path))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_sql_now_reads_the_warehouse_itself(nightgraph: Command, published_warehouse: Warehouse) -> None:
    with published_warehouse.write("a stream") as con:
        con.execute("UPDATE store.signals SET confidence = 0.75")
    for options, confidence in (([], "0.5"), (["--now"], "0.75")):
        output = query_output(
            nightgraph, published_warehouse, "SELECT DISTINCT confidence FROM signals", "--csv", *options
        )
        assert output.split() == ["confidence", confidence]


def test_sql_now_releases_the_lock_of_the_warehouse_before_it_writes_its_output(published_warehouse: Warehouse) -> None:
    written_texts = []

    class OutputThatNeedsTheLock(io.StringIO):
        def write(self, text: str) -> int:
            with replace(published_warehouse, lock_timeout_s=0.1).write("a stream"):
                written_texts.append(text)
            return len(text)

    statement = "SELECT DISTINCT confidence FROM signals"
    sql.run_query(published_warehouse, statement, "csv", OutputThatNeedsTheLock(), Console(), now=True)
    assert written_texts == ["confidence\r\n", "0.5\r\n"]


def test_sql_before_the_first_publish_fails_with_advice(nightgraph: Command, empty_warehouse: Warehouse) -> None:
    code, _, err = nightgraph("sql", "SELECT 1", "--warehouse", str(empty_warehouse.path))
    assert code == 1
    assert err == f"error: no published copy at {empty_warehouse.published}; run a night to its end first\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["night", "--source", "martian"], "error: source: Input should be 'simulated', 'recorded' or 'live'"),
        (["night", "--as-of", "2024-13-01"], "2024-13-01"),
        (["night", "--source", "recorded"], "--tape"),
        (["night", "--source", "recorded", "--tape", "/no/such/folder"], "/no/such/folder"),
        (["night", "--tape", "."], "--source recorded"),
        (["night", "--warehouse", "postgres://host/db"], "postgres://host/db"),
        (["sql", "SELECT 1", "--csv", "--json"], "--csv or --json"),
        (["sql"], "Missing argument"),
        (["export", "s4d"], "Missing option"),
        (["export", "s4d", "--universe", "us_stocks", "--out", "x", "--bars", "0"], "--bars"),
        (["macro", "--tape", "."], "--fred"),
        (["macro", "--tape", ".", "--fred", "/no/such/file"], "/no/such/file"),
        (["nought"], "No such command"),
    ],
)
def test_bad_input_is_exit_code_2_and_no_traceback(nightgraph: Command, arguments: list[str], message: str) -> None:
    code, out, err = nightgraph(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_export_of_a_model_without_a_published_night_fails_with_advice(
    nightgraph: Command, published_warehouse: Warehouse, tmp_path: Path
) -> None:
    options = ("--universe", "us_stocks", "--out", str(tmp_path / "out"), "--warehouse", str(published_warehouse.path))
    code, out, err = nightgraph("export", "lstm", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: no published night of us_stocks has a fold of lstm; run one to its end")
    assert not (tmp_path / "out").exists()


def test_an_invalid_setting_is_named(nightgraph: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTLY_INGEST__THREADS", "0")
    code, _, err = nightgraph("doctor")
    assert code == 2
    assert err.startswith("error: invalid settings: ingest.threads: ")


def test_an_unexpected_error_is_shown_with_its_traceback_and_a_request_to_report_it(
    nightgraph: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "run_checks", lambda warehouse, home: 1 / 0)  # a defect of the program
    code, _, err = nightgraph("doctor")
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "please report" in err.splitlines()[-1]


def test_schema_documents_views_and_macros(nightgraph: Command) -> None:
    code, out, _ = nightgraph("schema")
    assert code == 0
    for relation in ("bars", "bars_as_of(knowledge_ts)", "signals_next_day", "leaderboard", "quarantine", "nights"):
        assert f"## {relation}\n" in out


def test_help_lists_the_exit_codes(nightgraph: Command) -> None:
    code, out, _ = nightgraph("night", "--help")
    assert code == 0
    assert "Exit codes: 0 success, 1 failure, 2" in " ".join(out.split())


def test_a_query_imports_neither_torch_nor_prefect(published_warehouse: Warehouse) -> None:
    program = (
        "import sys; from flows import cli\ntry: cli.main()\nfinally: print({'torch', 'prefect'} & set(sys.modules))"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "sql",
        "SELECT 1 AS one",
        "--csv",
        "--warehouse",
        str(published_warehouse.path),
    ]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines() == ["one", "1", "set()"]


def test_a_reader_of_the_output_that_stops_early_causes_no_error(published_warehouse: Warehouse) -> None:
    statement = f"'SELECT unnest(range(100000)) AS n' --csv --warehouse {published_warehouse.path}"
    command = f"{sys.executable} -m flows.cli sql {statement} | head -1"
    process = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "n"
    assert process.stderr == ""


def test_ctrl_c_is_recognised_when_a_library_raises_another_error_for_it() -> None:
    caused_by_interrupt = RuntimeError("Query interrupted")
    caused_by_interrupt.__cause__ = KeyboardInterrupt()
    assert cli.is_interrupt(caused_by_interrupt)
    assert not cli.is_interrupt(RuntimeError("Query interrupted"))
