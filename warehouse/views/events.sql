-- events: what happened on an exchange, each once: trades, liquidations, books, funding and open interest. One row per
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

COMMENT ON VIEW main.events IS
    'What happened on an exchange, each once. Grain: source, venue, kind, symbol, ts, event_id';
COMMENT ON COLUMN main.events.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.events.venue IS 'Exchange: bybit (linear perpetuals) or binance, see universes.provider';
COMMENT ON COLUMN main.events.kind IS 'trade, book, funding, open_interest or liquidation';
COMMENT ON COLUMN main.events.symbol IS 'Symbol as the venue names it';
COMMENT ON COLUMN main.events.ts IS 'UTC instant of the event by the exchange''s clock';
COMMENT ON COLUMN main.events.event_id IS
    'The exchange''s own number: trade id, update id of the book, sequence of the ticker; of a liquidation, its side, size and price';
COMMENT ON COLUMN main.events.src IS 'Node it comes from, with its type: trade:BTCUSDT, book:BTCUSDT:bid (the deeper side)';
COMMENT ON COLUMN main.events.dst IS 'Node it acts on: asset:BTCUSDT';
COMMENT ON COLUMN main.events.price IS 'Price of a trade or liquidation, in the quote currency';
COMMENT ON COLUMN main.events.size IS 'Size of a trade or liquidation, in the base currency (contracts where the venue counts those)';
COMMENT ON COLUMN main.events.side IS 'Side of the taker: buy or sell; a liquidated long is a sell';
COMMENT ON COLUMN main.events.bid IS 'Best bid of the book';
COMMENT ON COLUMN main.events.ask IS 'Best ask of the book';
COMMENT ON COLUMN main.events.bid_size IS 'Size of all recorded bid levels: 50 on Bybit, 1 on a top-of-book recording';
COMMENT ON COLUMN main.events.ask_size IS 'Size of all recorded ask levels, as bid_size';
COMMENT ON COLUMN main.events.rate IS
    'Funding rate of the coming settlement, a fraction of the position value that longs pay to shorts';
COMMENT ON COLUMN main.events.next_ts IS 'UTC instant of the coming funding settlement';
COMMENT ON COLUMN main.events.open_interest IS 'Open contracts of both sides, in the base currency';
COMMENT ON COLUMN main.events.fetched_at IS
    'UTC instant at which the row was received; rises from batch to batch of one stream, which is what a replay starts from';
COMMENT ON COLUMN main.events.run_id IS
    'First 16 hex digits of sha256 of what wrote the row: "stream|source|universe", "events|source|venue" or, as of nights, "night|source|universe"';
