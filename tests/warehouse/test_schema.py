"""Every relation and every column says what it is, and the schema page repeats it."""

from __future__ import annotations

from warehouse.schema import describe
from warehouse.tables import query_text


def test_every_relation_has_a_comment(warehouse):
    with warehouse.read() as con:
        relations = con.execute(query_text("describe_relations")).fetchall()
    assert {schema for schema, *_ in relations} == {"raw", "store", "main"}
    assert [f"{schema}.{name}" for schema, name, comment in relations if not comment] == []
    assert ("main", "bars_as_of(knowledge_ts)") in {row[:2] for row in relations}


def test_every_column_has_a_comment(warehouse):
    with warehouse.read() as con:
        columns = con.execute(query_text("describe_columns")).fetchall()
    assert len(columns) > 400
    assert [f"{schema}.{table}.{name}" for schema, table, name, _, comment in columns if not comment] == []


def test_views_and_their_tables_say_the_same_of_a_column_that_is_passed_on(warehouse):
    with warehouse.read() as con:
        said = {row[:3]: row[4] for row in con.execute(query_text("describe_columns")).fetchall()}
    for (schema, view, name), comment in said.items():
        if schema == "main" and ("store", view, name) in said:
            assert comment == said["store", view, name], f"{view}.{name}"


def test_the_page_shows_grain_columns_types_and_macros(warehouse):
    with warehouse.read() as con:
        page = describe(con)
    assert page.index("# main:") < page.index("# store:") < page.index("# raw:")
    assert "## bars\n" in page
    assert "| total_return | DOUBLE | (close + dividends since the bar before)" in page
    assert "| expected_return | MAP(INTEGER, DOUBLE) | Expected" in page
    assert "## bars_as_of(knowledge_ts)\n" in page
