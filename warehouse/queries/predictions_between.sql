-- predictions_between: forecasts of one trial at one horizon for $symbols in [$start, $end). One row per (symbol, ts).
SELECT
    symbol,
    ts,
    p_strong_sell,
    p_sell,
    p_hold,
    p_buy,
    p_strong_buy,
    expected_return,
    expected_volatility
FROM predictions
WHERE
    source = $source
    AND universe = $universe
    AND trial_id = $trial_id
    AND horizon_bars = $horizon_bars
    AND list_contains($symbols, symbol)
    AND ts >= $start
    AND ts < $end
ORDER BY ts, symbol;
