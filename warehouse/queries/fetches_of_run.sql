-- fetches_of_run: the result of each download of the run $run_id so far. One row per symbol.
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
