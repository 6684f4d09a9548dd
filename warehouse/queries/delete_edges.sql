-- delete_edges: deletes the edges of one graph at the dates $as_of. Returns the number of deleted rows.
DELETE FROM store.graph_edges
WHERE
    source = $source
    AND universe = $universe
    AND graph = $graph
    AND list_contains($as_of, as_of);
