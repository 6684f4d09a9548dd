-- signals_now: the newest forecasts that a network made on a live stream, per symbol. Do not act on a row whose stale
-- is true. One row per (source, universe, model, symbol, horizon_bars).
CREATE OR REPLACE VIEW main.signals_now AS
SELECT
    *
FROM main.stream_forecasts
QUALIFY ts = max(ts) OVER (PARTITION BY source, universe, model, symbol);

COMMENT ON VIEW main.signals_now IS
    'Newest forecasts of a stream for each symbol; not to be acted on where stale. Grain: source, universe, model, symbol, horizon_bars';
