-- published_signals: the champion's signals of one night. One row per symbol, largest absolute weight first.
SELECT
    s.model,
    s.symbol,
    s.for_session,
    s.side,
    s.label_3,
    s.label_5,
    s.confidence,
    s.weight,
    s.expected_return,
    s.expected_volatility,
    s.close,
    s.stop_price,
    s.as_of
FROM signals AS s
JOIN nights AS n USING (night, source, universe)
WHERE s.night = $night AND s.source = $source AND s.universe = $universe AND s.model = n.champion
ORDER BY abs(s.weight) DESC, s.confidence DESC, s.symbol;
