-- delete_step_run: removes the row of one attempt at a step.
DELETE FROM store.step_runs
WHERE run_id = $run_id AND step = $step AND started_at = $started_at;
