-- last_events: the newest ts, and the values of the newest event, of each kind and symbol at or after $since, for
-- $source at $venue. One row per (kind, symbol).
SELECT
    kind,
    symbol,
    max(ts) AS ts,
    arg_max(rate, ts) AS rate,
    arg_max(next_ts, ts) AS next_ts,
    arg_max(open_interest, ts) AS open_interest
FROM events
WHERE source = $source AND venue = $venue AND list_contains($symbols, symbol) AND ts >= $since
GROUP BY kind, symbol
ORDER BY kind, symbol;
