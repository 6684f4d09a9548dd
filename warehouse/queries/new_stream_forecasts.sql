-- new_stream_forecasts: those of the registered relation `arriving` that $model has not made yet for $universe of $source.
-- One row per (symbol, ts, horizon_bars).
SELECT arriving.*
FROM arriving
ANTI JOIN (
    SELECT
        symbol,
        ts,
        horizon_bars
    FROM store.stream_forecasts
    WHERE source = $source AND universe = $universe AND model = $model
) AS known USING (symbol, ts, horizon_bars)
ORDER BY arriving.ts, arriving.symbol, arriving.horizon_bars;
