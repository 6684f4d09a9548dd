-- newest_fold: the newest fold, with the file of its weights, of a model that the newest published night of $universe
-- registered. $source restricts the source; NULL accepts any. When the model has several trials, the fold is of the
-- first trial. At most one row.
SELECT
    registry.source,
    registry.night,
    folds.trial_id,
    folds.fold,
    folds.test_start,
    folds.test_end,
    folds.artifact,
    folds.artifact_sha256
FROM model_registry AS registry
INNER JOIN nights
    ON nights.night = registry.night AND nights.source = registry.source AND nights.universe = registry.universe
INNER JOIN folds
    ON folds.source = registry.source
    AND folds.universe = registry.universe
    AND list_contains(registry.trial_ids, folds.trial_id)
WHERE
    registry.universe = $universe
    AND registry.model = $model
    AND ($source::VARCHAR IS NULL OR registry.source = $source)
ORDER BY nights.published_at DESC, folds.test_start DESC, list_position(registry.trial_ids, folds.trial_id)
LIMIT 1;
