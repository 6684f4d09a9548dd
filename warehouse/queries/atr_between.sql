-- atr_between: close and average true range of $symbols in [$start, $end). atr_14 is a fraction of the close, NULL
-- where a bar has no feature row. One row per (symbol, ts).
SELECT
    bars.symbol,
    bars.ts,
    bars.close,
    features.atr_14
FROM bars
LEFT JOIN features USING (source, universe, symbol, interval, ts)
WHERE
    bars.source = $source
    AND bars.universe = $universe
    AND bars.interval = $interval
    AND list_contains($symbols, bars.symbol)
    AND bars.ts >= $start
    AND bars.ts < $end
ORDER BY bars.ts, bars.symbol;
