-- events: events of an exchange, each once: trades, liquidations, books, funding and open interest. One row per
-- (source, venue, kind, symbol, ts, event_id).
CREATE OR REPLACE VIEW main.events AS
SELECT
    source,
    venue,
    kind,
    symbol,
    ts,
    event_id,
    src,
    dst,
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
    fetched_at,
    run_id
FROM store.events;
