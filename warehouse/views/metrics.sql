-- metrics: figures of each backtest as of a night. One row per (night, source, universe, backtest_id, metric). Rows
-- of published nights only: the night at work reads store.metrics.
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
COMMENT ON COLUMN main.metrics.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.metrics.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.metrics.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN main.metrics.backtest_id IS 'Backtest, see backtests';
COMMENT ON COLUMN main.metrics.metric IS 'Name of the figure, see the leaderboard for the main ones';
COMMENT ON COLUMN main.metrics.value IS 'Its value, fractions not percent; NULL when undefined';
COMMENT ON COLUMN main.metrics.run_id IS 'Night that wrote the row, see nights';
