-- superseded_rows: keys of the rows of $table_name in the store that a night later than $clock wrote. The column kind
-- is NULL except for corporate actions. One row per key.
SELECT
    symbol,
    ts,
    NULL AS kind
FROM store.bars
WHERE $table_name = 'bars' AND source = $source AND universe = $universe AND fetched_at > $clock
UNION ALL
SELECT
    symbol,
    ts,
    kind
FROM store.corporate_actions
WHERE $table_name = 'corporate_actions' AND source = $source AND universe = $universe AND fetched_at > $clock
UNION ALL
SELECT
    symbol,
    ts,
    NULL AS kind
FROM store.funding_rates
WHERE $table_name = 'funding_rates' AND source = $source AND universe = $universe AND fetched_at > $clock;
