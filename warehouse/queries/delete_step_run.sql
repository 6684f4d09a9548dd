-- delete_step_run: deletes the row of one run of a step.
DELETE FROM store.step_runs
WHERE run_id = $run_id AND step = $step AND started_at = $started_at;
