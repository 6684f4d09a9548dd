-- leak_audit: results recomputed on truncated data and compared with the stored ones. A difference means that a result
-- used future data. One row per (night, source, universe, subject, cut).
CREATE OR REPLACE VIEW main.leak_audit AS
SELECT
    source,
    universe,
    night,
    subject,
    cut,
    rows_compared,
    rows_different,
    max_abs_difference,
    passed,
    message,
    run_id
FROM store.leak_audit;
