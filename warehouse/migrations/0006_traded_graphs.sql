-- Graphs made of trades, by name and weight.

COMMENT ON COLUMN store.graph_snapshots.graph IS
    'Kind of graph: correlation, spearman, ewma, partial, spanning_tree, lead_lag, granger, order_flow, flow_between, liquidity, proximity, sector, industry, or attention:MODEL, drawn by that network, attention:MODEL:S with seed S';
COMMENT ON COLUMN store.graph_edges.graph IS
    'Kind of graph: correlation, spearman, ewma, partial, spanning_tree, lead_lag, granger, order_flow, flow_between, liquidity, proximity, sector, industry, or attention:MODEL, drawn by that network, attention:MODEL:S with seed S';
COMMENT ON COLUMN store.graph_edges.weight IS
    'Weight of the edge: its correlation (of returns; for order_flow of signed volume, for liquidity of changes of illiquidity), partial R² for granger, share of all value moved for flow_between, 1 / (1 + seconds between their last trades) for proximity, or 1 for the same sector or industry';
