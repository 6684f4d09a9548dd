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

COMMENT ON VIEW main.backtests IS 'Simulated portfolios, one per model. Grain: source, universe, backtest_id';
COMMENT ON COLUMN main.backtests.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.backtests.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.backtests.backtest_id IS 'Name of the backtest within its universe';
COMMENT ON COLUMN main.backtests.model IS 'Name of the model, or of the rule, in the zoo';
COMMENT ON COLUMN main.backtests.trial_ids IS 'Trials whose forecasts are averaged; empty for a rule';
COMMENT ON COLUMN main.backtests.fill IS 'When an order is filled: next_open unless said otherwise';
COMMENT ON COLUMN main.backtests.commission_bps IS 'Commission per traded value, in basis points (1/10000)';
COMMENT ON COLUMN main.backtests.slippage_bps IS 'Slippage per traded value, in basis points (1/10000)';
COMMENT ON COLUMN main.backtests.limits IS 'Limits on positions and exposure, as JSON';
COMMENT ON COLUMN main.backtests.run_id IS 'Night that wrote the row, see nights';
