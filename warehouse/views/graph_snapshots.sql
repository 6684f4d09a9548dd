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

COMMENT ON VIEW main.graph_snapshots IS 'Graphs between symbols, one per date. Grain: source, universe, graph, as_of';
COMMENT ON COLUMN main.graph_snapshots.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.graph_snapshots.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.graph_snapshots.graph IS
    'Kind of graph: correlation, spearman, ewma, partial, spanning_tree, lead_lag, granger, order_flow, flow_between, liquidity, proximity, sector, industry, or attention:MODEL, drawn by that network, attention:MODEL:S with seed S';
COMMENT ON COLUMN main.graph_snapshots.as_of IS
    'UTC open of the last bar the graph has seen; usable from the close of that bar';
COMMENT ON COLUMN main.graph_snapshots.window_start IS
    'UTC open of the first bar of its window; NULL where there is none';
COMMENT ON COLUMN main.graph_snapshots.directed IS 'True where an edge runs from src to dst and not back';
COMMENT ON COLUMN main.graph_snapshots.nodes IS 'Symbols in the graph';
COMMENT ON COLUMN main.graph_snapshots.edges IS 'Edges in the graph';
COMMENT ON COLUMN main.graph_snapshots.density IS 'Edges over possible edges, a fraction';
COMMENT ON COLUMN main.graph_snapshots.mean_weight IS 'Mean weight of its edges; NULL without edges';
COMMENT ON COLUMN main.graph_snapshots.mean_correlation IS
    'Mean correlation of all pairs of symbols over the window, edge or not; NULL where there is no window';
COMMENT ON COLUMN main.graph_snapshots.turnover IS
    'Edges that came or went since the snapshot before, over those either has, a fraction; NULL for the first';
COMMENT ON COLUMN main.graph_snapshots.drift IS
    'Distance of its weights to their mean over up to ten snapshots before, over the root mean square distance of those; NULL with fewer than two before, or where those are the same';
COMMENT ON COLUMN main.graph_snapshots.parameters IS 'How it was built, as JSON';
COMMENT ON COLUMN main.graph_snapshots.run_id IS 'Night that wrote the row, see nights';
