-- trade_bars_between: trades of $symbols at $venue with ts in [$start, $end), received at or before $received, summed
-- per bar of $bar_us microseconds. A bar holds the trades with open < ts <= close; bars without trades have no row. One
-- row per (symbol, ts), where ts is the bar's open.
SELECT
    symbol,
    make_timestamptz((epoch_us(ts) - 1) // $bar_us * $bar_us) AS ts,
    -- decimals, because a sum of floats depends on the order in which threads reach them
    sum(CAST(price * size * CASE side WHEN 'buy' THEN 1 WHEN 'sell' THEN -1 ELSE 0 END AS DECIMAL(38, 8)))::DOUBLE
        AS signed_value,
    sum(CAST(price * size AS DECIMAL(38, 8)))::DOUBLE AS value,
    last(price ORDER BY trades.ts, trade_id) AS price,
    epoch_us(max(trades.ts)) / 1e6 AS last_s
FROM trades
WHERE
    source = $source
    AND venue = $venue
    AND list_contains($symbols, symbol)
    AND ts >= $start
    AND ts < $end
    AND fetched_at <= $received
    AND price > 0
    AND size > 0
    AND price * size < 1e15 -- larger values are faults of the recording
GROUP BY ALL
ORDER BY symbol, ts;
