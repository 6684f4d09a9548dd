-- signals_next_day: the signals to act on: those of the champion of the latest published night of each source and
-- universe. One row per (source, universe, symbol).
CREATE OR REPLACE VIEW main.signals_next_day AS
SELECT
    signals.source,
    signals.universe,
    signals.night,
    signals.model,
    signals.symbol,
    signals.as_of,
    signals.for_session,
    signals.side,
    signals.label_3,
    signals.label_5,
    signals.confidence,
    signals.expected_return,
    signals.expected_volatility,
    signals.weight,
    signals.close,
    signals.stop_price,
    signals.run_id
FROM store.signals
SEMI JOIN (
    SELECT
        source,
        universe,
        max(night) AS night
    FROM store.nights
    WHERE published_at IS NOT NULL
    GROUP BY source, universe
) AS latest
    ON latest.source = signals.source AND latest.universe = signals.universe AND latest.night = signals.night
SEMI JOIN store.model_registry AS champion
    ON champion.run_id = signals.run_id AND champion.model = signals.model AND champion.role = 'champion';

COMMENT ON VIEW main.signals_next_day IS
    'Signals of the champion of the latest published night of each source and universe. Grain: source, universe, symbol';
COMMENT ON COLUMN main.signals_next_day.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.signals_next_day.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.signals_next_day.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN main.signals_next_day.model IS 'Name of the model in the zoo';
COMMENT ON COLUMN main.signals_next_day.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.signals_next_day.as_of IS 'UTC open of the last bar the signal has seen';
COMMENT ON COLUMN main.signals_next_day.for_session IS 'Session the signal is for';
COMMENT ON COLUMN main.signals_next_day.side IS 'LONG, FLAT or SHORT';
COMMENT ON COLUMN main.signals_next_day.label_3 IS 'SELL, HOLD or BUY';
COMMENT ON COLUMN main.signals_next_day.label_5 IS 'STRONG_SELL, SELL, HOLD, BUY or STRONG_BUY';
COMMENT ON COLUMN main.signals_next_day.confidence IS 'Probability of the predicted class';
COMMENT ON COLUMN main.signals_next_day.expected_return IS 'Expected log return by horizon in bars';
COMMENT ON COLUMN main.signals_next_day.expected_volatility IS 'Expected standard deviation of log returns, per bar';
COMMENT ON COLUMN main.signals_next_day.weight IS 'Weight in the portfolio under its limits, a signed fraction';
COMMENT ON COLUMN main.signals_next_day.close IS 'Close the signal was decided on';
COMMENT ON COLUMN main.signals_next_day.stop_price IS 'Price at which to leave the position; NULL when flat';
COMMENT ON COLUMN main.signals_next_day.run_id IS 'Night that wrote the row, see nights';
