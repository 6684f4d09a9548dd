-- backtest_exists: whether the backtest $backtest_id is stored. One row with one boolean column.
SELECT
    count(*) > 0 AS is_stored
FROM backtests
WHERE
    source = $source
    AND universe = $universe
    AND backtest_id = $backtest_id;
