-- changed_funding_rates: those of the registered relation `pulled` (symbol, ts, rate) that are new, or differ by more than
-- 1e-9 of their value from the latest version known at $clock. One row per row of `pulled`.
WITH known AS (
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
LEFT JOIN known ON known.symbol = pulled.symbol AND known.ts = pulled.ts
WHERE known.ts IS NULL OR abs(pulled.rate - known.rate) > 1e-9 * abs(known.rate)
ORDER BY pulled.symbol, pulled.ts;
