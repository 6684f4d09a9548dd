"""Bulk reads and writes of Arrow tables: slices are replaced, rows are added, and unsuitable rows are all refused."""

from __future__ import annotations

from datetime import UTC, date, datetime

import duckdb
import pyarrow as pa
import pytest

from warehouse.connect import Warehouse
from warehouse.errors import RowsRefusedError
from warehouse.tables import append, read_query, replace_slice, upsert

NIGHT = date(2024, 6, 28)
KEYS = {"source": "recorded", "universe": "us_stocks", "night": NIGHT}


def metrics(backtest: str, **values: float | None) -> pa.Table:
    """Rows for store.metrics: one per metric name and value, of one backtest."""
    columns = {"value": list(values.values()), "metric": list(values), "backtest_id": [backtest] * len(values)}
    return pa.table(columns, pa.schema({"value": pa.float64(), "metric": pa.string(), "backtest_id": pa.string()}))


def stored_metrics(con: duckdb.DuckDBPyConnection) -> list[tuple]:
    """(source, night, backtest_id, metric, value) of all stored metrics, sorted."""
    return con.execute("SELECT source, night, backtest_id, metric, value FROM store.metrics ORDER BY ALL").fetchall()


def test_a_slice_is_replaced_and_other_rows_stay(warehouse: Warehouse) -> None:
    with warehouse.write("write") as con:
        assert replace_slice(con, "store.metrics", metrics("b", sharpe=1.0, calmar=2.0), **KEYS, run_id="r") == 2
        simulated = {**KEYS, "source": "simulated"}
        replace_slice(con, "store.metrics", metrics("b", sharpe=9.0), **simulated, run_id="r")
        assert replace_slice(con, "store.metrics", metrics("b", sortino=3.0), **KEYS, run_id="r") == 1
        assert stored_metrics(con) == [
            ("recorded", NIGHT, "b", "sortino", 3.0),
            ("simulated", NIGHT, "b", "sharpe", 9.0),
        ]


def test_replacing_twice_with_the_same_rows_changes_nothing(warehouse: Warehouse) -> None:
    rows = metrics("b", sharpe=1.0, calmar=None)
    with warehouse.write("write") as con:
        replace_slice(con, "store.metrics", rows, **KEYS, run_id="r")
        stored_once = stored_metrics(con)
        replace_slice(con, "store.metrics", rows, **KEYS, run_id="r")
        assert stored_metrics(con) == stored_once


def test_a_slice_replaced_by_no_rows_is_empty(warehouse: Warehouse) -> None:
    with warehouse.write("write") as con:
        replace_slice(con, "store.metrics", metrics("b", sharpe=1.0), **KEYS, run_id="r")
        assert replace_slice(con, "store.metrics", metrics("b"), **KEYS, run_id="r") == 0
        assert stored_metrics(con) == []


def test_replacing_without_key_columns_is_refused(warehouse: Warehouse) -> None:
    with warehouse.write("write") as con, pytest.raises(ValueError, match="at least one key"):
        replace_slice(con, "store.metrics", metrics("b", sharpe=1.0))


def test_rows_outside_their_slice_are_refused(warehouse: Warehouse) -> None:
    rows = metrics("b", sharpe=1.0, calmar=2.0).append_column("source", pa.array(["recorded", "live"]))
    with (
        pytest.raises(
            RowsRefusedError, match=r"1 rows for store\.metrics have another source than the slice's 'recorded'"
        ),
        warehouse.write("write") as con,
    ):
        replace_slice(con, "store.metrics", rows, **KEYS, run_id="r")
    rows_of_slice = rows.set_column(rows.schema.get_field_index("source"), "source", pa.array(["recorded"] * 2))
    with warehouse.write("write") as con:
        replace_slice(con, "store.metrics", rows_of_slice, **KEYS, run_id="r")
        assert len(stored_metrics(con)) == 2


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (metrics("b", sharpe=1.0).rename_columns(["worth", "metric", "backtest_id"]), "worth"),
        (metrics("b", sharpe=1.0).drop_columns("backtest_id"), "NOT NULL"),
        (metrics("b", sharpe=1.0).set_column(0, "value", pa.array(["high"])), "high"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(
    warehouse: Warehouse, rows: pa.Table, cause: str
) -> None:
    with warehouse.write("write") as con:
        append(con, "store.metrics", metrics("before", sharpe=1.0), **KEYS, run_id="r")
    message = f"(?s)1 rows do not fit store.metrics: .*{cause}"
    with pytest.raises(RowsRefusedError, match=message), warehouse.write("write") as con:
        replace_slice(con, "store.metrics", rows, **KEYS, run_id="r")
    with warehouse.read() as con:
        assert [backtest for _, _, backtest, _, _ in stored_metrics(con)] == ["before"]


def test_an_upserted_row_replaces_the_row_with_its_key_and_others_stay(warehouse: Warehouse) -> None:
    with warehouse.write("write") as con:
        append(con, "store.metrics", metrics("b", sharpe=1.0, calmar=2.0), **KEYS, run_id="r")
        append(con, "store.metrics", metrics("b", sharpe=7.0), **{**KEYS, "source": "live"}, run_id="r")
        by = ("source", "universe", "night", "backtest_id", "metric")
        assert upsert(con, "store.metrics", metrics("b", sharpe=5.0, sortino=6.0), by, **KEYS, run_id="s") == 2
        assert [(source, metric, value) for source, _, _, metric, value in stored_metrics(con)] == [
            ("live", "sharpe", 7.0),
            ("recorded", "calmar", 2.0),
            ("recorded", "sharpe", 5.0),
            ("recorded", "sortino", 6.0),
        ]


@pytest.mark.parametrize("name", ["store.metrics; DROP TABLE store.metrics", "store.me trics", 'store."metrics"', ""])
def test_a_table_that_is_no_identifier_is_refused(warehouse: Warehouse, name: str) -> None:
    with warehouse.write("write") as con, pytest.raises(ValueError, match="not a table or column name"):
        append(con, name, metrics("b", sharpe=1.0))


def test_a_column_that_is_no_identifier_is_refused(warehouse: Warehouse) -> None:
    with warehouse.write("write") as con, pytest.raises(ValueError, match="not a table or column name"):
        append(con, "store.metrics", metrics("b", sharpe=1.0), **{"source = 'x' OR 1": 1})
    with warehouse.write("write") as con, pytest.raises(ValueError, match="not a table or column name"):
        append(con, "store.metrics", metrics("b", sharpe=1.0).rename_columns(["1 AS value", "metric", "backtest_id"]))


def test_values_are_never_executed_as_sql(warehouse: Warehouse) -> None:
    hostile = "x'; DROP TABLE store.metrics; --"
    with warehouse.write("write") as con:
        replace_slice(con, "store.metrics", metrics(hostile, sharpe=1.0), **{**KEYS, "source": hostile}, run_id="r")
        assert stored_metrics(con) == [(hostile, NIGHT, hostile, "sharpe", 1.0)]


def test_instants_maps_and_lists_are_read_as_they_were_written(warehouse: Warehouse) -> None:
    as_of = datetime(2024, 6, 28, 13, 30, 0, 123456, tzinfo=UTC)
    signal = pa.table(
        {
            "as_of": pa.array([as_of], pa.timestamp("us", "UTC")),
            "expected_return": pa.array([[(1, 0.5), (20, -0.25)]], pa.map_(pa.int32(), pa.float64())),
        }
    )
    constants = {"model": "m", "symbol": "A", "for_session": NIGHT, "side": "LONG", "label_3": "BUY", "label_5": "BUY"}
    numbers = {"confidence": 0.5, "expected_volatility": 0.1, "weight": 0.0, "close": 1.0}
    with warehouse.write("write") as con:
        append(con, "store.signals", signal, **KEYS, **constants, **numbers, run_id="r")
        append(con, "store.backtests", BACKTEST, source="live", universe="u", run_id="r")
        rows = con.execute("SELECT as_of, expected_return FROM store.signals").to_arrow_table()
        assert rows["as_of"].type == pa.timestamp("us", "UTC")
        assert rows.to_pylist() == [{"as_of": as_of, "expected_return": [(1, 0.5), (20, -0.25)]}]
        assert con.execute("SELECT trial_ids FROM store.backtests").fetchone() == (["t1", "t2"],)


BACKTEST = pa.table(
    {
        "backtest_id": ["b"],
        "model": ["m"],
        "trial_ids": [["t1", "t2"]],
        "fill": ["next_open"],
        "commission_bps": [1.0],
        "slippage_bps": [5.0],
        "limits": ["{}"],
    }
)


def test_a_query_that_does_not_exist_is_named(warehouse: Warehouse) -> None:
    with warehouse.read() as con, pytest.raises(FileNotFoundError, match=r"queries/no_such\.sql"):
        read_query(con, "no_such")
