-- The first shape of the warehouse. `raw` holds every version of every row as it was received, append-only; `store` holds
-- the night's tables. Users query the views in `main` (warehouse/views), not these.
-- No primary keys: every write is one transaction that deletes its slice and inserts it again, or appends.
-- Every table carries `source` (live | recorded | simulated) and `universe`; times are UTC; returns are fractions.

CREATE SCHEMA raw;
CREATE SCHEMA store;

CREATE TABLE raw.bars (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, symbol VARCHAR NOT NULL, interval VARCHAR NOT NULL,
    ts TIMESTAMPTZ NOT NULL, open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE, close_adjusted DOUBLE, volume DOUBLE,
    turnover DOUBLE, provider VARCHAR NOT NULL, fetched_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE raw.corporate_actions (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, symbol VARCHAR NOT NULL, ts TIMESTAMPTZ NOT NULL,
    kind VARCHAR NOT NULL, value DOUBLE, provider VARCHAR NOT NULL, fetched_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE raw.funding_rates (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, symbol VARCHAR NOT NULL, ts TIMESTAMPTZ NOT NULL,
    rate DOUBLE, provider VARCHAR NOT NULL, fetched_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE raw.instruments (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, symbol VARCHAR NOT NULL, status VARCHAR, launched_at TIMESTAMPTZ,
    tick_size DOUBLE, lot_size DOUBLE, funding_interval_minutes INTEGER,
    provider VARCHAR NOT NULL, fetched_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE raw.fetches (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, night DATE NOT NULL, symbol VARCHAR NOT NULL,
    status VARCHAR NOT NULL, error VARCHAR, bars INTEGER NOT NULL, restated INTEGER NOT NULL, actions INTEGER NOT NULL,
    funding INTEGER NOT NULL, first_ts TIMESTAMPTZ, last_ts TIMESTAMPTZ,
    fetched_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL
);

CREATE TABLE store.universes (
    universe VARCHAR NOT NULL, provider VARCHAR NOT NULL, interval VARCHAR NOT NULL, calendar VARCHAR NOT NULL,
    benchmark VARCHAR NOT NULL, history_start DATE NOT NULL, commission_bps DOUBLE NOT NULL, slippage_bps DOUBLE NOT NULL,
    survivorship_biased BOOLEAN NOT NULL, description VARCHAR NOT NULL
);
CREATE TABLE store.universe_members (
    universe VARCHAR NOT NULL, symbol VARCHAR NOT NULL, valid_from DATE NOT NULL, valid_to DATE,
    sector VARCHAR, industry VARCHAR, membership_source VARCHAR NOT NULL
);

-- night state: one row per (night, source, universe); run_id = the first 16 hex digits of sha256("night|source|universe")
CREATE TABLE store.nights (
    night DATE NOT NULL, source VARCHAR NOT NULL, universe VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
    clock TIMESTAMPTZ NOT NULL, settings JSON NOT NULL, settings_hash VARCHAR NOT NULL, state VARCHAR NOT NULL,
    last_ts TIMESTAMPTZ, for_session DATE, champion VARCHAR, message VARCHAR, published_at TIMESTAMPTZ
);
-- what ran when, in wall time: operation only, differs between two runs of the same night
CREATE TABLE store.step_runs (
    night DATE NOT NULL, source VARCHAR NOT NULL, universe VARCHAR NOT NULL, run_id VARCHAR NOT NULL, step VARCHAR NOT NULL,
    state VARCHAR NOT NULL, started_at TIMESTAMPTZ NOT NULL, finished_at TIMESTAMPTZ, seconds DOUBLE, detail VARCHAR
);

CREATE TABLE store.bars (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, symbol VARCHAR NOT NULL, interval VARCHAR NOT NULL,
    ts TIMESTAMPTZ NOT NULL, open DOUBLE NOT NULL, high DOUBLE NOT NULL, low DOUBLE NOT NULL, close DOUBLE NOT NULL,
    volume DOUBLE NOT NULL, turnover DOUBLE, flag VARCHAR, fetched_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.corporate_actions (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, symbol VARCHAR NOT NULL, ts TIMESTAMPTZ NOT NULL,
    kind VARCHAR NOT NULL, value DOUBLE NOT NULL, fetched_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.funding_rates (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, symbol VARCHAR NOT NULL, ts TIMESTAMPTZ NOT NULL,
    rate DOUBLE NOT NULL, fetched_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.checks (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, night DATE NOT NULL, table_name VARCHAR NOT NULL,
    rule VARCHAR NOT NULL, policy VARCHAR NOT NULL, passed BOOLEAN NOT NULL, rows_checked BIGINT NOT NULL,
    rows_failed BIGINT NOT NULL, failing_keys JSON NOT NULL, message VARCHAR NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.quarantine (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, night DATE NOT NULL, table_name VARCHAR NOT NULL,
    symbol VARCHAR NOT NULL, ts TIMESTAMPTZ NOT NULL, rule VARCHAR NOT NULL, reason VARCHAR NOT NULL, contents JSON NOT NULL,
    fetched_at TIMESTAMPTZ NOT NULL, run_id VARCHAR NOT NULL
);

CREATE TABLE store.graph_snapshots (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, graph VARCHAR NOT NULL, as_of TIMESTAMPTZ NOT NULL,
    window_start TIMESTAMPTZ, nodes INTEGER NOT NULL, edges INTEGER NOT NULL, density DOUBLE NOT NULL,
    mean_weight DOUBLE, parameters JSON NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.graph_edges (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, graph VARCHAR NOT NULL, as_of TIMESTAMPTZ NOT NULL,
    src VARCHAR NOT NULL, dst VARCHAR NOT NULL, weight DOUBLE NOT NULL, run_id VARCHAR NOT NULL
);

CREATE TABLE store.trials (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, trial_id VARCHAR NOT NULL, model VARCHAR NOT NULL, seed INTEGER NOT NULL,
    spec JSON NOT NULL, parameters BIGINT NOT NULL, horizons_bars INTEGER[] NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.folds (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, trial_id VARCHAR NOT NULL, fold INTEGER NOT NULL,
    fold_key VARCHAR NOT NULL, train_start TIMESTAMPTZ NOT NULL, train_end TIMESTAMPTZ NOT NULL,
    last_label_end TIMESTAMPTZ NOT NULL, test_start TIMESTAMPTZ NOT NULL, test_end TIMESTAMPTZ,
    purge_bars INTEGER NOT NULL, embargo_bars INTEGER NOT NULL, train_rows BIGINT NOT NULL, validation_rows BIGINT NOT NULL,
    epochs INTEGER NOT NULL, validation_loss DOUBLE, data_hash VARCHAR NOT NULL, code_version VARCHAR NOT NULL,
    artifact VARCHAR NOT NULL, artifact_sha256 VARCHAR NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.predictions (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, trial_id VARCHAR NOT NULL, fold INTEGER NOT NULL, symbol VARCHAR NOT NULL,
    ts TIMESTAMPTZ NOT NULL, horizon_bars INTEGER NOT NULL, expected_return DOUBLE NOT NULL, expected_volatility DOUBLE NOT NULL,
    p_strong_sell DOUBLE NOT NULL, p_sell DOUBLE NOT NULL, p_hold DOUBLE NOT NULL, p_buy DOUBLE NOT NULL,
    p_strong_buy DOUBLE NOT NULL, run_id VARCHAR NOT NULL
);

CREATE TABLE store.backtests (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, backtest_id VARCHAR NOT NULL, model VARCHAR NOT NULL,
    trial_ids VARCHAR[] NOT NULL, fill VARCHAR NOT NULL, commission_bps DOUBLE NOT NULL, slippage_bps DOUBLE NOT NULL,
    limits JSON NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.equity_curves (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, backtest_id VARCHAR NOT NULL, ts TIMESTAMPTZ NOT NULL,
    session DATE NOT NULL, equity DOUBLE NOT NULL, session_return DOUBLE NOT NULL, drawdown DOUBLE NOT NULL,
    gross_exposure DOUBLE NOT NULL, net_exposure DOUBLE NOT NULL, turnover DOUBLE NOT NULL, cost DOUBLE NOT NULL,
    funding DOUBLE NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.positions (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, backtest_id VARCHAR NOT NULL, ts TIMESTAMPTZ NOT NULL,
    symbol VARCHAR NOT NULL, weight DOUBLE NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.metrics (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, night DATE NOT NULL, backtest_id VARCHAR NOT NULL,
    metric VARCHAR NOT NULL, value DOUBLE, run_id VARCHAR NOT NULL
);
CREATE TABLE store.leaderboard (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, night DATE NOT NULL, model VARCHAR NOT NULL, rank INTEGER NOT NULL,
    kind VARCHAR NOT NULL, backtest_id VARCHAR NOT NULL, sharpe DOUBLE, sortino DOUBLE, calmar DOUBLE, annual_return DOUBLE,
    annual_volatility DOUBLE, max_drawdown DOUBLE, win_rate DOUBLE, profit_factor DOUBLE, total_return DOUBLE,
    annual_turnover DOUBLE, annual_cost DOUBLE, funding_coverage DOUBLE, excess_annual_return DOUBLE, sessions INTEGER NOT NULL,
    first_session DATE NOT NULL, last_session DATE NOT NULL, fill VARCHAR NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.leak_audit (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, night DATE NOT NULL, subject VARCHAR NOT NULL, cut TIMESTAMPTZ NOT NULL,
    rows_compared BIGINT NOT NULL, rows_different BIGINT NOT NULL, max_abs_difference DOUBLE NOT NULL, passed BOOLEAN NOT NULL,
    message VARCHAR NOT NULL, run_id VARCHAR NOT NULL
);
CREATE TABLE store.signals (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, night DATE NOT NULL, model VARCHAR NOT NULL, symbol VARCHAR NOT NULL,
    as_of TIMESTAMPTZ NOT NULL, for_session DATE NOT NULL, side VARCHAR NOT NULL, label_3 VARCHAR NOT NULL, label_5 VARCHAR NOT NULL,
    confidence DOUBLE NOT NULL, expected_return MAP(INTEGER, DOUBLE) NOT NULL, expected_volatility DOUBLE NOT NULL,
    weight DOUBLE NOT NULL, close DOUBLE NOT NULL, stop_price DOUBLE, run_id VARCHAR NOT NULL
);
CREATE TABLE store.model_registry (
    source VARCHAR NOT NULL, universe VARCHAR NOT NULL, night DATE NOT NULL, role VARCHAR NOT NULL, model VARCHAR NOT NULL,
    trial_ids VARCHAR[] NOT NULL, sharpe DOUBLE, reason VARCHAR NOT NULL, run_id VARCHAR NOT NULL
);
