"""Training data of recorded trades and book events on one-second bars, and a network that reads these events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.graphs.context import SideInputs
from models.graphs.events import EVENT_KINDS
from models.training.config import TrainConfig
from models.training.fit import fit_fold, predict_fold
from models.zoo import Spec
from tasks.train import TrainingData
from tests.benchmarks.events_table import directional_accuracy, recorded_data


@pytest.fixture(scope="module")
def market(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """Training data of the recorded events, with one-second bars."""
    return recorded_data(shared_data / "events", tmp_path_factory.mktemp("recorded"))


def test_the_trades_of_a_bar_are_its_trade_events(market: TrainingData, shared_data: Path) -> None:
    trades = pq.read_table(shared_data / "events" / "trades_2024-08-08.parquet").to_pandas()
    trade_ms = trades["ts_ms"][(trades["venue"] == "binance_spot") & (trades["symbol"] == "BTCUSDT")]
    bitcoin = market.features.symbols.index("spot:BTCUSDT")
    bar_events = market.events
    assert bar_events is not None
    close_ms = bar_events.close_times.astype(np.int64) // 1000  # bar i has the events in (close_ms[i], close_ms[i + 1]]
    events = bar_events.events
    is_bitcoin_trade = (events.kind == EVENT_KINDS.index("trade")) & (events.dst == bitcoin)
    for bar_index in (1, 100, 343):  # three bars with trades
        start, stop = bar_events.event_ranges[bar_index]
        n_trades = ((trade_ms > close_ms[bar_index]) & (trade_ms <= close_ms[bar_index + 1])).sum()
        assert is_bitcoin_trade[start:stop].sum() == n_trades > 0


def test_forecasts_of_an_event_network_change_only_when_past_events_change(
    market: TrainingData, tmp_path: Path
) -> None:
    fold = market.folds[0]
    artifact = tmp_path / "m.safetensors"
    config = TrainConfig(epochs=1, chunk_bars=32, burn_in_bars=12, context_bars=24, batch_sequences=12)
    spec = Spec("tgn", d_model=8, n_layers=1)
    side_inputs = market.side_inputs_of(spec)
    fit_fold(spec, config, market.features, market.labels, side_inputs, fold, artifact)
    expected = predict_fold(artifact, market.features, side_inputs, fold).returns
    bar_events = side_inputs.events
    assert np.isfinite(expected).all() and bar_events is not None
    n_bars = 21  # bars from the start of the test window that keep their events; later events are removed
    last_close_us = int(bar_events.close_times[fold.test_start + n_bars].astype(np.int64))
    past_events = bar_events.events.between(0, last_close_us)
    past_inputs = SideInputs(side_inputs.snapshots, replace(bar_events, events=past_events))
    returns = predict_fold(artifact, market.features, past_inputs, fold).returns
    np.testing.assert_array_equal(returns[:n_bars], expected[:n_bars])
    assert not np.array_equal(returns[n_bars:], expected[n_bars:])


def test_directional_accuracy_counts_only_assets_that_moved(market: TrainingData) -> None:
    start = market.folds[0].test_start
    realised = market.labels.returns[start : start + 10]  # (bars, assets, horizons)
    assert (directional_accuracy(market, realised) == 1).all()
    assert (directional_accuracy(market, -realised) == 0).all()
    always_up = directional_accuracy(market, np.ones_like(realised))
    first_returns = realised[0, :, 0]
    assert always_up[0, 0] == (first_returns > 0).sum() / (first_returns != 0).sum()
