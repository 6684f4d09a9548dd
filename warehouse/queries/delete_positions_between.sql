-- delete_positions_between: deletes the target weights of one backtest that were decided in [$start, $end).
DELETE FROM store.positions
WHERE
    source = $source
    AND universe = $universe
    AND backtest_id = $backtest_id
    AND ts >= $start
    AND ts < $end;
