-- model_registry: which model is recommended as of each night, and why. One row per (night, source, universe, role,
-- model). Rows of published nights only: the night at work reads store.model_registry.
CREATE OR REPLACE VIEW main.model_registry AS
SELECT
    source,
    universe,
    night,
    role,
    model,
    trial_ids,
    sharpe,
    reason,
    run_id
FROM store.model_registry
WHERE run_id IN (SELECT run_id FROM store.nights WHERE published_at IS NOT NULL);

COMMENT ON VIEW main.model_registry IS
    'Which model is recommended as of each night, and why. Published nights only. Grain: night, source, universe, role, model';
COMMENT ON COLUMN main.model_registry.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.model_registry.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.model_registry.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN main.model_registry.role IS 'champion (its signals are recommended) or challenger';
COMMENT ON COLUMN main.model_registry.model IS 'Name of the model, or of the rule, in the zoo';
COMMENT ON COLUMN main.model_registry.trial_ids IS 'Trials whose forecasts are averaged; empty for a rule';
COMMENT ON COLUMN main.model_registry.sharpe IS 'Sharpe ratio on the leaderboard of the night';
COMMENT ON COLUMN main.model_registry.reason IS 'Why it has the role, in words';
COMMENT ON COLUMN main.model_registry.run_id IS 'Night that wrote the row, see nights';
