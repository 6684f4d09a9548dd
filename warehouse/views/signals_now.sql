-- signals_now: the newest forecasts of a stream's network for each symbol. One row per (source, universe, model, symbol,
-- horizon_bars). Where stale is true they are not to be acted on.
CREATE OR REPLACE VIEW main.signals_now AS
SELECT
    source,
    universe,
    model,
    trial_id,
    fold,
    artifact_sha256,
    symbol,
    ts,
    closes_at,
    horizon_bars,
    expected_return,
    expected_volatility,
    p_strong_sell,
    p_sell,
    p_hold,
    p_buy,
    p_strong_buy,
    p_buy + p_strong_buy AS p_up,
    p_strong_sell + p_sell AS p_down,
    label_3,
    confidence,
    freshness,
    stale,
    made_at,
    run_id
FROM store.stream_forecasts
QUALIFY ts = max(ts) OVER (PARTITION BY source, universe, model, symbol);

COMMENT ON VIEW main.signals_now IS
    'Newest forecasts of a stream for each symbol; not to be acted on where stale. Grain: source, universe, model, symbol, horizon_bars';
COMMENT ON COLUMN main.signals_now.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.signals_now.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.signals_now.model IS 'Network of the zoo that made it';
COMMENT ON COLUMN main.signals_now.trial_id IS 'Trial whose fold made it, see trials';
COMMENT ON COLUMN main.signals_now.fold IS 'Fold whose fit made it';
COMMENT ON COLUMN main.signals_now.artifact_sha256 IS 'sha256 of the model file that made it, see folds';
COMMENT ON COLUMN main.signals_now.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN main.signals_now.ts IS 'UTC open of the bar at whose close it was made';
COMMENT ON COLUMN main.signals_now.closes_at IS 'UTC close of that bar: nothing that came later was read';
COMMENT ON COLUMN main.signals_now.horizon_bars IS 'Bars from the entry (the next open) to the exit';
COMMENT ON COLUMN main.signals_now.expected_return IS 'Expected log return from entry to exit';
COMMENT ON COLUMN main.signals_now.expected_volatility IS 'Expected standard deviation of log returns, per bar';
COMMENT ON COLUMN main.signals_now.p_strong_sell IS 'Probability of STRONG_SELL';
COMMENT ON COLUMN main.signals_now.p_sell IS 'Probability of SELL';
COMMENT ON COLUMN main.signals_now.p_hold IS 'Probability of HOLD';
COMMENT ON COLUMN main.signals_now.p_buy IS 'Probability of BUY';
COMMENT ON COLUMN main.signals_now.p_strong_buy IS 'Probability of STRONG_BUY';
COMMENT ON COLUMN main.signals_now.p_up IS 'Probability of a rise: BUY or STRONG_BUY';
COMMENT ON COLUMN main.signals_now.p_down IS 'Probability of a fall: SELL or STRONG_SELL';
COMMENT ON COLUMN main.signals_now.label_3 IS 'Predicted class: BUY, HOLD or SELL';
COMMENT ON COLUMN main.signals_now.confidence IS 'Probability of the predicted class';
COMMENT ON COLUMN main.signals_now.freshness IS
    'How fresh the memory of the symbol was at the close: 1 for an event just then, 0.5 for one an hour before; NULL for none yet';
COMMENT ON COLUMN main.signals_now.stale IS
    'True where the memory heard of no event of the symbol in the hour before the close: not to be acted on';
COMMENT ON COLUMN main.signals_now.made_at IS 'UTC instant at which it was made';
COMMENT ON COLUMN main.signals_now.run_id IS
    'First 16 hex digits of sha256 of the stream that wrote the row: "stream|source|universe"';
