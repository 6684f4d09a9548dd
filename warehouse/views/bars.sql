-- bars: bars that passed the checks, with returns that include dividends. A dividend counts on the first bar at or
-- after its ex-date, so a dividend on a missing bar is not lost. close_adjusted is the close times the product, over
-- all later bars, of close / (close + dividend). Therefore the ratio of consecutive adjusted closes is 1 +
-- total_return. One row per (source, universe, symbol, interval, ts).
CREATE OR REPLACE VIEW main.bars AS
WITH listed AS (
    SELECT DISTINCT
        source,
        universe,
        symbol,
        interval
    FROM store.bars
),
paid AS (
    SELECT
        bars.source,
        bars.universe,
        bars.symbol,
        bars.interval,
        bars.ts,
        sum(actions.value) AS dividend
    FROM store.corporate_actions AS actions
    JOIN listed USING (source, universe, symbol)
    ASOF JOIN store.bars AS bars
        ON bars.source = actions.source
        AND bars.universe = actions.universe
        AND bars.symbol = actions.symbol
        AND bars.interval = listed.interval
        AND bars.ts >= actions.ts
    WHERE actions.kind = 'dividend'
    GROUP BY ALL
)
SELECT
    bars.source,
    bars.universe,
    bars.symbol,
    bars.interval,
    bars.ts,
    bars.open,
    bars.high,
    bars.low,
    bars.close,
    bars.close * exp(
        coalesce(sum(ln(bars.close / (bars.close + coalesce(paid.dividend, 0)))) OVER later, 0)
    ) AS close_adjusted,
    (bars.close + coalesce(paid.dividend, 0)) / lag(bars.close) OVER earlier - 1 AS total_return,
    bars.volume,
    bars.turnover,
    bars.flag,
    bars.fetched_at,
    bars.run_id
FROM store.bars AS bars
LEFT JOIN paid USING (source, universe, symbol, interval, ts)
WINDOW
    earlier AS (PARTITION BY bars.source, bars.universe, bars.symbol, bars.interval ORDER BY bars.ts),
    later AS (
        PARTITION BY bars.source, bars.universe, bars.symbol, bars.interval
        ORDER BY bars.ts ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
    );

COMMENT ON VIEW main.bars IS
    'Bars that passed the checks, latest version, with returns that count dividends. Grain: source, universe, symbol, interval, ts';
COMMENT ON COLUMN main.bars.close_adjusted IS
    'Close adjusted backwards for splits and dividends; on the last bar it is the close';
COMMENT ON COLUMN main.bars.total_return IS
    '(close + dividends since the bar before) / close of the bar before, less 1: a fraction; NULL on the first bar';
