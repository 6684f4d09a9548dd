-- quarantine: rows that a validation rule kept out. One row per (night, source, universe, table_name, symbol, ts,
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

COMMENT ON VIEW main.quarantine IS
    'Rows that a validation rule kept out. Grain: night, source, universe, table_name, symbol, ts, rule';
COMMENT ON COLUMN main.quarantine.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.quarantine.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.quarantine.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN main.quarantine.table_name IS 'Table the row was meant for';
COMMENT ON COLUMN main.quarantine.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.quarantine.ts IS 'UTC time of the row';
COMMENT ON COLUMN main.quarantine.rule IS 'Rule it failed';
COMMENT ON COLUMN main.quarantine.reason IS 'Why it failed, in words';
COMMENT ON COLUMN main.quarantine.contents IS 'The whole row, as JSON';
COMMENT ON COLUMN main.quarantine.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN main.quarantine.run_id IS 'Night that wrote the row, see nights';
