-- fetches_of_run: how the downloads of the run $run_id have gone so far. One row per symbol.
SELECT
    symbol,
    status,
    error,
    bars,
    restated,
    fetched_at
FROM raw.fetches
WHERE run_id = $run_id
ORDER BY symbol;
