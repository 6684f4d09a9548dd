-- delete_equity_between: deletes the equity curve of one backtest in [$start, $end).
DELETE FROM store.equity_curves
WHERE
    source = $source
    AND universe = $universe
    AND backtest_id = $backtest_id
    AND ts >= $start
    AND ts < $end;
