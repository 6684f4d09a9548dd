-- changed_funding_rates: the rows of the registered relation `pulled` (symbol, ts, rate) that are new, or whose rate
-- differs by more than 1e-9 of itself from the latest version received by $clock. At most one row per row of `pulled`.
WITH latest AS (
    SELECT
        symbol,
        ts,
        rate
    FROM raw.funding_rates
    WHERE source = $source AND universe = $universe AND fetched_at <= $clock
    QUALIFY row_number() OVER (PARTITION BY symbol, ts ORDER BY fetched_at DESC, rowid DESC) = 1
)
SELECT
    pulled.*
FROM pulled
LEFT JOIN latest ON latest.symbol = pulled.symbol AND latest.ts = pulled.ts
WHERE latest.ts IS NULL OR abs(pulled.rate - latest.rate) > 1e-9 * abs(latest.rate)
ORDER BY pulled.symbol, pulled.ts;
