-- signals: forecast and weight of each model for each symbol and the next session. Rows are written once and never
-- changed. It has published nights only; the running night reads store.signals. One row per (night, source, universe,
-- model, symbol).
CREATE OR REPLACE VIEW main.signals AS
SELECT
    source,
    universe,
    night,
    model,
    symbol,
    as_of,
    for_session,
    side,
    label_3,
    label_5,
    confidence,
    expected_return,
    expected_volatility,
    weight,
    close,
    stop_price,
    run_id
FROM store.signals
WHERE run_id IN (SELECT run_id FROM store.nights WHERE published_at IS NOT NULL);

COMMENT ON VIEW main.signals IS
    'What each model says of each symbol for the next session; written once, never altered. Published nights only. Grain: night, source, universe, model, symbol';
