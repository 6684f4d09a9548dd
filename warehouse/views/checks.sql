-- checks: verdict of every validation rule. One row per (night, source, universe, table_name, rule).
CREATE OR REPLACE VIEW main.checks AS
SELECT
    source,
    universe,
    night,
    table_name,
    rule,
    policy,
    passed,
    rows_checked,
    rows_failed,
    failing_keys,
    message,
    run_id
FROM store.checks;

COMMENT ON VIEW main.checks IS 'Verdict of every validation rule. Grain: night, source, universe, table_name, rule';
COMMENT ON COLUMN main.checks.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.checks.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.checks.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN main.checks.table_name IS 'Table the rule looks at';
COMMENT ON COLUMN main.checks.rule IS 'Name of the rule';
COMMENT ON COLUMN main.checks.policy IS 'What a failure does: block (the night), quarantine or flag (the rows)';
COMMENT ON COLUMN main.checks.passed IS 'True when no row failed';
COMMENT ON COLUMN main.checks.rows_checked IS 'Rows looked at: what the night received';
COMMENT ON COLUMN main.checks.rows_failed IS 'Rows that failed';
COMMENT ON COLUMN main.checks.failing_keys IS 'Keys of failing rows, as JSON';
COMMENT ON COLUMN main.checks.message IS 'Verdict in words';
COMMENT ON COLUMN main.checks.run_id IS 'Night that wrote the row, see nights';
