-- bars_between: bars of $symbols in [$start, $end) with their total returns. One row per (symbol, ts).
SELECT
    symbol,
    ts,
    open,
    high,
    low,
    close,
    volume,
    total_return
FROM bars
WHERE
    source = $source
    AND universe = $universe
    AND interval = $interval
    AND list_contains($symbols, symbol)
    AND ts >= $start
    AND ts < $end
ORDER BY ts, symbol;
