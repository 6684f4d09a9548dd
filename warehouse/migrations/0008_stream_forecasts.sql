-- What a network forecasts while a stream feeds it: at every bar's close, of every symbol. One row per (source, universe,
-- model, symbol, ts, horizon_bars), written once: a stream that was killed makes the same forecast again, and it is left
-- as it was.

CREATE TABLE store.stream_forecasts (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, model VARCHAR NOT NULL, trial_id VARCHAR NOT NULL,
    fold INTEGER NOT NULL, artifact_sha256 VARCHAR NOT NULL, symbol VARCHAR NOT NULL, ts TIMESTAMPTZ NOT NULL,
    closes_at TIMESTAMPTZ NOT NULL, horizon_bars INTEGER NOT NULL, expected_return DOUBLE NOT NULL,
    expected_volatility DOUBLE NOT NULL, p_strong_sell DOUBLE NOT NULL, p_sell DOUBLE NOT NULL, p_hold DOUBLE NOT NULL,
    p_buy DOUBLE NOT NULL, p_strong_buy DOUBLE NOT NULL, label_3 VARCHAR NOT NULL, confidence DOUBLE NOT NULL,
    freshness DOUBLE, stale BOOLEAN NOT NULL, made_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (source, universe, model, symbol, ts, horizon_bars)
);

COMMENT ON TABLE store.stream_forecasts IS
    'Forecasts of a stream, made at the close of each bar, each once. Grain: source, universe, model, symbol, ts, horizon_bars';
COMMENT ON COLUMN store.stream_forecasts.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.stream_forecasts.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.stream_forecasts.model IS 'Network of the zoo that made it';
COMMENT ON COLUMN store.stream_forecasts.trial_id IS 'Trial whose fold made it, see trials';
COMMENT ON COLUMN store.stream_forecasts.fold IS 'Fold whose fit made it';
COMMENT ON COLUMN store.stream_forecasts.artifact_sha256 IS 'sha256 of the model file that made it, see folds';
COMMENT ON COLUMN store.stream_forecasts.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN store.stream_forecasts.ts IS 'UTC open of the bar at whose close it was made';
COMMENT ON COLUMN store.stream_forecasts.closes_at IS 'UTC close of that bar: nothing that came later was read';
COMMENT ON COLUMN store.stream_forecasts.horizon_bars IS 'Bars from the entry (the next open) to the exit';
COMMENT ON COLUMN store.stream_forecasts.expected_return IS 'Expected log return from entry to exit';
COMMENT ON COLUMN store.stream_forecasts.expected_volatility IS 'Expected standard deviation of log returns, per bar';
COMMENT ON COLUMN store.stream_forecasts.p_strong_sell IS 'Probability of STRONG_SELL';
COMMENT ON COLUMN store.stream_forecasts.p_sell IS 'Probability of SELL';
COMMENT ON COLUMN store.stream_forecasts.p_hold IS 'Probability of HOLD';
COMMENT ON COLUMN store.stream_forecasts.p_buy IS 'Probability of BUY';
COMMENT ON COLUMN store.stream_forecasts.p_strong_buy IS 'Probability of STRONG_BUY';
COMMENT ON COLUMN store.stream_forecasts.label_3 IS 'Predicted class: BUY, HOLD or SELL';
COMMENT ON COLUMN store.stream_forecasts.confidence IS 'Probability of the predicted class';
COMMENT ON COLUMN store.stream_forecasts.freshness IS
    'How fresh the memory of the symbol was at the close: 1 for an event just then, 0.5 for one an hour before; NULL for none yet';
COMMENT ON COLUMN store.stream_forecasts.stale IS
    'True where the memory heard of no event of the symbol in the hour before the close: not to be acted on';
COMMENT ON COLUMN store.stream_forecasts.made_at IS 'UTC instant at which it was made';
COMMENT ON COLUMN store.stream_forecasts.run_id IS
    'First 16 hex digits of sha256 of the stream that wrote the row: "stream|source|universe"';
