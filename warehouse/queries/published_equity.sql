-- published_equity: equity per session of every backtest on one night's leaderboard, up to its last session. One row
-- per (model, session).
SELECT
    l.model,
    l.rank,
    e.session,
    e.equity
FROM leaderboard AS l
JOIN equity_curves AS e USING (source, universe, backtest_id)
WHERE l.night = $night AND l.source = $source AND l.universe = $universe AND e.session <= l.last_session
ORDER BY l.rank, e.session;
