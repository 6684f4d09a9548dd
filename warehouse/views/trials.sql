-- trials: fitted models, each a specification with one seed. One row per (source, universe, trial_id).
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
