-- known_corporate_actions: dividends and splits that earlier nights had accepted by $clock. The runs $run_ids are left
-- out, because they are not validated yet. One row per (symbol, ts, kind).
SELECT
    symbol,
    ts,
    kind,
    value
FROM raw.corporate_actions AS r
WHERE
    source = $source AND universe = $universe AND fetched_at <= $clock AND NOT list_contains($run_ids, run_id)
    AND NOT EXISTS (
        SELECT
            1
        FROM store.quarantine AS q
        WHERE
            q.source = r.source AND q.universe = r.universe AND q.table_name = 'corporate_actions' AND q.night < $night
            AND q.symbol = r.symbol AND q.ts = r.ts AND q.fetched_at = r.fetched_at
    )
QUALIFY row_number() OVER (PARTITION BY symbol, ts, kind ORDER BY fetched_at DESC, rowid) = 1
ORDER BY symbol, ts, kind;
