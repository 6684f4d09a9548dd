-- features_between: stored feature rows of $symbols in [$start, $end). One row per (symbol, ts).
SELECT
    * EXCLUDE (source, universe, interval, run_id)
FROM features
WHERE
    source = $source
    AND universe = $universe
    AND interval = $interval
    AND list_contains($symbols, symbol)
    AND ts >= $start
    AND ts < $end
ORDER BY ts, symbol;
