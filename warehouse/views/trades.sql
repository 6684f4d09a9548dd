-- trades: the events that are trades, with the usual column names. One row per (source, venue, symbol, ts, trade_id).
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
COMMENT ON COLUMN main.trades.ts IS 'UTC instant of the match by the exchange''s clock';
COMMENT ON COLUMN main.trades.trade_id IS 'The exchange''s number of the trade';
COMMENT ON COLUMN main.trades.side IS 'Side of the taker: buy or sell';
COMMENT ON COLUMN main.trades.price IS 'Price, in the quote currency';
COMMENT ON COLUMN main.trades.size IS 'Size, in the base currency (contracts where the venue counts those)';
