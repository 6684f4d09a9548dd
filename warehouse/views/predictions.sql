-- predictions: out-of-sample forecasts, made at the close of the bar. One row per (source, universe, trial_id,
-- symbol, ts, horizon_bars).
CREATE OR REPLACE VIEW main.predictions AS
SELECT
    source,
    universe,
    trial_id,
    fold,
    symbol,
    ts,
    horizon_bars,
    expected_return,
    expected_volatility,
    p_strong_sell,
    p_sell,
    p_hold,
    p_buy,
    p_strong_buy,
    run_id
FROM store.predictions;

COMMENT ON VIEW main.predictions IS
    'Out-of-sample forecasts, made at the close of the bar. Grain: source, universe, trial_id, symbol, ts, horizon_bars';
COMMENT ON COLUMN main.predictions.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.predictions.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.predictions.trial_id IS 'Trial, see trials';
COMMENT ON COLUMN main.predictions.fold IS 'Fold whose fit made it';
COMMENT ON COLUMN main.predictions.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.predictions.ts IS 'UTC open of the bar at whose close it was made';
COMMENT ON COLUMN main.predictions.horizon_bars IS 'Bars from the entry (the next open) to the exit';
COMMENT ON COLUMN main.predictions.expected_return IS 'Expected log return from entry to exit';
COMMENT ON COLUMN main.predictions.expected_volatility IS 'Expected standard deviation of log returns, per bar';
COMMENT ON COLUMN main.predictions.p_strong_sell IS 'Probability of STRONG_SELL';
COMMENT ON COLUMN main.predictions.p_sell IS 'Probability of SELL';
COMMENT ON COLUMN main.predictions.p_hold IS 'Probability of HOLD';
COMMENT ON COLUMN main.predictions.p_buy IS 'Probability of BUY';
COMMENT ON COLUMN main.predictions.p_strong_buy IS 'Probability of STRONG_BUY';
COMMENT ON COLUMN main.predictions.run_id IS 'Night that wrote the row, see nights';
