-- signals: what each model says of each symbol for the next session; written once, never altered. One row per (night,
-- source, universe, model, symbol). Rows of published nights only: the night at work reads store.signals.
CREATE OR REPLACE VIEW main.signals AS
SELECT
    source,
    universe,
    night,
    model,
    symbol,
    as_of,
    for_session,
    side,
    label_3,
    label_5,
    confidence,
    expected_return,
    expected_volatility,
    weight,
    close,
    stop_price,
    run_id
FROM store.signals
WHERE run_id IN (SELECT run_id FROM store.nights WHERE published_at IS NOT NULL);

COMMENT ON VIEW main.signals IS
    'What each model says of each symbol for the next session; written once, never altered. Published nights only. Grain: night, source, universe, model, symbol';
COMMENT ON COLUMN main.signals.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.signals.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.signals.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN main.signals.model IS 'Name of the model in the zoo';
COMMENT ON COLUMN main.signals.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.signals.as_of IS 'UTC open of the last bar the signal has seen';
COMMENT ON COLUMN main.signals.for_session IS 'Session the signal is for';
COMMENT ON COLUMN main.signals.side IS 'LONG, FLAT or SHORT';
COMMENT ON COLUMN main.signals.label_3 IS 'SELL, HOLD or BUY';
COMMENT ON COLUMN main.signals.label_5 IS 'STRONG_SELL, SELL, HOLD, BUY or STRONG_BUY';
COMMENT ON COLUMN main.signals.confidence IS 'Probability of the predicted class';
COMMENT ON COLUMN main.signals.expected_return IS 'Expected log return by horizon in bars';
COMMENT ON COLUMN main.signals.expected_volatility IS 'Expected standard deviation of log returns, per bar';
COMMENT ON COLUMN main.signals.weight IS 'Weight in the portfolio under its limits, a signed fraction';
COMMENT ON COLUMN main.signals.close IS 'Close the signal was decided on';
COMMENT ON COLUMN main.signals.stop_price IS 'Price at which to leave the position; NULL when flat';
COMMENT ON COLUMN main.signals.run_id IS 'Night that wrote the row, see nights';
