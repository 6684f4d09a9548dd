-- funding_before: settled funding rates of $symbols before $end. One row per (symbol, ts).
SELECT
    symbol,
    ts,
    rate
FROM funding_rates
WHERE
    source = $source
    AND universe = $universe
    AND list_contains($symbols, symbol)
    AND ts < $end
ORDER BY symbol, ts;
