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
