-- trades: the events that are trades, under their usual names. One row per (source, venue, symbol, ts, trade_id).
CREATE OR REPLACE VIEW main.trades AS
SELECT
    source,
    venue,
    symbol,
    ts,
    event_id AS trade_id,
    side,
    price,
    size,
    fetched_at,
    run_id
FROM store.events
WHERE kind = 'trade';

COMMENT ON VIEW main.trades IS
    'Every trade of an exchange, each once. Grain: source, venue, symbol, ts, trade_id';
COMMENT ON COLUMN main.trades.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.trades.venue IS 'Exchange: bybit (linear perpetuals) or binance, see universes.provider';
COMMENT ON COLUMN main.trades.symbol IS 'Symbol as the venue names it';
COMMENT ON COLUMN main.trades.ts IS 'UTC instant of the match by the exchange''s clock';
COMMENT ON COLUMN main.trades.trade_id IS 'The exchange''s number of the trade';
COMMENT ON COLUMN main.trades.side IS 'Side of the taker: buy or sell';
COMMENT ON COLUMN main.trades.price IS 'Price, in the quote currency';
COMMENT ON COLUMN main.trades.size IS 'Size, in the base currency (contracts where the venue counts those)';
COMMENT ON COLUMN main.trades.fetched_at IS
    'UTC instant at which the row was received; rises from batch to batch of one stream, which is what a replay starts from';
COMMENT ON COLUMN main.trades.run_id IS
    'First 16 hex digits of sha256 of what wrote the row: "stream|source|universe", "events|source|venue" or, as of nights, "night|source|universe"';
