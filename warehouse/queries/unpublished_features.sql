-- unpublished_features: opens of the bars with a feature row that no published night wrote. One row per bar, oldest
-- first.
SELECT DISTINCT
    ts
FROM store.features
WHERE
    source = $source
    AND universe = $universe
    AND run_id NOT IN (SELECT run_id FROM store.nights WHERE published_at IS NOT NULL)
ORDER BY ts;
