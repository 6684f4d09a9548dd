"""Every relation and every column has a comment, and the schema page shows them."""

from __future__ import annotations

import re

from warehouse.connect import Warehouse
from warehouse.migrate import WAREHOUSE_FOLDER
from warehouse.schema import describe_schema
from warehouse.tables import query_text
from warehouse.view_files import relations_read


def test_every_relation_has_a_comment(warehouse: Warehouse) -> None:
    with warehouse.read() as con:
        relations = con.execute(query_text("describe_relations")).fetchall()
    assert {schema for schema, *_ in relations} == {"raw", "store", "main"}
    assert [f"{schema}.{name}" for schema, name, comment in relations if not comment] == []
    assert ("main", "bars_as_of(knowledge_ts)") in {(schema, name) for schema, name, _ in relations}


def test_every_column_has_a_comment(warehouse: Warehouse) -> None:
    with warehouse.read() as con:
        columns = con.execute(query_text("describe_columns")).fetchall()
    assert len(columns) > 400  # about 440 columns today; far fewer would mean that the query misses a schema
    assert [f"{schema}.{table}.{name}" for schema, table, name, _, comment in columns if not comment] == []


def test_a_view_and_its_table_have_the_same_comment_for_the_same_column(warehouse: Warehouse) -> None:
    with warehouse.read() as con:
        columns = con.execute(query_text("describe_columns")).fetchall()
    comments = {(schema, relation, name): comment for schema, relation, name, _, comment in columns}
    for (schema, view, name), comment in comments.items():
        if schema == "main" and ("store", view, name) in comments:
            assert comment == comments["store", view, name], f"{view}.{name}"


def test_no_view_file_repeats_a_comment_that_it_inherits(warehouse: Warehouse) -> None:
    with warehouse.read() as con:
        columns = con.execute(query_text("describe_columns")).fetchall()
    comments = {(f"{schema}.{table}", name): comment for schema, table, name, _, comment in columns}
    for file in (WAREHOUSE_FOLDER / "views").glob("*.sql"):
        text = file.read_text()
        for name, comment in re.findall(rf"COMMENT ON COLUMN main\.{file.stem}\.(\w+) IS\s+'(.*)';", text):
            source, *_ = relations_read(text)
            assert comments.get((source, name)) != comment.replace("''", "'"), f"{file.stem}.{name}"


def test_the_page_shows_grain_columns_types_and_macros(warehouse: Warehouse) -> None:
    with warehouse.read() as con:
        page = describe_schema(con)
    assert page.index("# main:") < page.index("# store:") < page.index("# raw:")
    assert "## bars\n" in page
    assert "| total_return | DOUBLE | (close + dividends since the bar before)" in page
    assert "| expected_return | MAP(INTEGER, DOUBLE) | Expected" in page
    assert "## bars_as_of(knowledge_ts)\n" in page
