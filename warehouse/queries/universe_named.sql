-- universe_named: the universe $universe. At most one row.
SELECT
    universe AS name,
    provider,
    interval,
    calendar,
    benchmark,
    history_start,
    commission_bps,
    slippage_bps,
    survivorship_biased
FROM store.universes
WHERE universe = $universe;
