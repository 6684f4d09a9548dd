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
