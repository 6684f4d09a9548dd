-- leaderboard: models and trading rules ranked per universe, net of costs. It has published nights only; the running
-- night reads store.leaderboard. One row per (night, source, universe, model).
CREATE OR REPLACE VIEW main.leaderboard AS
SELECT
    source,
    universe,
    night,
    model,
    rank,
    kind,
    backtest_id,
    sharpe,
    sortino,
    calmar,
    annual_return,
    annual_volatility,
    max_drawdown,
    win_rate,
    profit_factor,
    total_return,
    annual_turnover,
    annual_cost,
    funding_coverage,
    excess_annual_return,
    sessions,
    first_session,
    last_session,
    fill,
    run_id
FROM store.leaderboard
WHERE run_id IN (SELECT run_id FROM store.nights WHERE published_at IS NOT NULL);

COMMENT ON VIEW main.leaderboard IS
    'Models ranked per universe, net of costs, rules beside them. Published nights only. Grain: night, source, universe, model';
