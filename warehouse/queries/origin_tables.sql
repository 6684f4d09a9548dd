-- origin_tables: the tables that a published copy takes from the warehouse `origin`. `sliced` is true for a table with
-- the columns source and universe, of which only one slice is copied. One row per table.
SELECT
    schema_name || '.' || table_name AS name,
    list_has_all(list(column_name), ['source', 'universe']) AS sliced
FROM duckdb_columns()
WHERE database_name = 'origin' AND schema_name IN ('raw', 'store') AND table_name <> 'migrations'
GROUP BY schema_name, table_name
ORDER BY name;
