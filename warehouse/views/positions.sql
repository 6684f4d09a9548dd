-- positions: nonzero target weights that each backtest decided at ts; they are filled at the next open. One row per
-- (source, universe, backtest_id, ts, symbol).
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
