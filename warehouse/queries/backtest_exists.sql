-- backtest_exists: whether one backtest is stored. One row, one column.
SELECT
    count(*) > 0 AS is_stored
FROM backtests
WHERE
    source = $source
    AND universe = $universe
    AND backtest_id = $backtest_id;
