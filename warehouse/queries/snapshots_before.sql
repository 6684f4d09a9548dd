-- snapshots_before: stored snapshots of one graph in [$start, $end). One row per as_of.
SELECT
    as_of,
    window_start,
    directed,
    parameters
FROM graph_snapshots
WHERE
    source = $source
    AND universe = $universe
    AND graph = $graph
    AND as_of >= $start
    AND as_of < $end
ORDER BY as_of;
