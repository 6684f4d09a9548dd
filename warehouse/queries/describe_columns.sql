-- describe_columns: type and comment of every column of the open database. One row per column, in the column order of
-- its table.
SELECT
    schema_name,
    table_name,
    column_name,
    data_type,
    comment
FROM duckdb_columns()
WHERE NOT internal AND database_name = current_database()
ORDER BY schema_name, table_name, column_index;
