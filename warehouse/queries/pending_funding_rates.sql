-- pending_funding_rates: the funding settlements of the runs $run_ids, each in its latest version. Exact copies count
-- once. One row per (symbol, ts), or several where one pull has different rates for one key.
SELECT DISTINCT
    symbol,
    ts,
    rate,
    fetched_at,
    run_id
FROM raw.funding_rates
WHERE source = $source AND universe = $universe AND list_contains($run_ids, run_id)
QUALIFY rank() OVER (PARTITION BY symbol, ts ORDER BY fetched_at DESC) = 1
ORDER BY symbol, ts, rate;
