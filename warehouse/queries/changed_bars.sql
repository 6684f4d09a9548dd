-- changed_bars: the rows of the registered relation `pulled` (symbol, interval, ts, prices) that are new or restated. A
-- row is restated when a value differs by more than 1e-9 of itself from the latest version received by $clock; then the
-- column `restated` is true. At most one row per row of `pulled`. The provider's close_adjusted is not compared: each
-- dividend changes its whole history, and nothing is computed from it.
WITH latest AS (
    SELECT
        *
    FROM raw.bars
    WHERE
        source = $source AND universe = $universe AND interval = $interval AND fetched_at <= $clock
        AND symbol IN (SELECT symbol FROM pulled) AND ts >= (SELECT min(ts) FROM pulled)
    QUALIFY row_number() OVER (PARTITION BY symbol, ts ORDER BY fetched_at DESC, rowid DESC) = 1
)
SELECT
    pulled.*,
    latest.ts IS NOT NULL AS restated
FROM pulled
LEFT JOIN latest ON latest.symbol = pulled.symbol AND latest.ts = pulled.ts
WHERE
    latest.ts IS NULL
    OR (pulled.open IS NULL) <> (latest.open IS NULL)
    OR (pulled.high IS NULL) <> (latest.high IS NULL)
    OR (pulled.low IS NULL) <> (latest.low IS NULL)
    OR (pulled.close IS NULL) <> (latest.close IS NULL)
    OR (pulled.volume IS NULL) <> (latest.volume IS NULL)
    OR (pulled.turnover IS NULL) <> (latest.turnover IS NULL)
    OR abs(pulled.open - latest.open) > 1e-9 * abs(latest.open)
    OR abs(pulled.high - latest.high) > 1e-9 * abs(latest.high)
    OR abs(pulled.low - latest.low) > 1e-9 * abs(latest.low)
    OR abs(pulled.close - latest.close) > 1e-9 * abs(latest.close)
    OR abs(pulled.volume - latest.volume) > 1e-9 * abs(latest.volume)
    OR abs(pulled.turnover - latest.turnover) > 1e-9 * abs(latest.turnover)
ORDER BY pulled.symbol, pulled.ts;
