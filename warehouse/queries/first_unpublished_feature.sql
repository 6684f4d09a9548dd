-- first_unpublished_feature: the earliest feature row that no published night has seen, or NULL. One row.
SELECT
    min(ts) AS ts
FROM store.features
WHERE
    source = $source
    AND universe = $universe
    AND run_id NOT IN (SELECT run_id FROM store.nights WHERE published_at IS NOT NULL);
