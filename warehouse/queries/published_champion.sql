-- published_champion: the model that one night recommends, and the reason. At most one row.
SELECT
    model,
    reason
FROM model_registry
WHERE night = $night AND source = $source AND universe = $universe AND role = 'champion';
