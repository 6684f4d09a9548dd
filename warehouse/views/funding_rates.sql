-- funding_rates: funding settlements of perpetuals that passed the checks, latest version. One row per (source,
-- universe, symbol, ts).
CREATE OR REPLACE VIEW main.funding_rates AS
SELECT
    source,
    universe,
    symbol,
    ts,
    rate,
    fetched_at,
    run_id
FROM store.funding_rates;

COMMENT ON VIEW main.funding_rates IS
    'Funding settlements of perpetuals that passed the checks, latest version. Grain: source, universe, symbol, ts';
COMMENT ON COLUMN main.funding_rates.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.funding_rates.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.funding_rates.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.funding_rates.ts IS 'UTC instant of the settlement';
COMMENT ON COLUMN main.funding_rates.rate IS
    'Fraction of the position value that longs pay to shorts; negative when shorts pay';
COMMENT ON COLUMN main.funding_rates.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN main.funding_rates.run_id IS 'Night that wrote the row, see nights';
