-- new_events: the rows of the registered relation `arriving` that are not stored yet for $source and $venue. Every ts
-- of `arriving` must lie in [$start, $end]. Of rows with the same key, one is returned. src and dst are the two graph
-- nodes that the event joins. One row per (kind, symbol, ts, event_id).
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
