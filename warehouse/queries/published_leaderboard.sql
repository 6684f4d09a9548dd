-- published_leaderboard: the leaderboard of one night. One row per model, best rank first.
SELECT
    rank,
    model,
    kind,
    sharpe,
    sortino,
    calmar,
    annual_return,
    annual_volatility,
    max_drawdown,
    win_rate,
    profit_factor,
    annual_turnover,
    excess_annual_return,
    sessions
FROM leaderboard
WHERE night = $night AND source = $source AND universe = $universe
ORDER BY rank;
