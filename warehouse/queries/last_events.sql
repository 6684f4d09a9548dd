-- last_events: the newest event of each kind and symbol of $source at $venue. One row per (kind, symbol).
SELECT
    kind,
    symbol,
    ts,
    rate,
    next_ts,
    open_interest,
    fetched_at
FROM events
WHERE source = $source AND venue = $venue AND list_contains($symbols, symbol)
QUALIFY row_number() OVER (PARTITION BY kind, symbol ORDER BY ts DESC, event_id DESC) = 1
ORDER BY kind, symbol;
