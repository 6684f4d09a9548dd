-- positions: weights each backtest decided, other than zero; filled at the next open. One row per (source, universe,
-- backtest_id, ts, symbol).
CREATE OR REPLACE VIEW main.positions AS
SELECT
    source,
    universe,
    backtest_id,
    ts,
    symbol,
    weight,
    run_id
FROM store.positions;

COMMENT ON VIEW main.positions IS
    'Weights each backtest decided, other than zero; filled at the next open. Grain: source, universe, backtest_id, ts, symbol';
COMMENT ON COLUMN main.positions.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.positions.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.positions.backtest_id IS 'Backtest, see backtests';
COMMENT ON COLUMN main.positions.ts IS 'UTC open of the bar at whose close it was decided';
COMMENT ON COLUMN main.positions.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.positions.weight IS 'Signed fraction of the portfolio value; negative when short';
COMMENT ON COLUMN main.positions.run_id IS 'Night that wrote the row, see nights';
