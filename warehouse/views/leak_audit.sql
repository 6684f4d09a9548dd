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

COMMENT ON VIEW main.leak_audit IS
    'Everything recomputed on truncated data and compared; a difference means the future leaked. Grain: night, source, universe, subject, cut';
COMMENT ON COLUMN main.leak_audit.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.leak_audit.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.leak_audit.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN main.leak_audit.subject IS 'What was recomputed';
COMMENT ON COLUMN main.leak_audit.cut IS 'UTC open of the last bar that was not hidden';
COMMENT ON COLUMN main.leak_audit.rows_compared IS 'Rows compared';
COMMENT ON COLUMN main.leak_audit.rows_different IS 'Rows that differ';
COMMENT ON COLUMN main.leak_audit.max_abs_difference IS 'Largest absolute difference';
COMMENT ON COLUMN main.leak_audit.passed IS 'True when no row differs';
COMMENT ON COLUMN main.leak_audit.message IS 'Verdict in words';
COMMENT ON COLUMN main.leak_audit.run_id IS 'Night that wrote the row, see nights';
