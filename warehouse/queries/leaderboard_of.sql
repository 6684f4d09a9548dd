-- leaderboard_of: the leaderboard of one night, published or not. One row per model, best rank first.
SELECT
    rank,
    model,
    kind,
    backtest_id,
    sharpe,
    sessions
FROM store.leaderboard
WHERE
    source = $source
    AND universe = $universe
    AND night = $night
ORDER BY rank;
