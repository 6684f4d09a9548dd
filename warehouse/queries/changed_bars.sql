-- changed_bars: those of the registered relation `pulled` (symbol, interval, ts, prices) that are new, or differ by more
-- than 1e-9 of their value from the latest version known at $clock; `restated` tells them apart. One row per row of
-- `pulled`. The provider's close_adjusted is not compared: each dividend moves all of it, and nothing is computed from it.
WITH known AS (
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
    known.ts IS NOT NULL AS restated
FROM pulled
LEFT JOIN known ON known.symbol = pulled.symbol AND known.ts = pulled.ts
WHERE
    known.ts IS NULL
    OR (pulled.open IS NULL) <> (known.open IS NULL)
    OR (pulled.high IS NULL) <> (known.high IS NULL)
    OR (pulled.low IS NULL) <> (known.low IS NULL)
    OR (pulled.close IS NULL) <> (known.close IS NULL)
    OR (pulled.volume IS NULL) <> (known.volume IS NULL)
    OR (pulled.turnover IS NULL) <> (known.turnover IS NULL)
    OR abs(pulled.open - known.open) > 1e-9 * abs(known.open)
    OR abs(pulled.high - known.high) > 1e-9 * abs(known.high)
    OR abs(pulled.low - known.low) > 1e-9 * abs(known.low)
    OR abs(pulled.close - known.close) > 1e-9 * abs(known.close)
    OR abs(pulled.volume - known.volume) > 1e-9 * abs(known.volume)
    OR abs(pulled.turnover - known.turnover) > 1e-9 * abs(known.turnover)
ORDER BY pulled.symbol, pulled.ts;
