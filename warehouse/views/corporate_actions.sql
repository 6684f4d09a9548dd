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

COMMENT ON VIEW main.corporate_actions IS
    'Dividends and splits that passed the checks, latest version. Grain: source, universe, symbol, ts, kind';
COMMENT ON COLUMN main.corporate_actions.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.corporate_actions.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.corporate_actions.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.corporate_actions.ts IS 'UTC instant from which the action counts: the open of its ex-date';
COMMENT ON COLUMN main.corporate_actions.kind IS 'dividend or split';
COMMENT ON COLUMN main.corporate_actions.value IS
    'Dividend in currency per split-adjusted share, or split ratio (new shares per old)';
COMMENT ON COLUMN main.corporate_actions.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN main.corporate_actions.run_id IS 'Night that wrote the row, see nights';
