-- known_bars: closes in [$start, $clock] that earlier nights had accepted by $clock. The runs $run_ids are left out,
-- because they are not validated yet. The query reads raw.bars and not store.bars, so that a night that runs again
-- reads the same rows. One row per (symbol, ts).
SELECT
    symbol,
    ts,
    close
FROM raw.bars AS r
WHERE
    source = $source AND universe = $universe AND interval = $interval
    AND ts >= $start AND ts <= $clock AND fetched_at <= $clock AND NOT list_contains($run_ids, run_id)
    AND NOT EXISTS (
        SELECT
            1
        FROM store.quarantine AS q
        WHERE
            q.source = r.source AND q.universe = r.universe AND q.table_name = 'bars' AND q.night < $night
            AND q.symbol = r.symbol AND q.ts = r.ts AND q.fetched_at = r.fetched_at
    )
QUALIFY row_number() OVER (PARTITION BY symbol, ts ORDER BY fetched_at DESC, rowid) = 1
ORDER BY symbol, ts;
