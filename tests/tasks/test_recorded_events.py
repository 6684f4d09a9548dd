"""A network fitted to recorded trades and books, and its forecasts, on one-second bars."""

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
    """Training data of the recorded events."""
    return recorded_data(shared_data / "events", tmp_path_factory.mktemp("recorded"))


def test_the_trades_of_a_bar_are_its_trade_events(market: TrainingData, shared_data: Path) -> None:
    trades = pq.read_table(shared_data / "events" / "trades_2024-08-08.parquet").to_pandas()
    bitcoin_trades = trades[(trades["venue"] == "binance_spot") & (trades["symbol"] == "BTCUSDT")]
    bitcoin = market.features.symbols.index("spot:BTCUSDT")
    by_bar = market.events
    assert by_bar is not None
    close = by_bar.closes.astype(np.int64) // 1000
    is_bitcoin_trade = (by_bar.events.kind == EVENT_KINDS.index("trade")) & (by_bar.events.dst == bitcoin)
    for bar in (1, 100, 343):
        start, stop = by_bar.spans[bar]
        ts_ms = bitcoin_trades["ts_ms"]
        assert is_bitcoin_trade[start:stop].sum() == ((ts_ms > close[bar]) & (ts_ms <= close[bar + 1])).sum() > 0


def test_a_temporal_graph_network_reads_events_and_only_past_ones(market: TrainingData, tmp_path: Path) -> None:
    fold = market.folds[0]
    path = tmp_path / "m.safetensors"
    config = TrainConfig(epochs=1, chunk_bars=32, burn_in_bars=12, context_bars=24, batch_sequences=12)
    spec = Spec("tgn", d_model=8, n_layers=1)
    side_inputs = market.side_inputs_of(spec)
    fit_fold(spec, config, market.features, market.labels, side_inputs, fold, path)
    expected = predict_fold(path, market.features, side_inputs, fold).returns
    last_bar = 20
    by_bar = side_inputs.events
    assert np.isfinite(expected).all() and by_bar is not None
    past = by_bar.events.between(0, int(by_bar.closes[fold.test_start + last_bar + 1].astype(np.int64)))
    cut = SideInputs(side_inputs.snapshots, replace(by_bar, events=past))
    returns = predict_fold(path, market.features, cut, fold).returns
    np.testing.assert_array_equal(returns[: last_bar + 1], expected[: last_bar + 1])
    assert not np.array_equal(returns[last_bar + 1 :], expected[last_bar + 1 :])


def test_the_share_of_right_directions_counts_only_assets_that_moved(market: TrainingData) -> None:
    start = market.folds[0].test_start
    realised = market.labels.returns[start : start + 10]
    assert (directional_accuracy(market, realised) == 1).all() and (directional_accuracy(market, -realised) == 0).all()
    first = realised[0, :, 0]
    assert directional_accuracy(market, np.ones_like(realised))[0, 0] == (first > 0).sum() / (first != 0).sum()
