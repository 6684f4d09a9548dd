-- What a graph snapshot says of itself: whether its edges have a direction, and how it changed since those before it.
-- Snapshots of older nights are built again by the next one, which fills the columns.

ALTER TABLE store.graph_snapshots ADD COLUMN directed BOOLEAN DEFAULT false;
ALTER TABLE store.graph_snapshots ADD COLUMN mean_correlation DOUBLE;
ALTER TABLE store.graph_snapshots ADD COLUMN turnover DOUBLE;
ALTER TABLE store.graph_snapshots ADD COLUMN drift DOUBLE;

COMMENT ON COLUMN store.graph_snapshots.graph IS
    'Kind of graph: correlation, spearman, ewma, partial, spanning_tree, lead_lag, granger, sector, industry, or attention:MODEL, drawn by that network, attention:MODEL:S with seed S';
COMMENT ON COLUMN store.graph_snapshots.directed IS 'True where an edge runs from src to dst and not back';
COMMENT ON COLUMN store.graph_snapshots.mean_correlation IS
    'Mean correlation of all pairs of symbols over the window, edge or not; NULL where there is no window';
COMMENT ON COLUMN store.graph_snapshots.turnover IS
    'Edges that came or went since the snapshot before, over those either has, a fraction; NULL for the first';
COMMENT ON COLUMN store.graph_snapshots.drift IS
    'Distance of its weights to their mean over up to ten snapshots before, over the root mean square distance of those; NULL with fewer than two before, or where those are the same';
COMMENT ON COLUMN store.graph_edges.graph IS
    'Kind of graph: correlation, spearman, ewma, partial, spanning_tree, lead_lag, granger, sector, industry, or attention:MODEL, drawn by that network, attention:MODEL:S with seed S';
COMMENT ON COLUMN store.graph_edges.src IS
    'Symbol the edge starts at; an undirected edge is stored once, src < dst, a directed one runs from src to dst';
COMMENT ON COLUMN store.graph_edges.weight IS
    'Weight of the edge: its correlation, or partial R² for granger, or 1 for the same sector or industry';
