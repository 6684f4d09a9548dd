-- metrics: performance metrics of each backtest as of a night. It has published nights only; the running night reads
-- store.metrics. One row per (night, source, universe, backtest_id, metric).
CREATE OR REPLACE VIEW main.metrics AS
SELECT
    source,
    universe,
    night,
    backtest_id,
    metric,
    value,
    run_id
FROM store.metrics
WHERE run_id IN (SELECT run_id FROM store.nights WHERE published_at IS NOT NULL);

COMMENT ON VIEW main.metrics IS
    'Figures of each backtest as of a night. Published nights only. Grain: night, source, universe, backtest_id, metric';
