-- equity_between: the equity curve of one backtest in [$start, $end). One row per ts.
SELECT
    ts,
    session,
    equity,
    session_return,
    drawdown,
    gross_exposure,
    net_exposure,
    turnover,
    cost,
    funding
FROM equity_curves
WHERE
    source = $source
    AND universe = $universe
    AND backtest_id = $backtest_id
    AND ts >= $start
    AND ts < $end
ORDER BY ts;
