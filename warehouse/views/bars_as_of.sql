-- bars_as_of(knowledge_ts): unchecked bars as they were known at an instant: the latest version received at or before
-- it. Usage: FROM bars_as_of('2024-06-28 12:00:00+00'). One row per (source, universe, symbol, interval, ts).
CREATE OR REPLACE MACRO main.bars_as_of(knowledge_ts) AS TABLE
SELECT
    source,
    universe,
    symbol,
    interval,
    ts,
    open,
    high,
    low,
    close,
    close_adjusted,
    volume,
    turnover,
    provider,
    fetched_at,
    run_id
FROM raw.bars
WHERE fetched_at <= CAST(knowledge_ts AS TIMESTAMPTZ)
QUALIFY row_number() OVER (
    PARTITION BY source, universe, symbol, interval, ts
    ORDER BY fetched_at DESC, rowid DESC
) = 1;

COMMENT ON MACRO TABLE main.bars_as_of IS
    'Bars as they were received, in the version known at knowledge_ts (UTC instant). Columns of raw.bars. Grain: source, universe, symbol, interval, ts';
