-- backtests: simulated portfolios, one per model. One row per (source, universe, backtest_id).
CREATE OR REPLACE VIEW main.backtests AS
SELECT
    source,
    universe,
    backtest_id,
    model,
    trial_ids,
    fill,
    commission_bps,
    slippage_bps,
    limits,
    run_id
FROM store.backtests;
