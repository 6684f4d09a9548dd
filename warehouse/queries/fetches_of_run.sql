-- fetches_of_run: what the run $run_id has asked of its market so far. One row per symbol.
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
