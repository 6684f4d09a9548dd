-- fold_at: the fold of one trial that forecasts the bar $ts: the latest fold whose test window starts at or before $ts.
-- At most one row.
SELECT
    fold,
    test_start,
    artifact
FROM folds
WHERE
    source = $source
    AND universe = $universe
    AND trial_id = $trial_id
    AND test_start <= $ts
ORDER BY test_start DESC
LIMIT 1;
