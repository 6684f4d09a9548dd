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

COMMENT ON VIEW main.step_runs IS
    'When each step of each night ran, in wall time; operation only. Grain: night, source, universe, step, started_at';
COMMENT ON COLUMN main.step_runs.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN main.step_runs.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.step_runs.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.step_runs.run_id IS 'Night that wrote the row, see nights';
COMMENT ON COLUMN main.step_runs.step IS
    'Step of the night: ingest, validate, graphs, train, backtest, audit or publish';
COMMENT ON COLUMN main.step_runs.state IS 'running, done or failed';
COMMENT ON COLUMN main.step_runs.started_at IS 'UTC wall time of its start';
COMMENT ON COLUMN main.step_runs.finished_at IS 'UTC wall time of its end; NULL while it runs or when it was killed';
COMMENT ON COLUMN main.step_runs.seconds IS 'Wall seconds it took';
COMMENT ON COLUMN main.step_runs.detail IS 'What went wrong; NULL when nothing did';
