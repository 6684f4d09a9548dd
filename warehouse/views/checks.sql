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
