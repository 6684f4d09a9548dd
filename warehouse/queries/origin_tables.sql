-- origin_tables: tables that a published copy takes from its warehouse, and whether it takes them in slices of source
-- and universe. One row per table.
SELECT
    schema_name || '.' || table_name AS name,
    list_has_all(list(column_name), ['source', 'universe']) AS sliced
FROM duckdb_columns()
WHERE database_name = 'origin' AND schema_name IN ('raw', 'store') AND table_name <> 'migrations'
GROUP BY schema_name, table_name
ORDER BY name;
