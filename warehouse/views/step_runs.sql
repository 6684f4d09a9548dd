-- step_runs: wall times of each run of each step of each night, for operation only. One row per (night, source,
-- universe, step, started_at).
CREATE OR REPLACE VIEW main.step_runs AS
SELECT
    night,
    source,
    universe,
    run_id,
    step,
    state,
    started_at,
    finished_at,
    seconds,
    detail
FROM store.step_runs;
