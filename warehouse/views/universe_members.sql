-- universe_members: membership of symbols in universes over time. One row per (universe, symbol, valid_from).
CREATE OR REPLACE VIEW main.universe_members AS
SELECT
    universe,
    symbol,
    valid_from,
    valid_to,
    sector,
    industry,
    membership_source
FROM store.universe_members;
