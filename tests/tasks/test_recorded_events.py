"""A network on recorded trades and books, through the fits and forecasts of a night, with bars of one second."""

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
from tests.benchmarks.events_table import recorded_data, right_ways


@pytest.fixture(scope="module")
def market(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return recorded_data(shared_data / "events", tmp_path_factory.mktemp("recorded"))


def test_a_bar_is_made_of_the_very_trades_that_reach_it_as_events(market: TrainingData, shared_data: Path) -> None:
    trades = pq.read_table(shared_data / "events" / "trades_2024-08-08.parquet").to_pandas()
    own = trades[(trades["venue"] == "binance_spot") & (trades["symbol"] == "BTCUSDT")]
    place = market.features.symbols.index("spot:BTCUSDT")
    by_bar = market.events
    assert by_bar is not None
    close = by_bar.closes.astype(np.int64) // 1000
    mine = (by_bar.events.kind == EVENT_KINDS.index("trade")) & (by_bar.events.dst == place)
    for bar in (1, 100, 343):
        start, stop = by_bar.spans[bar]
        inside = own[(own["ts_ms"] > close[bar]) & (own["ts_ms"] <= close[bar + 1])]
        assert mine[start:stop].sum() == len(inside) > 0


def test_a_temporal_graph_network_learns_from_them_and_only_of_the_past(market: TrainingData, tmp_path: Path) -> None:
    fold, path = market.folds[0], tmp_path / "m.safetensors"
    config = TrainConfig(epochs=1, chunk_bars=32, burn_in_bars=12, context_bars=24, batch_sequences=12)
    spec = Spec("tgn", d_model=8, n_layers=1)
    around = market.side_inputs_of(spec)
    fit_fold(spec, config, market.features, market.labels, around, fold, path)
    made = predict_fold(path, market.features, around, fold).returns
    at, by_bar = 20, around.events
    assert np.isfinite(made).all() and by_bar is not None
    known = by_bar.events.between(0, int(by_bar.closes[fold.test_start + at + 1].astype(np.int64)))
    cut = SideInputs(around.snapshots, replace(by_bar, events=known))
    again = predict_fold(path, market.features, cut, fold).returns
    np.testing.assert_array_equal(again[: at + 1], made[: at + 1])
    assert not np.array_equal(again[at + 1 :], made[at + 1 :])


def test_a_direction_is_right_where_signs_agree_among_those_that_moved(market: TrainingData) -> None:
    start = market.folds[0].test_start
    realised = market.labels.returns[start : start + 10]
    assert (right_ways(market, realised) == 1).all() and (right_ways(market, -realised) == 0).all()
    first = realised[0, :, 0]
    assert right_ways(market, np.ones_like(realised))[0, 0] == (first > 0).sum() / (first != 0).sum()
