-- delete_snapshots: deletes the snapshots of one graph at the dates $as_of. Returns the number of deleted rows.
DELETE FROM store.graph_snapshots
WHERE
    source = $source
    AND universe = $universe
    AND graph = $graph
    AND list_contains($as_of, as_of);
