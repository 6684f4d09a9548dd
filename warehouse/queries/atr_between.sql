-- atr_between: close and average true range (a fraction of it) of $symbols in [$start, $end). One row per (symbol, ts).
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
