-- graph_edges: edges of the graph snapshots. One row per (source, universe, graph, as_of, src, dst).
CREATE OR REPLACE VIEW main.graph_edges AS
SELECT
    source,
    universe,
    graph,
    as_of,
    src,
    dst,
    weight,
    run_id
FROM store.graph_edges;
