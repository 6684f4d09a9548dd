-- known_settlements: funding settlements that earlier nights had accepted by $clock. The runs $run_ids are left out,
-- because they are not validated yet. One row per (symbol, ts).
SELECT DISTINCT
    symbol,
    ts
FROM raw.funding_rates AS r
WHERE
    source = $source AND universe = $universe AND fetched_at <= $clock
    AND NOT list_contains($run_ids, run_id)
    AND NOT EXISTS (
        SELECT
            1
        FROM store.quarantine AS q
        WHERE
            q.source = r.source AND q.universe = r.universe AND q.table_name = 'funding_rates' AND q.night < $night
            AND q.symbol = r.symbol AND q.ts = r.ts AND q.fetched_at = r.fetched_at
    )
ORDER BY symbol, ts;
