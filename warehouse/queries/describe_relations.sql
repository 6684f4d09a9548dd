-- describe_relations: comment of every table, view and table macro of the open database. One row per relation.
SELECT
    schema_name,
    view_name AS name,
    comment
FROM duckdb_views()
WHERE NOT internal AND database_name = current_database()
UNION ALL
SELECT
    schema_name,
    table_name,
    comment
FROM duckdb_tables()
WHERE NOT internal AND database_name = current_database()
UNION ALL
SELECT
    schema_name,
    function_name || '(' || array_to_string(parameters, ', ') || ')',
    comment
FROM duckdb_functions()
WHERE NOT internal AND database_name = current_database() AND function_type = 'table_macro'
ORDER BY schema_name, name;
