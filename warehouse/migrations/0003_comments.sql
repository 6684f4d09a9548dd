-- What every table and column of 0001 means; the schema page is generated from these comments (warehouse/schema.py).

COMMENT ON TABLE raw.bars IS
    'Every version of every bar as it was received, append-only. Grain: source, universe, symbol, interval, ts, fetched_at';
COMMENT ON COLUMN raw.bars.source IS 'live, recorded or simulated';
COMMENT ON COLUMN raw.bars.universe IS 'Universe, see universes';
COMMENT ON COLUMN raw.bars.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN raw.bars.interval IS 'Length of the bar: 1d or 1h';
COMMENT ON COLUMN raw.bars.ts IS 'UTC open of the bar';
COMMENT ON COLUMN raw.bars.open IS 'First price of the bar';
COMMENT ON COLUMN raw.bars.high IS 'Highest price of the bar';
COMMENT ON COLUMN raw.bars.low IS 'Lowest price of the bar';
COMMENT ON COLUMN raw.bars.close IS 'Last price of the bar, adjusted for splits as the provider had it at fetched_at';
COMMENT ON COLUMN raw.bars.close_adjusted IS
    'Close adjusted by the provider for splits and dividends as of fetched_at; NULL where there is none';
COMMENT ON COLUMN raw.bars.volume IS 'Units traded in the bar: shares, or coins for perpetuals';
COMMENT ON COLUMN raw.bars.turnover IS
    'Value traded in the bar in the quote currency; NULL where the provider does not tell';
COMMENT ON COLUMN raw.bars.provider IS 'Who served the row: yahoo or bybit';
COMMENT ON COLUMN raw.bars.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN raw.bars.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE raw.corporate_actions IS
    'Every version of every dividend and split as it was received, append-only. Grain: source, universe, symbol, ts, kind, fetched_at';
COMMENT ON COLUMN raw.corporate_actions.source IS 'live, recorded or simulated';
COMMENT ON COLUMN raw.corporate_actions.universe IS 'Universe, see universes';
COMMENT ON COLUMN raw.corporate_actions.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN raw.corporate_actions.ts IS 'UTC instant from which the action counts: the open of its ex-date';
COMMENT ON COLUMN raw.corporate_actions.kind IS 'dividend or split';
COMMENT ON COLUMN raw.corporate_actions.value IS
    'Dividend in currency per split-adjusted share, or split ratio (new shares per old)';
COMMENT ON COLUMN raw.corporate_actions.provider IS 'Who served the row: yahoo or bybit';
COMMENT ON COLUMN raw.corporate_actions.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN raw.corporate_actions.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE raw.fetches IS 'How the download of each symbol went. Grain: night, source, universe, symbol';
COMMENT ON COLUMN raw.fetches.source IS 'live, recorded or simulated';
COMMENT ON COLUMN raw.fetches.universe IS 'Universe, see universes';
COMMENT ON COLUMN raw.fetches.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN raw.fetches.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN raw.fetches.status IS 'ok or failed';
COMMENT ON COLUMN raw.fetches.error IS 'What went wrong; NULL when nothing did';
COMMENT ON COLUMN raw.fetches.bars IS 'Bars written: new, or changed since the version before';
COMMENT ON COLUMN raw.fetches.restated IS 'Bars written that were changed';
COMMENT ON COLUMN raw.fetches.actions IS 'Dividends and splits written';
COMMENT ON COLUMN raw.fetches.funding IS 'Funding settlements written';
COMMENT ON COLUMN raw.fetches.first_ts IS 'UTC open of the first bar received';
COMMENT ON COLUMN raw.fetches.last_ts IS 'UTC open of the last bar received';
COMMENT ON COLUMN raw.fetches.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN raw.fetches.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE raw.funding_rates IS
    'Every version of every funding settlement as it was received, append-only. Grain: source, universe, symbol, ts, fetched_at';
COMMENT ON COLUMN raw.funding_rates.source IS 'live, recorded or simulated';
COMMENT ON COLUMN raw.funding_rates.universe IS 'Universe, see universes';
COMMENT ON COLUMN raw.funding_rates.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN raw.funding_rates.ts IS 'UTC instant of the settlement';
COMMENT ON COLUMN raw.funding_rates.rate IS
    'Fraction of the position value that longs pay to shorts; negative when shorts pay';
COMMENT ON COLUMN raw.funding_rates.provider IS 'Who served the row: yahoo or bybit';
COMMENT ON COLUMN raw.funding_rates.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN raw.funding_rates.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE raw.instruments IS
    'What the exchange said of each perpetual, append-only. Grain: source, universe, symbol, fetched_at';
COMMENT ON COLUMN raw.instruments.source IS 'live, recorded or simulated';
COMMENT ON COLUMN raw.instruments.universe IS 'Universe, see universes';
COMMENT ON COLUMN raw.instruments.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN raw.instruments.status IS 'Trading status as the exchange names it';
COMMENT ON COLUMN raw.instruments.launched_at IS 'UTC instant of its first trade';
COMMENT ON COLUMN raw.instruments.tick_size IS 'Smallest price step';
COMMENT ON COLUMN raw.instruments.lot_size IS 'Smallest quantity step';
COMMENT ON COLUMN raw.instruments.funding_interval_minutes IS 'Minutes between funding settlements at fetched_at';
COMMENT ON COLUMN raw.instruments.provider IS 'Who served the row: yahoo or bybit';
COMMENT ON COLUMN raw.instruments.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN raw.instruments.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.backtests IS 'Simulated portfolios, one per model. Grain: source, universe, backtest_id';
COMMENT ON COLUMN store.backtests.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.backtests.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.backtests.backtest_id IS 'Name of the backtest within its universe';
COMMENT ON COLUMN store.backtests.model IS 'Name of the model, or of the rule, in the zoo';
COMMENT ON COLUMN store.backtests.trial_ids IS 'Trials whose forecasts are averaged; empty for a rule';
COMMENT ON COLUMN store.backtests.fill IS 'When an order is filled: next_open unless said otherwise';
COMMENT ON COLUMN store.backtests.commission_bps IS 'Commission per traded value, in basis points (1/10000)';
COMMENT ON COLUMN store.backtests.slippage_bps IS 'Slippage per traded value, in basis points (1/10000)';
COMMENT ON COLUMN store.backtests.limits IS 'Limits on positions and exposure, as JSON';
COMMENT ON COLUMN store.backtests.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.bars IS
    'Bars that passed the checks, latest version. Grain: source, universe, symbol, interval, ts';
COMMENT ON COLUMN store.bars.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.bars.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.bars.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN store.bars.interval IS 'Length of the bar: 1d or 1h';
COMMENT ON COLUMN store.bars.ts IS 'UTC open of the bar';
COMMENT ON COLUMN store.bars.open IS 'First price of the bar';
COMMENT ON COLUMN store.bars.high IS 'Highest price of the bar';
COMMENT ON COLUMN store.bars.low IS 'Lowest price of the bar';
COMMENT ON COLUMN store.bars.close IS 'Last price of the bar, adjusted for splits and not for dividends';
COMMENT ON COLUMN store.bars.volume IS 'Units traded in the bar: shares, or coins for perpetuals';
COMMENT ON COLUMN store.bars.turnover IS
    'Value traded in the bar in the quote currency; NULL where the provider does not tell';
COMMENT ON COLUMN store.bars.flag IS 'Rules that let the bar pass marked, separated by commas; NULL when there is none';
COMMENT ON COLUMN store.bars.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN store.bars.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.checks IS 'Verdict of every validation rule. Grain: night, source, universe, table_name, rule';
COMMENT ON COLUMN store.checks.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.checks.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.checks.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN store.checks.table_name IS 'Table the rule looks at';
COMMENT ON COLUMN store.checks.rule IS 'Name of the rule';
COMMENT ON COLUMN store.checks.policy IS 'What a failure does: block (the night), quarantine or flag (the rows)';
COMMENT ON COLUMN store.checks.passed IS 'True when no row failed';
COMMENT ON COLUMN store.checks.rows_checked IS 'Rows looked at: what the night received';
COMMENT ON COLUMN store.checks.rows_failed IS 'Rows that failed';
COMMENT ON COLUMN store.checks.failing_keys IS 'Keys of failing rows, as JSON';
COMMENT ON COLUMN store.checks.message IS 'Verdict in words';
COMMENT ON COLUMN store.checks.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.corporate_actions IS
    'Dividends and splits that passed the checks, latest version. Grain: source, universe, symbol, ts, kind';
COMMENT ON COLUMN store.corporate_actions.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.corporate_actions.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.corporate_actions.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN store.corporate_actions.ts IS 'UTC instant from which the action counts: the open of its ex-date';
COMMENT ON COLUMN store.corporate_actions.kind IS 'dividend or split';
COMMENT ON COLUMN store.corporate_actions.value IS
    'Dividend in currency per split-adjusted share, or split ratio (new shares per old)';
COMMENT ON COLUMN store.corporate_actions.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN store.corporate_actions.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.equity_curves IS
    'Portfolio value of each backtest, net of costs. Grain: source, universe, backtest_id, ts';
COMMENT ON COLUMN store.equity_curves.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.equity_curves.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.equity_curves.backtest_id IS 'Backtest, see backtests';
COMMENT ON COLUMN store.equity_curves.ts IS 'UTC open of the last bar of the session';
COMMENT ON COLUMN store.equity_curves.session IS 'Session, a date';
COMMENT ON COLUMN store.equity_curves.equity IS 'Value of the portfolio at the close of the session, 1 at the start';
COMMENT ON COLUMN store.equity_curves.session_return IS 'Return over the session, a fraction, net of costs';
COMMENT ON COLUMN store.equity_curves.drawdown IS 'Value over its running maximum, less 1; zero or negative';
COMMENT ON COLUMN store.equity_curves.gross_exposure IS 'Sum of absolute weights at the close';
COMMENT ON COLUMN store.equity_curves.net_exposure IS 'Sum of signed weights at the close';
COMMENT ON COLUMN store.equity_curves.turnover IS 'Value traded in the session over portfolio value';
COMMENT ON COLUMN store.equity_curves.cost IS 'Commission and slippage paid in the session, a fraction of the value';
COMMENT ON COLUMN store.equity_curves.funding IS
    'Funding received in the session, a fraction of the value; negative when paid';
COMMENT ON COLUMN store.equity_curves.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.folds IS 'Walk-forward fits, one per trial and fold. Grain: source, universe, trial_id, fold';
COMMENT ON COLUMN store.folds.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.folds.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.folds.trial_id IS 'Trial, see trials';
COMMENT ON COLUMN store.folds.fold IS 'Number of the walk-forward fold, 0 the oldest';
COMMENT ON COLUMN store.folds.fold_key IS
    'Hash of specification, training data, code version and seed: equal keys are the same fit';
COMMENT ON COLUMN store.folds.train_start IS 'UTC open of the first bar trained on';
COMMENT ON COLUMN store.folds.train_end IS 'UTC open of the last bar trained on';
COMMENT ON COLUMN store.folds.last_label_end IS
    'UTC open of the bar at which the last training label ended; before test_start';
COMMENT ON COLUMN store.folds.test_start IS 'UTC open of the first bar predicted';
COMMENT ON COLUMN store.folds.test_end IS
    'UTC open of the bar at which the test window ends (exclusive); NULL while that bar is not there yet';
COMMENT ON COLUMN store.folds.purge_bars IS 'Training bars dropped because their labels reached too far';
COMMENT ON COLUMN store.folds.embargo_bars IS 'Bars left out between training and test';
COMMENT ON COLUMN store.folds.train_rows IS 'Rows (bar, symbol) trained on';
COMMENT ON COLUMN store.folds.validation_rows IS 'Rows (bar, symbol) held back for early stopping';
COMMENT ON COLUMN store.folds.epochs IS 'Epochs trained';
COMMENT ON COLUMN store.folds.validation_loss IS 'Best loss on the rows held back; NULL without any';
COMMENT ON COLUMN store.folds.data_hash IS 'Hash of the training data';
COMMENT ON COLUMN store.folds.code_version IS 'Hash of the source files that shape a fit';
COMMENT ON COLUMN store.folds.artifact IS 'File of the fitted model, relative to the artifacts folder';
COMMENT ON COLUMN store.folds.artifact_sha256 IS 'Hash of that file';
COMMENT ON COLUMN store.folds.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.funding_rates IS
    'Funding settlements of perpetuals that passed the checks, latest version. Grain: source, universe, symbol, ts';
COMMENT ON COLUMN store.funding_rates.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.funding_rates.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.funding_rates.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN store.funding_rates.ts IS 'UTC instant of the settlement';
COMMENT ON COLUMN store.funding_rates.rate IS
    'Fraction of the position value that longs pay to shorts; negative when shorts pay';
COMMENT ON COLUMN store.funding_rates.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN store.funding_rates.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.graph_edges IS 'Edges of the graphs. Grain: source, universe, graph, as_of, src, dst';
COMMENT ON COLUMN store.graph_edges.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.graph_edges.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.graph_edges.graph IS 'Kind of graph: correlation or sector';
COMMENT ON COLUMN store.graph_edges.as_of IS
    'UTC open of the last bar the graph has seen; usable from the close of that bar';
COMMENT ON COLUMN store.graph_edges.src IS 'Symbol the edge starts at; an undirected edge is stored once, src < dst';
COMMENT ON COLUMN store.graph_edges.dst IS 'Symbol the edge ends at';
COMMENT ON COLUMN store.graph_edges.weight IS 'Weight of the edge: the correlation, or 1 for the same sector';
COMMENT ON COLUMN store.graph_edges.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.graph_snapshots IS 'Graphs between symbols, one per date. Grain: source, universe, graph, as_of';
COMMENT ON COLUMN store.graph_snapshots.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.graph_snapshots.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.graph_snapshots.graph IS 'Kind of graph: correlation or sector';
COMMENT ON COLUMN store.graph_snapshots.as_of IS
    'UTC open of the last bar the graph has seen; usable from the close of that bar';
COMMENT ON COLUMN store.graph_snapshots.window_start IS
    'UTC open of the first bar of its window; NULL where there is none';
COMMENT ON COLUMN store.graph_snapshots.nodes IS 'Symbols in the graph';
COMMENT ON COLUMN store.graph_snapshots.edges IS 'Edges in the graph';
COMMENT ON COLUMN store.graph_snapshots.density IS 'Edges over possible edges, a fraction';
COMMENT ON COLUMN store.graph_snapshots.mean_weight IS 'Mean weight of its edges; NULL without edges';
COMMENT ON COLUMN store.graph_snapshots.parameters IS 'How it was built, as JSON';
COMMENT ON COLUMN store.graph_snapshots.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.leaderboard IS
    'Models ranked per universe, net of costs, rules beside them. Grain: night, source, universe, model';
COMMENT ON COLUMN store.leaderboard.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.leaderboard.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.leaderboard.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN store.leaderboard.model IS 'Name of the model, or of the rule, in the zoo';
COMMENT ON COLUMN store.leaderboard.rank IS '1 is the best, by Sharpe ratio net of costs';
COMMENT ON COLUMN store.leaderboard.kind IS 'network or rule';
COMMENT ON COLUMN store.leaderboard.backtest_id IS 'Backtest, see backtests';
COMMENT ON COLUMN store.leaderboard.sharpe IS
    'Annualised mean over standard deviation of session returns above the risk-free rate';
COMMENT ON COLUMN store.leaderboard.sortino IS
    'Annualised mean over downside deviation of session returns above the risk-free rate';
COMMENT ON COLUMN store.leaderboard.calmar IS 'Annual return over the absolute maximum drawdown';
COMMENT ON COLUMN store.leaderboard.annual_return IS 'Compound return a year, a fraction';
COMMENT ON COLUMN store.leaderboard.annual_volatility IS 'Annualised standard deviation of session returns';
COMMENT ON COLUMN store.leaderboard.max_drawdown IS 'Worst fall from a running maximum, a negative fraction';
COMMENT ON COLUMN store.leaderboard.win_rate IS 'Share of sessions that gained, among those that moved';
COMMENT ON COLUMN store.leaderboard.profit_factor IS 'Sum of gains over sum of losses';
COMMENT ON COLUMN store.leaderboard.total_return IS 'Return over the whole period, a fraction';
COMMENT ON COLUMN store.leaderboard.annual_turnover IS 'Traded value over portfolio value, a year';
COMMENT ON COLUMN store.leaderboard.annual_cost IS 'Commission and slippage a year, a fraction of the value';
COMMENT ON COLUMN store.leaderboard.funding_coverage IS
    'Share of the funding settlements that are on record, the rest is not charged; NULL where there is no funding';
COMMENT ON COLUMN store.leaderboard.excess_annual_return IS 'Annual return less that of the rule buy_and_hold';
COMMENT ON COLUMN store.leaderboard.sessions IS 'Sessions measured';
COMMENT ON COLUMN store.leaderboard.first_session IS 'First session measured';
COMMENT ON COLUMN store.leaderboard.last_session IS 'Last session measured';
COMMENT ON COLUMN store.leaderboard.fill IS 'When orders are filled: next_open unless said otherwise';
COMMENT ON COLUMN store.leaderboard.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.leak_audit IS
    'Everything recomputed on truncated data and compared; a difference means the future leaked. Grain: night, source, universe, subject, cut';
COMMENT ON COLUMN store.leak_audit.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.leak_audit.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.leak_audit.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN store.leak_audit.subject IS 'What was recomputed';
COMMENT ON COLUMN store.leak_audit.cut IS 'UTC open of the last bar that was not hidden';
COMMENT ON COLUMN store.leak_audit.rows_compared IS 'Rows compared';
COMMENT ON COLUMN store.leak_audit.rows_different IS 'Rows that differ';
COMMENT ON COLUMN store.leak_audit.max_abs_difference IS 'Largest absolute difference';
COMMENT ON COLUMN store.leak_audit.passed IS 'True when no row differs';
COMMENT ON COLUMN store.leak_audit.message IS 'Verdict in words';
COMMENT ON COLUMN store.leak_audit.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.metrics IS
    'Figures of each backtest as of a night. Grain: night, source, universe, backtest_id, metric';
COMMENT ON COLUMN store.metrics.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.metrics.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.metrics.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN store.metrics.backtest_id IS 'Backtest, see backtests';
COMMENT ON COLUMN store.metrics.metric IS 'Name of the figure, see the leaderboard for the main ones';
COMMENT ON COLUMN store.metrics.value IS 'Its value, fractions not percent; NULL when undefined';
COMMENT ON COLUMN store.metrics.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.model_registry IS
    'Which model is recommended as of each night, and why. Grain: night, source, universe, role, model';
COMMENT ON COLUMN store.model_registry.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.model_registry.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.model_registry.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN store.model_registry.role IS 'champion (its signals are recommended) or challenger';
COMMENT ON COLUMN store.model_registry.model IS 'Name of the model, or of the rule, in the zoo';
COMMENT ON COLUMN store.model_registry.trial_ids IS 'Trials whose forecasts are averaged; empty for a rule';
COMMENT ON COLUMN store.model_registry.sharpe IS 'Sharpe ratio on the leaderboard of the night';
COMMENT ON COLUMN store.model_registry.reason IS 'Why it has the role, in words';
COMMENT ON COLUMN store.model_registry.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.nights IS 'State of each night. Grain: night, source, universe';
COMMENT ON COLUMN store.nights.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN store.nights.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.nights.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.nights.run_id IS
    'First 16 hex digits of sha256("night|source|universe"): the same night always has the same';
COMMENT ON COLUMN store.nights.clock IS
    'UTC instant the night believes it is: when it started for live, 00:00 after the night for recorded and simulated';
COMMENT ON COLUMN store.nights.settings IS 'Settings that shape its results, as JSON';
COMMENT ON COLUMN store.nights.settings_hash IS 'Hash of settings';
COMMENT ON COLUMN store.nights.state IS 'running, published, blocked (a check or the audit stopped it) or failed';
COMMENT ON COLUMN store.nights.last_ts IS 'UTC open of the latest bar it knew';
COMMENT ON COLUMN store.nights.for_session IS 'Session its signals are for';
COMMENT ON COLUMN store.nights.champion IS 'Model whose signals it recommends';
COMMENT ON COLUMN store.nights.message IS 'How it ended, in words';
COMMENT ON COLUMN store.nights.published_at IS
    'UTC instant (its clock) from which readers may use it; NULL until it is finished';

COMMENT ON TABLE store.positions IS
    'Weights each backtest decided, other than zero; filled at the next open. Grain: source, universe, backtest_id, ts, symbol';
COMMENT ON COLUMN store.positions.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.positions.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.positions.backtest_id IS 'Backtest, see backtests';
COMMENT ON COLUMN store.positions.ts IS 'UTC open of the bar at whose close it was decided';
COMMENT ON COLUMN store.positions.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN store.positions.weight IS 'Signed fraction of the portfolio value; negative when short';
COMMENT ON COLUMN store.positions.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.predictions IS
    'Out-of-sample forecasts, made at the close of the bar. Grain: source, universe, trial_id, symbol, ts, horizon_bars';
COMMENT ON COLUMN store.predictions.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.predictions.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.predictions.trial_id IS 'Trial, see trials';
COMMENT ON COLUMN store.predictions.fold IS 'Fold whose fit made it';
COMMENT ON COLUMN store.predictions.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN store.predictions.ts IS 'UTC open of the bar at whose close it was made';
COMMENT ON COLUMN store.predictions.horizon_bars IS 'Bars from the entry (the next open) to the exit';
COMMENT ON COLUMN store.predictions.expected_return IS 'Expected log return from entry to exit';
COMMENT ON COLUMN store.predictions.expected_volatility IS 'Expected standard deviation of log returns, per bar';
COMMENT ON COLUMN store.predictions.p_strong_sell IS 'Probability of STRONG_SELL';
COMMENT ON COLUMN store.predictions.p_sell IS 'Probability of SELL';
COMMENT ON COLUMN store.predictions.p_hold IS 'Probability of HOLD';
COMMENT ON COLUMN store.predictions.p_buy IS 'Probability of BUY';
COMMENT ON COLUMN store.predictions.p_strong_buy IS 'Probability of STRONG_BUY';
COMMENT ON COLUMN store.predictions.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.quarantine IS
    'Rows that a validation rule kept out. Grain: night, source, universe, table_name, symbol, ts, rule';
COMMENT ON COLUMN store.quarantine.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.quarantine.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.quarantine.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN store.quarantine.table_name IS 'Table the row was meant for';
COMMENT ON COLUMN store.quarantine.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN store.quarantine.ts IS 'UTC time of the row';
COMMENT ON COLUMN store.quarantine.rule IS 'Rule it failed';
COMMENT ON COLUMN store.quarantine.reason IS 'Why it failed, in words';
COMMENT ON COLUMN store.quarantine.contents IS 'The whole row, as JSON';
COMMENT ON COLUMN store.quarantine.fetched_at IS
    'UTC instant at which the row was received, as the clock of its night believes';
COMMENT ON COLUMN store.quarantine.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.signals IS
    'What each model says of each symbol for the next session; written once, never altered. Grain: night, source, universe, model, symbol';
COMMENT ON COLUMN store.signals.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.signals.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.signals.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN store.signals.model IS 'Name of the model in the zoo';
COMMENT ON COLUMN store.signals.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN store.signals.as_of IS 'UTC open of the last bar the signal has seen';
COMMENT ON COLUMN store.signals.for_session IS 'Session the signal is for';
COMMENT ON COLUMN store.signals.side IS 'LONG, FLAT or SHORT';
COMMENT ON COLUMN store.signals.label_3 IS 'SELL, HOLD or BUY';
COMMENT ON COLUMN store.signals.label_5 IS 'STRONG_SELL, SELL, HOLD, BUY or STRONG_BUY';
COMMENT ON COLUMN store.signals.confidence IS 'Probability of the predicted class';
COMMENT ON COLUMN store.signals.expected_return IS 'Expected log return by horizon in bars';
COMMENT ON COLUMN store.signals.expected_volatility IS 'Expected standard deviation of log returns, per bar';
COMMENT ON COLUMN store.signals.weight IS 'Weight in the portfolio under its limits, a signed fraction';
COMMENT ON COLUMN store.signals.close IS 'Close the signal was decided on';
COMMENT ON COLUMN store.signals.stop_price IS 'Price at which to leave the position; NULL when flat';
COMMENT ON COLUMN store.signals.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.step_runs IS
    'When each step of each night ran, in wall time; operation only. Grain: night, source, universe, step, started_at';
COMMENT ON COLUMN store.step_runs.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN store.step_runs.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.step_runs.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.step_runs.run_id IS 'Night that wrote the row, see nights';
COMMENT ON COLUMN store.step_runs.step IS
    'Step of the night: ingest, validate, graphs, train, backtest, audit or publish';
COMMENT ON COLUMN store.step_runs.state IS 'running, done or failed';
COMMENT ON COLUMN store.step_runs.started_at IS 'UTC wall time of its start';
COMMENT ON COLUMN store.step_runs.finished_at IS 'UTC wall time of its end; NULL while it runs or when it was killed';
COMMENT ON COLUMN store.step_runs.seconds IS 'Wall seconds it took';
COMMENT ON COLUMN store.step_runs.detail IS 'What went wrong; NULL when nothing did';

COMMENT ON TABLE store.trials IS
    'Models that were fitted: one specification with one seed. Grain: source, universe, trial_id';
COMMENT ON COLUMN store.trials.source IS 'live, recorded or simulated';
COMMENT ON COLUMN store.trials.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.trials.trial_id IS 'Hash of the model, its specification and seed';
COMMENT ON COLUMN store.trials.model IS 'Name of the model in the zoo';
COMMENT ON COLUMN store.trials.seed IS 'Seed of every random number of the fit';
COMMENT ON COLUMN store.trials.spec IS 'Specification and hyper-parameters, as JSON';
COMMENT ON COLUMN store.trials.parameters IS 'Number of weights';
COMMENT ON COLUMN store.trials.horizons_bars IS 'Horizons it forecasts, in bars';
COMMENT ON COLUMN store.trials.run_id IS 'Night that wrote the row, see nights';

COMMENT ON TABLE store.universe_members IS
    'Membership of symbols in universes over time. Grain: universe, symbol, valid_from';
COMMENT ON COLUMN store.universe_members.universe IS 'Universe, see universes';
COMMENT ON COLUMN store.universe_members.symbol IS 'Symbol as the provider names it';
COMMENT ON COLUMN store.universe_members.valid_from IS 'First date of the membership';
COMMENT ON COLUMN store.universe_members.valid_to IS 'Date at which it ended (exclusive); NULL while it lasts';
COMMENT ON COLUMN store.universe_members.sector IS 'Sector, GICS for stocks';
COMMENT ON COLUMN store.universe_members.industry IS 'Industry, GICS sub-industry for stocks';
COMMENT ON COLUMN store.universe_members.membership_source IS 'Where the membership is known from';

COMMENT ON TABLE store.universes IS 'Sets of symbols that are researched together. Grain: universe';
COMMENT ON COLUMN store.universes.universe IS 'Name of the universe';
COMMENT ON COLUMN store.universes.provider IS 'Who serves its data: yahoo or bybit';
COMMENT ON COLUMN store.universes.interval IS 'Length of its bars: 1d or 1h';
COMMENT ON COLUMN store.universes.calendar IS 'Trading calendar: XNYS (New York Stock Exchange) or 24/7';
COMMENT ON COLUMN store.universes.benchmark IS 'Symbol it is measured against; fetched even when not a member';
COMMENT ON COLUMN store.universes.history_start IS 'First date whose data is wanted';
COMMENT ON COLUMN store.universes.commission_bps IS 'Commission per traded value, in basis points (1/10000)';
COMMENT ON COLUMN store.universes.slippage_bps IS 'Slippage per traded value, in basis points (1/10000)';
COMMENT ON COLUMN store.universes.survivorship_biased IS
    'True when members were chosen with hindsight, so results flatter';
COMMENT ON COLUMN store.universes.description IS 'What the universe is';
