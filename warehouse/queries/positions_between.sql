-- positions_between: target weights that one backtest decided in [$start, $end). One row per (ts, symbol).
SELECT
    ts,
    symbol,
    weight
FROM positions
WHERE
    source = $source
    AND universe = $universe
    AND backtest_id = $backtest_id
    AND ts >= $start
    AND ts < $end
ORDER BY ts, symbol;
