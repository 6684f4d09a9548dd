-- pending_bars: the bars of the runs $run_ids, each in its latest version; exact copies count once. One row per
-- (symbol, interval, ts), more where one pull contradicts itself.
SELECT DISTINCT
    symbol,
    interval,
    ts,
    open,
    high,
    low,
    close,
    volume,
    turnover,
    fetched_at,
    run_id
FROM raw.bars
WHERE source = $source AND universe = $universe AND list_contains($run_ids, run_id)
QUALIFY rank() OVER (PARTITION BY symbol, interval, ts ORDER BY fetched_at DESC) = 1
ORDER BY symbol, interval, ts, open, high, low, close, volume, turnover;
