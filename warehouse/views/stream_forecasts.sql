-- stream_forecasts: forecasts that a network made on a live stream at the close of each bar. One row per (source,
-- universe, model, symbol, ts, horizon_bars).
CREATE OR REPLACE VIEW main.stream_forecasts AS
SELECT
    source,
    universe,
    model,
    trial_id,
    fold,
    artifact_sha256,
    symbol,
    ts,
    closes_at,
    horizon_bars,
    expected_return,
    expected_volatility,
    p_strong_sell,
    p_sell,
    p_hold,
    p_buy,
    p_strong_buy,
    p_buy + p_strong_buy AS p_up,
    p_strong_sell + p_sell AS p_down,
    label_3,
    confidence,
    freshness,
    stale,
    made_at,
    run_id
FROM store.stream_forecasts;

COMMENT ON COLUMN main.stream_forecasts.p_up IS 'Probability of a rise: BUY or STRONG_BUY';
COMMENT ON COLUMN main.stream_forecasts.p_down IS 'Probability of a fall: SELL or STRONG_SELL';
