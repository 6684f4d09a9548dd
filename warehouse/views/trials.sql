-- trials: models that were fitted: one specification with one seed. One row per (source, universe, trial_id).
CREATE OR REPLACE VIEW main.trials AS
SELECT
    source,
    universe,
    trial_id,
    model,
    seed,
    spec,
    parameters,
    horizons_bars,
    run_id
FROM store.trials;

COMMENT ON VIEW main.trials IS
    'Models that were fitted: one specification with one seed. Grain: source, universe, trial_id';
COMMENT ON COLUMN main.trials.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.trials.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.trials.trial_id IS 'Hash of the model, its specification and seed';
COMMENT ON COLUMN main.trials.model IS 'Name of the model in the zoo';
COMMENT ON COLUMN main.trials.seed IS 'Seed of every random number of the fit';
COMMENT ON COLUMN main.trials.spec IS 'Specification and hyper-parameters, as JSON';
COMMENT ON COLUMN main.trials.parameters IS 'Number of weights';
COMMENT ON COLUMN main.trials.horizons_bars IS 'Horizons it forecasts, in bars';
COMMENT ON COLUMN main.trials.run_id IS 'Night that wrote the row, see nights';
