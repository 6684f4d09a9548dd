-- bars: bars that passed the checks, with returns that count dividends. One row per (source, universe, symbol,
-- interval, ts). A dividend counts on the first bar at or after its ex-date, so one that falls on a missing bar is
-- not lost. close_adjusted multiplies each close by close / (close + dividend) of every later bar: its ratios are 1 +
-- total_return.
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
COMMENT ON COLUMN main.bars.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.bars.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.bars.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.bars.interval IS 'Length of the bar: 1d, 1h or 1s';
COMMENT ON COLUMN main.bars.ts IS 'UTC open of the bar';
COMMENT ON COLUMN main.bars.open IS 'First price of the bar';
COMMENT ON COLUMN main.bars.high IS 'Highest price of the bar';
COMMENT ON COLUMN main.bars.low IS 'Lowest price of the bar';
COMMENT ON COLUMN main.bars.close IS 'Last price of the bar, adjusted for splits and not for dividends';
COMMENT ON COLUMN main.bars.close_adjusted IS
    'Close adjusted backwards for splits and dividends; on the last bar it is the close';
COMMENT ON COLUMN main.bars.total_return IS
    '(close + dividends since the bar before) / close of the bar before, less 1: a fraction; NULL on the first bar';
COMMENT ON COLUMN main.bars.volume IS 'Units traded in the bar: shares, or coins (contracts where the exchange counts those)';
COMMENT ON COLUMN main.bars.turnover IS
    'Value traded in the bar in the quote currency; NULL where the provider does not tell';
COMMENT ON COLUMN main.bars.flag IS 'Rules that let the bar pass marked, separated by commas; NULL when there is none';
COMMENT ON COLUMN main.bars.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN main.bars.run_id IS 'Night that wrote the row, see nights';
