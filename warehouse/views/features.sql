-- features: what was known of a symbol at the close of the bar that opened at ts. One row per (source, universe,
-- symbol, interval, ts). NULL while an indicator warms up.
CREATE OR REPLACE VIEW main.features AS
SELECT
    source,
    universe,
    symbol,
    interval,
    ts,
    return_1,
    return_5,
    return_20,
    return_60,
    volatility_20,
    volatility_60,
    rsi_14,
    macd,
    macd_signal,
    macd_histogram,
    bollinger_percent_b,
    bollinger_width,
    atr_14,
    obv_20,
    volume_z_20,
    range_1,
    gap_1,
    hour_sin,
    hour_cos,
    weekday_sin,
    weekday_cos,
    funding_rate,
    run_id
FROM store.features;

COMMENT ON VIEW main.features IS
    'Indicators of each symbol known at the close of each of its bars; one row per source, universe, symbol, interval, ts';
COMMENT ON COLUMN main.features.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.features.universe IS 'Universe the symbol belongs to';
COMMENT ON COLUMN main.features.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.features.interval IS 'Bar length: 1d, 1h or 1s';
COMMENT ON COLUMN main.features.ts IS 'UTC open of the bar; the row is known at its close';
COMMENT ON COLUMN main.features.return_1 IS 'Log total return over the last bar';
COMMENT ON COLUMN main.features.return_5 IS 'Log total return over the last 5 bars';
COMMENT ON COLUMN main.features.return_20 IS 'Log total return over the last 20 bars';
COMMENT ON COLUMN main.features.return_60 IS 'Log total return over the last 60 bars';
COMMENT ON COLUMN main.features.volatility_20 IS 'Standard deviation of the last 20 log total returns, per bar';
COMMENT ON COLUMN main.features.volatility_60 IS 'Standard deviation of the last 60 log total returns, per bar';
COMMENT ON COLUMN main.features.rsi_14 IS 'Relative strength index over 14 bars, as a fraction between 0 and 1';
COMMENT ON COLUMN main.features.macd IS 'MACD line (12, 26 bars) divided by the price';
COMMENT ON COLUMN main.features.macd_signal IS 'MACD signal line (9 bars) divided by the price';
COMMENT ON COLUMN main.features.macd_histogram IS 'MACD line less signal line, divided by the price';
COMMENT ON COLUMN main.features.bollinger_percent_b IS
    'Place of the close between the Bollinger bands (20 bars, 2 deviations): 0 lower, 1 upper';
COMMENT ON COLUMN main.features.bollinger_width IS 'Distance between the Bollinger bands divided by the middle band';
COMMENT ON COLUMN main.features.atr_14 IS 'Average true range over 14 bars divided by the close';
COMMENT ON COLUMN main.features.obv_20 IS
    'Change of on-balance volume over 20 bars divided by their volume, between -1 and 1';
COMMENT ON COLUMN main.features.volume_z_20 IS 'Log volume less its mean over 20 bars, in their standard deviations';
COMMENT ON COLUMN main.features.range_1 IS 'High less low of the bar, divided by its close';
COMMENT ON COLUMN main.features.gap_1 IS 'Log of the open over the previous close, dividends added back';
COMMENT ON COLUMN main.features.hour_sin IS
    'Sine of the UTC hour of the close on a circle of 24 hours; 0 for bars longer than an hour';
COMMENT ON COLUMN main.features.hour_cos IS
    'Cosine of the UTC hour of the close on a circle of 24 hours; 1 for bars longer than an hour';
COMMENT ON COLUMN main.features.weekday_sin IS 'Sine of the UTC weekday of the close on a circle of 7 days, Monday 0';
COMMENT ON COLUMN main.features.weekday_cos IS 'Cosine of the UTC weekday of the close on a circle of 7 days, Monday 0';
COMMENT ON COLUMN main.features.funding_rate IS
    'Funding rate last settled at or before the close, a fraction; 0 where there is no funding, NULL before the first known settlement';
COMMENT ON COLUMN main.features.run_id IS 'Night that wrote the row';
