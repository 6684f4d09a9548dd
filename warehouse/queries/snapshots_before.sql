-- snapshots_before: stored snapshots of one graph before $end. One row per as_of.
SELECT
    as_of,
    window_start,
    parameters
FROM graph_snapshots
WHERE
    source = $source
    AND universe = $universe
    AND graph = $graph
    AND as_of < $end
ORDER BY as_of;
