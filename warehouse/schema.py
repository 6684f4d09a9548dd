"""The schema page: Markdown that is built from the comments in the database."""

from __future__ import annotations

import duckdb

from warehouse.tables import query_text

SCHEMA_TITLES = {
    "main": "What users query",
    "store": "The night's tables behind the views",
    "raw": "Every version of every row as it was received",
}


def describe_schema(con: duckdb.DuckDBPyConnection) -> str:
    """Markdown with the comment of every relation in ``main``, ``store`` and ``raw``, and a table of its columns."""
    column_lines: dict[tuple[str, str], list[str]] = {}
    for schema, relation, column, data_type, comment in con.execute(query_text("describe_columns")).fetchall():
        line = f"| {column} | {data_type} | {comment or ''} |"
        column_lines.setdefault((schema, relation), []).append(line)
    relations = con.execute(query_text("describe_relations")).fetchall()
    lines = []
    for title_schema, title in SCHEMA_TITLES.items():
        lines += [f"# {title_schema}: {title}", ""]
        for schema, relation, comment in relations:
            if schema != title_schema:
                continue
            lines += [f"## {relation}", "", comment or "", ""]
            if (schema, relation) in column_lines:
                lines += ["| column | type | meaning |", "|---|---|---|", *column_lines[schema, relation], ""]
    return "\n".join(lines)
