-- delete_features: deletes the feature rows of one symbol at the bar opens $ts. Returns the number of deleted rows.
DELETE FROM store.features
WHERE
    source = $source
    AND universe = $universe
    AND interval = $interval
    AND symbol = $symbol
    AND list_contains($ts, ts);
