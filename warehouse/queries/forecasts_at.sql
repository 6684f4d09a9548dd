-- forecasts_at: the forecasts that one trial made at the close of the bar that opened at $ts. One row per (symbol,
-- horizon_bars).
SELECT
    symbol,
    horizon_bars,
    expected_return,
    expected_volatility,
    p_strong_sell,
    p_sell,
    p_hold,
    p_buy,
    p_strong_buy
FROM predictions
WHERE
    source = $source
    AND universe = $universe
    AND trial_id = $trial_id
    AND ts = $ts
ORDER BY symbol, horizon_bars;
