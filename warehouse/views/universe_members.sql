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

COMMENT ON VIEW main.universe_members IS
    'Membership of symbols in universes over time. Grain: universe, symbol, valid_from';
COMMENT ON COLUMN main.universe_members.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.universe_members.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.universe_members.valid_from IS 'First date of the membership';
COMMENT ON COLUMN main.universe_members.valid_to IS 'Date at which it ended (exclusive); NULL while it lasts';
COMMENT ON COLUMN main.universe_members.sector IS 'Sector, GICS for stocks';
COMMENT ON COLUMN main.universe_members.industry IS 'Industry, GICS sub-industry for stocks';
COMMENT ON COLUMN main.universe_members.membership_source IS 'Where the membership is known from';
