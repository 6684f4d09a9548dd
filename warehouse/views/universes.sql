-- universes: sets of symbols that are researched together. One row per (universe).
CREATE OR REPLACE VIEW main.universes AS
SELECT
    universe,
    provider,
    interval,
    calendar,
    benchmark,
    history_start,
    commission_bps,
    slippage_bps,
    survivorship_biased,
    description
FROM store.universes;

COMMENT ON VIEW main.universes IS 'Sets of symbols that are researched together. Grain: universe';
COMMENT ON COLUMN main.universes.universe IS 'Name of the universe';
COMMENT ON COLUMN main.universes.provider IS 'Who serves its data: yahoo, bybit or binance (recorded only)';
COMMENT ON COLUMN main.universes.interval IS 'Length of its bars: 1d, 1h or 1s';
COMMENT ON COLUMN main.universes.calendar IS 'Trading calendar: XNYS (New York Stock Exchange) or 24/7';
COMMENT ON COLUMN main.universes.benchmark IS 'Symbol it is measured against; fetched even when not a member';
COMMENT ON COLUMN main.universes.history_start IS 'UTC instant from which on its bars are wanted';
COMMENT ON COLUMN main.universes.commission_bps IS 'Commission per traded value, in basis points (1/10000)';
COMMENT ON COLUMN main.universes.slippage_bps IS 'Slippage per traded value, in basis points (1/10000)';
COMMENT ON COLUMN main.universes.survivorship_biased IS
    'True when members were chosen with hindsight, so results flatter';
COMMENT ON COLUMN main.universes.description IS 'What the universe is';
