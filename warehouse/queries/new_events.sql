-- new_events: rows of the registered relation `arriving`, all with ts in [$start, $end], that are not stored yet for
-- $source and $venue, with the nodes they join; of repeats in `arriving` itself, one. One row per (kind, symbol, ts,
-- event_id).
SELECT
    arriving.*,
    CASE arriving.kind
        WHEN 'book' THEN 'book:' || arriving.symbol || if(bid_size >= ask_size, ':bid', ':ask')
        WHEN 'open_interest' THEN 'external:open_interest'
        ELSE arriving.kind || ':' || arriving.symbol
    END AS src,
    'asset:' || arriving.symbol AS dst
FROM arriving
ANTI JOIN (
    SELECT
        kind,
        symbol,
        ts,
        event_id
    FROM store.events
    WHERE source = $source AND venue = $venue AND ts >= $start AND ts <= $end
) AS stored USING (kind, symbol, ts, event_id)
QUALIFY row_number() OVER (PARTITION BY arriving.kind, arriving.symbol, arriving.ts, arriving.event_id) = 1
ORDER BY arriving.ts, arriving.kind, arriving.symbol, arriving.event_id;
