-- signals_now: the newest forecasts of a stream's network for each symbol. One row per (source, universe, model, symbol,
-- horizon_bars). Where stale is true they are not to be acted on.
CREATE OR REPLACE VIEW main.signals_now AS
SELECT
    *
FROM main.stream_forecasts
QUALIFY ts = max(ts) OVER (PARTITION BY source, universe, model, symbol);

COMMENT ON VIEW main.signals_now IS
    'Newest forecasts of a stream for each symbol; not to be acted on where stale. Grain: source, universe, model, symbol, horizon_bars';
