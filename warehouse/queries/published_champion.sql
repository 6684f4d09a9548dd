-- published_champion: which model's signals one night recommends, and why. At most one row.
SELECT
    model,
    reason
FROM model_registry
WHERE night = $night AND source = $source AND universe = $universe AND role = 'champion';
