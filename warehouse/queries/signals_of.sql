-- signals_of: the stored signals of one night, published or not. One row per (model, symbol).
SELECT
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
    stop_price
FROM store.signals
WHERE
    source = $source
    AND universe = $universe
    AND night = $night
ORDER BY model, symbol;
