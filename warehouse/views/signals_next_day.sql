-- signals_next_day: signals of the champion of the latest published night of each source and universe. One row per
-- (source, universe, symbol).
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
