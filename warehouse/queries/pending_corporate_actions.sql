-- pending_corporate_actions: the dividends and splits of the runs $run_ids, each in its latest version. Exact copies
-- count once. One row per (symbol, ts, kind), or several where one pull has different values for one key.
SELECT DISTINCT
    symbol,
    ts,
    kind,
    value,
    fetched_at,
    run_id
FROM raw.corporate_actions
WHERE source = $source AND universe = $universe AND list_contains($run_ids, run_id)
QUALIFY rank() OVER (PARTITION BY symbol, ts, kind ORDER BY fetched_at DESC) = 1
ORDER BY symbol, ts, kind, value;
