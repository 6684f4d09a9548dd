-- published_champion: the model whose signals one night recommends, and the reason. At most one row.
SELECT
    model,
    reason
FROM model_registry
WHERE night = $night AND source = $source AND universe = $universe AND role = 'champion';
