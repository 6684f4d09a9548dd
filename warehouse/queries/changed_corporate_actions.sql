-- changed_corporate_actions: the rows of the registered relation `pulled` (symbol, ts, kind, value) that are new, or
-- whose value differs by more than 1e-9 of itself from the latest version received by $clock. At most one row per row
-- of `pulled`.
WITH latest AS (
    SELECT
        symbol,
        ts,
        kind,
        value
    FROM raw.corporate_actions
    WHERE source = $source AND universe = $universe AND fetched_at <= $clock
    QUALIFY row_number() OVER (PARTITION BY symbol, ts, kind ORDER BY fetched_at DESC, rowid DESC) = 1
)
SELECT
    pulled.*
FROM pulled
LEFT JOIN latest ON latest.symbol = pulled.symbol AND latest.ts = pulled.ts AND latest.kind = pulled.kind
WHERE latest.ts IS NULL OR abs(pulled.value - latest.value) > 1e-9 * abs(latest.value)
ORDER BY pulled.symbol, pulled.ts, pulled.kind;
