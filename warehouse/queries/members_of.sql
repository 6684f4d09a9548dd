-- members_of: memberships of the universe $universe. One row per (symbol, valid_from).
SELECT
    symbol,
    sector,
    industry,
    valid_from,
    valid_to
FROM store.universe_members
WHERE universe = $universe
ORDER BY symbol, valid_from;
