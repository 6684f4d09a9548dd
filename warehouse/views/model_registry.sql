-- model_registry: the model recommended as of each night, the other models, and the reasons. It has published nights
-- only; the running night reads store.model_registry. One row per (night, source, universe, role, model).
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
