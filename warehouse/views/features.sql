-- features: features of a symbol, computed at the close of the bar that opened at ts from what was known then. NULL
-- while an indicator warms up. One row per (source, universe, symbol, interval, ts).
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
