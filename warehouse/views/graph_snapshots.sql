-- graph_snapshots: graphs between symbols, one per date. One row per (source, universe, graph, as_of).
CREATE OR REPLACE VIEW main.graph_snapshots AS
SELECT
    source,
    universe,
    graph,
    as_of,
    window_start,
    directed,
    nodes,
    edges,
    density,
    mean_weight,
    mean_correlation,
    turnover,
    drift,
    parameters,
    run_id
FROM store.graph_snapshots;
