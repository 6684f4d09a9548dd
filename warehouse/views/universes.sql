-- universes: sets of symbols that are researched together. One row per (universe).
CREATE OR REPLACE VIEW main.universes AS
SELECT
    universe,
    provider,
    interval,
    calendar,
    benchmark,
    history_start,
    commission_bps,
    slippage_bps,
    survivorship_biased,
    description
FROM store.universes;
