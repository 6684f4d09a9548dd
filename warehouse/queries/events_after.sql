-- events_after: events of $symbols at $venue that were received after $received, in the order of receipt. Events that
-- the run $archived wrote are left out. One row per (kind, symbol, ts, event_id).
SELECT
    kind,
    symbol,
    ts,
    event_id,
    price,
    size,
    side,
    bid,
    ask,
    bid_size,
    ask_size,
    rate,
    next_ts,
    open_interest,
    fetched_at
FROM events
WHERE
    source = $source
    AND venue = $venue
    AND list_contains($symbols, symbol)
    AND fetched_at > $received
    AND run_id <> $archived
ORDER BY fetched_at, ts, kind, symbol, event_id;
