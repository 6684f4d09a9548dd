-- bar_events_between: events of $symbols at $venue with ts in [$start, $end) that were received at or before $received,
-- ordered by ts. Trades worth less than $least_value (price * size) are left out. Books are included only when
-- $least_value is 0. One row per (kind, symbol, ts, event_id).
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
    open_interest
FROM events
WHERE
    source = $source
    AND venue = $venue
    AND list_contains($symbols, symbol)
    AND ts >= $start
    AND ts < $end
    AND fetched_at <= $received
    AND (kind <> 'book' OR $least_value = 0)
    AND (kind <> 'trade' OR price * size >= $least_value)
ORDER BY ts, kind, symbol, event_id;
