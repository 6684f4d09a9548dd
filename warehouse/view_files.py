"""The files of warehouse/views: the order in which they are applied, and the comments that views inherit.

The *source* of a view is the first relation after ``FROM`` in its file. A view whose file has no comment on it gets the
comment of its source. A column without a comment gets the comment of the source's column with the same name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import duckdb

from warehouse.tables import query_text, sql_literal

RELATION_READ = re.compile(r"\b(?:FROM|JOIN) ((?:main|store|raw)\.\w+)")


def relations_read(text: str) -> list[str]:
    """The relations (``schema.name``) that a view's SQL text selects from, in the order of the text."""
    return RELATION_READ.findall(text)


def view_name(file: str) -> str:
    """Name of the view that a file creates: ``views/trades.sql`` creates ``main.trades``."""
    return f"main.{Path(file).stem}"


def view_dependencies(files: Mapping[str, str]) -> dict[str, list[str]]:
    """View file → the view files whose views it reads; ``files`` maps file names to SQL texts."""
    file_of_view = {view_name(file): file for file in files}
    return {
        file: [file_of_view[relation] for relation in relations_read(text) if relation in file_of_view]
        for file, text in files.items()
    }


def dependency_order(files: Mapping[str, str]) -> list[str]:
    """Names of the view files, each after the files that it depends on."""
    return list(TopologicalSorter(view_dependencies(files)).static_order())


def inherit_comments(con: duckdb.DuckDBPyConnection, files: Mapping[str, str]) -> None:
    """Copies missing comments of views and columns from their sources.

    ``files`` maps file names to SQL texts, in dependency order, so that a source has its comments before its view.
    """
    relations = {
        f"{schema}.{name}": comment
        for schema, name, comment in con.execute(query_text("describe_relations")).fetchall()
    }
    columns: dict[str, dict[str, str | None]] = {}
    for schema, relation, column, _, comment in con.execute(query_text("describe_columns")).fetchall():
        columns.setdefault(f"{schema}.{relation}", {})[column] = comment
    for file, text in files.items():
        view = view_name(file)
        sources = relations_read(text)
        if not sources or view not in relations:  # no source, or a macro: DuckDB keeps no comments on its columns
            continue
        inherited = relations.get(sources[0])
        if relations[view] is None and inherited is not None:
            con.execute(f"COMMENT ON VIEW {view} IS {sql_literal(inherited)}")
            relations[view] = inherited
        for column, comment in columns[view].items():
            inherited = columns.get(sources[0], {}).get(column)
            if comment is None and inherited is not None:
                con.execute(f'COMMENT ON COLUMN {view}."{column}" IS {sql_literal(inherited)}')
                columns[view][column] = inherited
