-- leaderboard: models ranked per universe, net of costs, rules beside them. One row per (night, source, universe,
-- model). Rows of published nights only: the night at work reads store.leaderboard.
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
COMMENT ON COLUMN main.leaderboard.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.leaderboard.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.leaderboard.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN main.leaderboard.model IS 'Name of the model, or of the rule, in the zoo';
COMMENT ON COLUMN main.leaderboard.rank IS '1 is the best, by Sharpe ratio net of costs';
COMMENT ON COLUMN main.leaderboard.kind IS 'network or rule';
COMMENT ON COLUMN main.leaderboard.backtest_id IS 'Backtest, see backtests';
COMMENT ON COLUMN main.leaderboard.sharpe IS
    'Annualised mean over standard deviation of session returns above the risk-free rate';
COMMENT ON COLUMN main.leaderboard.sortino IS
    'Annualised mean over downside deviation of session returns above the risk-free rate';
COMMENT ON COLUMN main.leaderboard.calmar IS 'Annual return over the absolute maximum drawdown';
COMMENT ON COLUMN main.leaderboard.annual_return IS 'Compound return a year, a fraction; NULL for less than a day';
COMMENT ON COLUMN main.leaderboard.annual_volatility IS 'Annualised standard deviation of session returns';
COMMENT ON COLUMN main.leaderboard.max_drawdown IS 'Worst fall from a running maximum, a negative fraction';
COMMENT ON COLUMN main.leaderboard.win_rate IS 'Share of sessions that gained, among those that moved';
COMMENT ON COLUMN main.leaderboard.profit_factor IS 'Sum of gains over sum of losses';
COMMENT ON COLUMN main.leaderboard.total_return IS 'Return over the whole period, a fraction';
COMMENT ON COLUMN main.leaderboard.annual_turnover IS 'Traded value over portfolio value, a year';
COMMENT ON COLUMN main.leaderboard.annual_cost IS 'Commission and slippage a year, a fraction of the value';
COMMENT ON COLUMN main.leaderboard.funding_coverage IS
    'Share of the funding settlements that are on record, the rest is not charged; NULL where there is no funding';
COMMENT ON COLUMN main.leaderboard.excess_annual_return IS 'Annual return less that of the rule buy_and_hold';
COMMENT ON COLUMN main.leaderboard.sessions IS 'Sessions measured';
COMMENT ON COLUMN main.leaderboard.first_session IS 'First session measured';
COMMENT ON COLUMN main.leaderboard.last_session IS 'Last session measured';
COMMENT ON COLUMN main.leaderboard.fill IS 'When orders are filled: next_open unless said otherwise';
COMMENT ON COLUMN main.leaderboard.run_id IS 'Night that wrote the row, see nights';
