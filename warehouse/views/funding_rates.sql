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
