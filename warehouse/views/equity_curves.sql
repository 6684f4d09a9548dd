-- equity_curves: portfolio value of each backtest, net of costs. One row per (source, universe, backtest_id, ts).
CREATE OR REPLACE VIEW main.equity_curves AS
SELECT
    source,
    universe,
    backtest_id,
    ts,
    session,
    equity,
    session_return,
    drawdown,
    gross_exposure,
    net_exposure,
    turnover,
    cost,
    funding,
    run_id
FROM store.equity_curves;

COMMENT ON VIEW main.equity_curves IS
    'Portfolio value of each backtest, net of costs. Grain: source, universe, backtest_id, ts';
COMMENT ON COLUMN main.equity_curves.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.equity_curves.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.equity_curves.backtest_id IS 'Backtest, see backtests';
COMMENT ON COLUMN main.equity_curves.ts IS 'UTC open of the last bar of the session';
COMMENT ON COLUMN main.equity_curves.session IS 'Date of the session';
COMMENT ON COLUMN main.equity_curves.equity IS 'Value of the portfolio at the close of the session, 1 at the start';
COMMENT ON COLUMN main.equity_curves.session_return IS 'Return over the session, a fraction, net of costs';
COMMENT ON COLUMN main.equity_curves.drawdown IS 'Value over its running maximum, less 1; zero or negative';
COMMENT ON COLUMN main.equity_curves.gross_exposure IS 'Sum of absolute weights at the close';
COMMENT ON COLUMN main.equity_curves.net_exposure IS 'Sum of signed weights at the close';
COMMENT ON COLUMN main.equity_curves.turnover IS 'Value traded in the session over portfolio value';
COMMENT ON COLUMN main.equity_curves.cost IS 'Commission and slippage paid in the session, a fraction of the value';
COMMENT ON COLUMN main.equity_curves.funding IS
    'Funding received in the session, a fraction of the value; negative when paid';
COMMENT ON COLUMN main.equity_curves.run_id IS 'Night that wrote the row, see nights';
