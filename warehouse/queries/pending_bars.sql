-- pending_bars: the bars of the runs $run_ids, each in its latest version. Exact copies count once. One row per
-- (symbol, interval, ts), or several where one pull has different bars for one key.
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
