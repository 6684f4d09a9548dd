-- step_runs: when each step of each night ran, in wall time; operation only. One row per (night, source, universe,
-- step, started_at).
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
