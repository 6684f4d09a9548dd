-- trial_exists: one row when the trial is stored, none otherwise.
SELECT
    trial_id
FROM store.trials
WHERE source = $source AND universe = $universe AND trial_id = $trial_id;
