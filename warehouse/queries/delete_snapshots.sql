-- delete_snapshots: removes the snapshots of one graph at the dates $as_of. Returns how many.
DELETE FROM store.graph_snapshots
WHERE
    source = $source
    AND universe = $universe
    AND graph = $graph
    AND list_contains($as_of, as_of);
