-- quarantine: rows that a validation rule rejected. One row per (night, source, universe, table_name, symbol, ts,
-- rule).
CREATE OR REPLACE VIEW main.quarantine AS
SELECT
    source,
    universe,
    night,
    table_name,
    symbol,
    ts,
    rule,
    reason,
    contents,
    fetched_at,
    run_id
FROM store.quarantine;
