-- What happened on an exchange, event by event: trades, liquidations, books, funding and open interest, in one table, so
-- that a stream is written and replayed by one statement. A row has the measures of its kind, the others are NULL.
-- One row per (source, venue, kind, symbol, ts, event_id): written twice, an event is still one row (queries/new_events).

CREATE TABLE store.events (
    source VARCHAR NOT NULL, venue VARCHAR NOT NULL, kind VARCHAR NOT NULL, symbol VARCHAR NOT NULL,
    ts TIMESTAMPTZ NOT NULL, event_id VARCHAR NOT NULL, src VARCHAR NOT NULL, dst VARCHAR NOT NULL,
    price DOUBLE, size DOUBLE, side VARCHAR, bid DOUBLE, ask DOUBLE, bid_size DOUBLE, ask_size DOUBLE,
    rate DOUBLE, next_ts TIMESTAMPTZ, open_interest DOUBLE,
    fetched_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL
);

COMMENT ON TABLE store.events IS
    'What happened on an exchange, each once. Grain: source, venue, kind, symbol, ts, event_id';
COMMENT ON COLUMN store.events.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.events.venue IS 'Exchange and market: bybit (linear perpetuals), or as the recording names it';
COMMENT ON COLUMN store.events.kind IS 'trade, book, funding, open_interest or liquidation';
COMMENT ON COLUMN store.events.symbol IS 'Symbol as the venue names it';
COMMENT ON COLUMN store.events.ts IS 'UTC instant of the event by the exchange''s clock';
COMMENT ON COLUMN store.events.event_id IS
    'The exchange''s own number: trade id, update id of the book, sequence of the ticker; of a liquidation, its side, size and price';
COMMENT ON COLUMN store.events.src IS 'Node it comes from, with its type: trade:BTCUSDT, book:BTCUSDT:bid (the deeper side)';
COMMENT ON COLUMN store.events.dst IS 'Node it acts on: asset:BTCUSDT';
COMMENT ON COLUMN store.events.price IS 'Price of a trade or liquidation, in the quote currency';
COMMENT ON COLUMN store.events.size IS 'Size of a trade or liquidation, in the base currency (contracts where the venue counts those)';
COMMENT ON COLUMN store.events.side IS 'Side of the taker: buy or sell; a liquidated long is a sell';
COMMENT ON COLUMN store.events.bid IS 'Best bid of the book';
COMMENT ON COLUMN store.events.ask IS 'Best ask of the book';
COMMENT ON COLUMN store.events.bid_size IS 'Size of all recorded bid levels: 50 on Bybit, 1 on a top-of-book recording';
COMMENT ON COLUMN store.events.ask_size IS 'Size of all recorded ask levels, as bid_size';
COMMENT ON COLUMN store.events.rate IS
    'Funding rate of the coming settlement, a fraction of the position value that longs pay to shorts';
COMMENT ON COLUMN store.events.next_ts IS 'UTC instant of the coming funding settlement';
COMMENT ON COLUMN store.events.open_interest IS 'Open contracts of both sides, in the base currency';
COMMENT ON COLUMN store.events.fetched_at IS
    'UTC instant at which the row was received; rises from batch to batch of one stream, which is what a replay starts from';
COMMENT ON COLUMN store.events.run_id IS
    'First 16 hex digits of sha256 of what wrote the row: "stream|source|universe" or "events|source|venue"';
