-- folds: walk-forward fits, one per trial and fold. One row per (source, universe, trial_id, fold).
CREATE OR REPLACE VIEW main.folds AS
SELECT
    source,
    universe,
    trial_id,
    fold,
    fold_key,
    train_start,
    train_end,
    last_label_end,
    test_start,
    test_end,
    purge_bars,
    embargo_bars,
    train_rows,
    validation_rows,
    epochs,
    validation_loss,
    data_hash,
    code_version,
    artifact,
    artifact_sha256,
    run_id
FROM store.folds;

COMMENT ON VIEW main.folds IS 'Walk-forward fits, one per trial and fold. Grain: source, universe, trial_id, fold';
COMMENT ON COLUMN main.folds.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.folds.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.folds.trial_id IS 'Trial, see trials';
COMMENT ON COLUMN main.folds.fold IS 'Number of the walk-forward fold, 0 the oldest';
COMMENT ON COLUMN main.folds.fold_key IS
    'Hash of specification, training data, code version and seed: equal keys are the same fit';
COMMENT ON COLUMN main.folds.train_start IS 'UTC open of the first bar trained on';
COMMENT ON COLUMN main.folds.train_end IS 'UTC open of the last bar trained on';
COMMENT ON COLUMN main.folds.last_label_end IS
    'UTC open of the bar at which the last training label ended; before test_start';
COMMENT ON COLUMN main.folds.test_start IS 'UTC open of the first bar predicted';
COMMENT ON COLUMN main.folds.test_end IS
    'UTC open of the bar at which the test window ends (exclusive); NULL while that bar is not there yet';
COMMENT ON COLUMN main.folds.purge_bars IS 'Training bars dropped because their labels reached too far';
COMMENT ON COLUMN main.folds.embargo_bars IS 'Bars left out between training and test';
COMMENT ON COLUMN main.folds.train_rows IS 'Rows (bar, symbol) trained on';
COMMENT ON COLUMN main.folds.validation_rows IS 'Rows (bar, symbol) held back for early stopping';
COMMENT ON COLUMN main.folds.epochs IS 'Epochs trained';
COMMENT ON COLUMN main.folds.validation_loss IS 'Best loss on the rows held back; NULL without any';
COMMENT ON COLUMN main.folds.data_hash IS 'Hash of the training data';
COMMENT ON COLUMN main.folds.code_version IS 'Hash of the source files that shape a fit';
COMMENT ON COLUMN main.folds.artifact IS 'File of the fitted model, relative to the artifacts folder';
COMMENT ON COLUMN main.folds.artifact_sha256 IS 'Hash of that file';
COMMENT ON COLUMN main.folds.run_id IS 'Night that wrote the row, see nights';
