-- ingest_overlap: the last $bars bars of every symbol, each in its latest version received by $clock. One row per
-- (symbol, ts).
WITH latest AS (
    SELECT
        symbol,
        ts,
        open,
        high,
        low,
        close,
        close_adjusted,
        volume,
        turnover
    FROM raw.bars
    WHERE source = $source AND universe = $universe AND interval = $interval AND fetched_at <= $clock
    QUALIFY row_number() OVER (PARTITION BY symbol, ts ORDER BY fetched_at DESC, rowid DESC) = 1
)
SELECT
    *
FROM latest
QUALIFY row_number() OVER (PARTITION BY symbol ORDER BY ts DESC) <= $bars
ORDER BY symbol, ts;
