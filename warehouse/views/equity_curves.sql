-- equity_curves: portfolio value of each backtest, net of costs. One row per (source, universe, backtest_id, ts).
CREATE OR REPLACE VIEW main.equity_curves AS
SELECT
    source,
    universe,
    backtest_id,
    ts,
    session,
    equity,
    session_return,
    drawdown,
    gross_exposure,
    net_exposure,
    turnover,
    cost,
    funding,
    run_id
FROM store.equity_curves;
