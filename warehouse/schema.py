"""The schema page, made of the comments in the database."""

from __future__ import annotations

from itertools import groupby

import duckdb

from warehouse.tables import query_text

ROOMS = {
    "main": "What users query",
    "store": "The night's tables behind the views",
    "raw": "Every version of every row as it was received",
}


def describe(con: duckdb.DuckDBPyConnection) -> str:
    """Markdown of every relation of ``main``, ``store`` and ``raw``: its comment, then a table of its columns."""
    columns = {
        key: list(rows)
        for key, rows in groupby(con.execute(query_text("describe_columns")).fetchall(), key=lambda column: column[:2])
    }
    relations = con.execute(query_text("describe_relations")).fetchall()
    lines = []
    for schema, title in ROOMS.items():
        lines += [f"# {schema}: {title}", ""]
        for name, comment in (row[1:] for row in relations if row[0] == schema):
            lines += [f"## {name}", "", comment or "", ""]
            if (schema, name) in columns:
                lines += ["| column | type | meaning |", "|---|---|---|"]
                lines += [f"| {name} | {kind} | {text or ''} |" for _, _, name, kind, text in columns[schema, name]]
                lines.append("")
    return "\n".join(lines)
