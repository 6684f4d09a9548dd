-- Universes of one-second bars begin at an instant of a day, and are of one more exchange.

ALTER TABLE store.universes ALTER COLUMN history_start TYPE TIMESTAMPTZ;

COMMENT ON COLUMN store.universes.history_start IS 'UTC instant from which on its bars are wanted';
COMMENT ON COLUMN store.universes.provider IS 'Who serves its data: yahoo, bybit or binance (recorded only)';
COMMENT ON COLUMN store.universes.interval IS 'Length of its bars: 1d, 1h or 1s';
COMMENT ON COLUMN store.bars.interval IS 'Length of the bar: 1d, 1h or 1s';
COMMENT ON COLUMN store.bars.volume IS
    'Units traded in the bar: shares, or coins (contracts where the exchange counts those)';
COMMENT ON COLUMN store.features.interval IS 'Bar length: 1d, 1h or 1s';
COMMENT ON COLUMN store.equity_curves.session IS 'Date of the session';
COMMENT ON COLUMN raw.bars.provider IS 'Who served the row: yahoo, bybit or binance';
COMMENT ON COLUMN raw.bars.interval IS 'Length of the bar: 1d, 1h or 1s';
COMMENT ON COLUMN raw.bars.volume IS
    'Units traded in the bar: shares, or coins (contracts where the exchange counts those)';
COMMENT ON COLUMN store.events.venue IS 'Exchange: bybit (linear perpetuals) or binance, see universes.provider';
COMMENT ON COLUMN store.events.run_id IS
    'First 16 hex digits of sha256 of what wrote the row: "stream|source|universe", "events|source|venue" or, as of nights, "night|source|universe"';
COMMENT ON COLUMN store.leaderboard.annual_return IS 'Compound return a year, a fraction; NULL for less than a day';
