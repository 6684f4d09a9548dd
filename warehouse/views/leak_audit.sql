-- leak_audit: everything recomputed on truncated data and compared; a difference means the future leaked. One row per
-- (night, source, universe, subject, cut).
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
