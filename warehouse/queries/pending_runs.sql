-- pending_runs: runs whose raw rows the night $night has to validate: its own run, and the runs of earlier nights that
-- were blocked or ended before their verdict, back to the latest night that was accepted. One row per run.
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
