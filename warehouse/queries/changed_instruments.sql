-- changed_instruments: the rows of the registered relation `pulled` that are new, or differ in any column from the
-- latest version received by $clock. At most one row per row of `pulled`.
WITH latest AS (
    SELECT
        symbol,
        status,
        launched_at,
        tick_size,
        lot_size,
        funding_interval_minutes
    FROM raw.instruments
    WHERE source = $source AND universe = $universe AND fetched_at <= $clock
    QUALIFY row_number() OVER (PARTITION BY symbol ORDER BY fetched_at DESC, rowid DESC) = 1
)
SELECT
    symbol,
    status,
    launched_at,
    tick_size,
    lot_size,
    funding_interval_minutes
FROM pulled
EXCEPT
SELECT
    symbol,
    status,
    launched_at,
    tick_size,
    lot_size,
    funding_interval_minutes
FROM latest
ORDER BY symbol;
