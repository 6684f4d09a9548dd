-- One row per (source, universe, symbol, interval, ts): what was known of a symbol at the close of the bar that opened at
-- `ts`. NULL while an indicator warms up. Prices inside are a forward total-return index, so no later dividend or split
-- ever changes a row. The columns are those of models/features/indicators.py, in its order.

CREATE TABLE store.features (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, symbol VARCHAR NOT NULL, interval VARCHAR NOT NULL,
    ts TIMESTAMPTZ NOT NULL,
    return_1 DOUBLE, return_5 DOUBLE, return_20 DOUBLE, return_60 DOUBLE, volatility_20 DOUBLE, volatility_60 DOUBLE,
    rsi_14 DOUBLE, macd DOUBLE, macd_signal DOUBLE, macd_histogram DOUBLE, bollinger_percent_b DOUBLE,
    bollinger_width DOUBLE, atr_14 DOUBLE, obv_20 DOUBLE, volume_z_20 DOUBLE, range_1 DOUBLE, gap_1 DOUBLE,
    hour_sin DOUBLE, hour_cos DOUBLE, weekday_sin DOUBLE, weekday_cos DOUBLE, funding_rate DOUBLE,
    run_id VARCHAR NOT NULL
);

COMMENT ON TABLE store.features IS 'Indicators of each symbol known at the close of each of its bars; one row per source, universe, symbol, interval, ts';
COMMENT ON COLUMN store.features.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.features.universe IS 'Universe the symbol belongs to';
COMMENT ON COLUMN store.features.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN store.features.interval IS 'Bar length: 1d or 1h';
COMMENT ON COLUMN store.features.ts IS 'UTC open of the bar; the row is known at its close';
COMMENT ON COLUMN store.features.return_1 IS 'Log total return over the last bar';
COMMENT ON COLUMN store.features.return_5 IS 'Log total return over the last 5 bars';
COMMENT ON COLUMN store.features.return_20 IS 'Log total return over the last 20 bars';
COMMENT ON COLUMN store.features.return_60 IS 'Log total return over the last 60 bars';
COMMENT ON COLUMN store.features.volatility_20 IS 'Standard deviation of the last 20 log total returns, per bar';
COMMENT ON COLUMN store.features.volatility_60 IS 'Standard deviation of the last 60 log total returns, per bar';
COMMENT ON COLUMN store.features.rsi_14 IS 'Relative strength index over 14 bars, as a fraction between 0 and 1';
COMMENT ON COLUMN store.features.macd IS 'MACD line (12, 26 bars) divided by the price';
COMMENT ON COLUMN store.features.macd_signal IS 'MACD signal line (9 bars) divided by the price';
COMMENT ON COLUMN store.features.macd_histogram IS 'MACD line less signal line, divided by the price';
COMMENT ON COLUMN store.features.bollinger_percent_b IS 'Place of the close between the Bollinger bands (20 bars, 2 deviations): 0 lower, 1 upper';
COMMENT ON COLUMN store.features.bollinger_width IS 'Distance between the Bollinger bands divided by the middle band';
COMMENT ON COLUMN store.features.atr_14 IS 'Average true range over 14 bars divided by the close';
COMMENT ON COLUMN store.features.obv_20 IS 'Change of on-balance volume over 20 bars divided by their volume, between -1 and 1';
COMMENT ON COLUMN store.features.volume_z_20 IS 'Log volume less its mean over 20 bars, in their standard deviations';
COMMENT ON COLUMN store.features.range_1 IS 'High less low of the bar, divided by its close';
COMMENT ON COLUMN store.features.gap_1 IS 'Log of the open over the previous close, dividends added back';
COMMENT ON COLUMN store.features.hour_sin IS 'Sine of the UTC hour of the close on a circle of 24 hours; 0 for bars longer than an hour';
COMMENT ON COLUMN store.features.hour_cos IS 'Cosine of the UTC hour of the close on a circle of 24 hours; 1 for bars longer than an hour';
COMMENT ON COLUMN store.features.weekday_sin IS 'Sine of the UTC weekday of the close on a circle of 7 days, Monday 0';
COMMENT ON COLUMN store.features.weekday_cos IS 'Cosine of the UTC weekday of the close on a circle of 7 days, Monday 0';
COMMENT ON COLUMN store.features.funding_rate IS 'Funding rate last settled at or before the close, a fraction; 0 where there is no funding, NULL before the first known settlement';
COMMENT ON COLUMN store.features.run_id IS 'Night that wrote the row';
