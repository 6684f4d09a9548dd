-- new_stream_forecasts: the rows of the registered relation `arriving` that are not stored yet for $model, $universe
-- and $source. One row per (symbol, ts, horizon_bars).
SELECT arriving.*
FROM arriving
ANTI JOIN (
    SELECT
        symbol,
        ts,
        horizon_bars
    FROM store.stream_forecasts
    WHERE source = $source AND universe = $universe AND model = $model
) AS stored USING (symbol, ts, horizon_bars)
ORDER BY arriving.ts, arriving.symbol, arriving.horizon_bars;
