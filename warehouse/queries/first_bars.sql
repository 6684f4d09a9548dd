-- first_bars: open of the first bar of each symbol in [$start, $clock], among the bars received by $clock. One row per
-- symbol.
SELECT
    symbol,
    min(ts) AS ts
FROM raw.bars
WHERE
    source = $source AND universe = $universe AND interval = $interval
    AND ts >= $start AND ts <= $clock AND fetched_at <= $clock
GROUP BY symbol
ORDER BY symbol;
