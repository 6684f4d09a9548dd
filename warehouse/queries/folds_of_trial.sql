-- folds_of_trial: the fitted folds of one trial, and the open of the last bar that each has predicted. One row per fold.
SELECT
    folds.fold,
    any_value(folds.fold_key) AS fold_key,
    max(predictions.ts) AS last_prediction
FROM store.folds AS folds
LEFT JOIN store.predictions AS predictions
    ON
        predictions.source = folds.source
        AND predictions.universe = folds.universe
        AND predictions.trial_id = folds.trial_id
        AND predictions.fold = folds.fold
WHERE folds.source = $source AND folds.universe = $universe AND folds.trial_id = $trial_id
GROUP BY folds.fold
ORDER BY folds.fold;
