-- graph_edges: edges of the graphs. One row per (source, universe, graph, as_of, src, dst).
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

COMMENT ON VIEW main.graph_edges IS 'Edges of the graphs. Grain: source, universe, graph, as_of, src, dst';
COMMENT ON COLUMN main.graph_edges.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.graph_edges.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.graph_edges.graph IS
    'Kind of graph: correlation, spearman, ewma, partial, spanning_tree, lead_lag, granger, order_flow, flow_between, liquidity, proximity, sector, industry, or attention:MODEL, drawn by that network, attention:MODEL:S with seed S';
COMMENT ON COLUMN main.graph_edges.as_of IS
    'UTC open of the last bar the graph has seen; usable from the close of that bar';
COMMENT ON COLUMN main.graph_edges.src IS
    'Symbol the edge starts at; an undirected edge is stored once, src < dst, a directed one runs from src to dst';
COMMENT ON COLUMN main.graph_edges.dst IS 'Symbol the edge ends at';
COMMENT ON COLUMN main.graph_edges.weight IS
    'Weight of the edge: its correlation (of returns; for order_flow of signed volume, for liquidity of changes of illiquidity), partial R² for granger, share of all value moved for flow_between, 1 / (1 + seconds between their last trades) for proximity, or 1 for the same sector or industry';
COMMENT ON COLUMN main.graph_edges.run_id IS 'Night that wrote the row, see nights';
