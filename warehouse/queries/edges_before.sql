-- edges_before: stored edges of one graph with as_of in [$start, $end). One row per (as_of, src, dst).
SELECT
    as_of,
    src,
    dst,
    weight
FROM graph_edges
WHERE
    source = $source
    AND universe = $universe
    AND graph = $graph
    AND as_of >= $start
    AND as_of < $end
ORDER BY as_of, src, dst;
