-- backtest_exists: whether one backtest is on record. One row, one column.
SELECT
    count(*) > 0 AS found
FROM backtests
WHERE
    source = $source
    AND universe = $universe
    AND backtest_id = $backtest_id;
