-- delete_edges: removes the edges of one graph at the dates $as_of. Returns how many.
DELETE FROM store.graph_edges
WHERE
    source = $source
    AND universe = $universe
    AND graph = $graph
    AND list_contains($as_of, as_of);
