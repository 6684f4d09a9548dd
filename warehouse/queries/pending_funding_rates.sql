-- pending_funding_rates: the settlements of the runs $run_ids, each in its latest version; exact copies count once. One
-- row per (symbol, ts), more where one pull contradicts itself.
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
