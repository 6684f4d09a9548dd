-- superseded_rows: rows that a night later than $clock has put into the store. One row per table and key; kind is null
-- but for corporate actions.
SELECT
    'bars' AS table_name,
    symbol,
    ts,
    NULL AS kind
FROM store.bars
WHERE source = $source AND universe = $universe AND fetched_at > $clock
UNION ALL
SELECT
    'corporate_actions' AS table_name,
    symbol,
    ts,
    kind
FROM store.corporate_actions
WHERE source = $source AND universe = $universe AND fetched_at > $clock
UNION ALL
SELECT
    'funding_rates' AS table_name,
    symbol,
    ts,
    NULL AS kind
FROM store.funding_rates
WHERE source = $source AND universe = $universe AND fetched_at > $clock;
