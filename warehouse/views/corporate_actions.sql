-- corporate_actions: dividends and splits that passed the checks, latest version. One row per (source, universe,
-- symbol, ts, kind).
CREATE OR REPLACE VIEW main.corporate_actions AS
SELECT
    source,
    universe,
    symbol,
    ts,
    kind,
    value,
    fetched_at,
    run_id
FROM store.corporate_actions;
