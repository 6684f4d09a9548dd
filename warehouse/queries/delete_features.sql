-- delete_features: removes the feature rows of one symbol at the bars $ts. Returns how many.
DELETE FROM store.features
WHERE
    source = $source
    AND universe = $universe
    AND interval = $interval
    AND symbol = $symbol
    AND list_contains($ts, ts);
