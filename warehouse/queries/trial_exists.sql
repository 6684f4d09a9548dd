-- trial_exists: the id of a trial when it is stored. At most one row.
SELECT
    trial_id
FROM store.trials
WHERE source = $source AND universe = $universe AND trial_id = $trial_id;
