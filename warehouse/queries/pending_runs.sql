-- pending_runs: the runs whose raw rows the night $night must validate. These are its own run $run_id and the runs of
-- all nights after the latest accepted night: they were blocked, or ended before validation. One row per run.
WITH accepted AS (
    SELECT
        night
    FROM store.checks
    WHERE source = $source AND universe = $universe AND night < $night
    GROUP BY night
    HAVING bool_and(passed OR policy <> 'block')
)
SELECT DISTINCT
    run_id
FROM raw.fetches
WHERE
    source = $source AND universe = $universe AND night <= $night
    AND night > coalesce((SELECT max(night) FROM accepted), DATE '0001-01-01')
UNION
SELECT
    $run_id
ORDER BY run_id;
