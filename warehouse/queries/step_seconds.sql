-- step_seconds: wall seconds of the latest finished run of each step of one night. One row per step, in the order in
-- which they ran.
SELECT
    step,
    seconds
FROM store.step_runs
WHERE run_id = $run_id AND seconds IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY step ORDER BY started_at DESC) = 1
ORDER BY started_at;
