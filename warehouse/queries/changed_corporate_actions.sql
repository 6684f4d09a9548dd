-- changed_corporate_actions: those of the registered relation `pulled` (symbol, ts, kind, value) that are new, or differ
-- by more than 1e-9 of their value from the latest version known at $clock. One row per row of `pulled`.
WITH known AS (
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
LEFT JOIN known ON known.symbol = pulled.symbol AND known.ts = pulled.ts AND known.kind = pulled.kind
WHERE known.ts IS NULL OR abs(pulled.value - known.value) > 1e-9 * abs(known.value)
ORDER BY pulled.symbol, pulled.ts, pulled.kind;
