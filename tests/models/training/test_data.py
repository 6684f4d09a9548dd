"""Chunks of a fold (MAM-22): every row is scored once and none from the future (field notes 12 and 13)."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.features.labels import UNKNOWN, Labels
from models.features.scaling import Scaler
from models.graphs.context import SideInputs
from models.training.config import TrainConfig
from models.training.data import FoldData, Inputs
from models.training.errors import EmptyFoldError

DAY_US = 86_400_000_000
CONFIG = TrainConfig(epochs=1, chunk_bars=24, burn_in_bars=8, batch_sequences=15, validation_fraction=0.2)


def make_data(market, **label_changes) -> FoldData:
    return FoldData(CONFIG, market.features, replace(market.labels, **label_changes), SideInputs(), market.folds[0])


def make_data_with_positions_as_targets(market) -> FoldData:
    """A fold whose return targets are the position of their bar, so that a batch shows which bars it scores."""
    labels: Labels = market.labels
    position = np.broadcast_to(np.arange(len(labels.end))[:, None, None], labels.returns.shape).astype(float)
    sigma = market.features.column("volatility_60")[..., None] * np.sqrt(labels.horizons)
    return make_data(market, returns=position * sigma)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_every_row_is_scored_exactly_once(market, part: str) -> None:
    data = make_data_with_positions_as_targets(market)
    chunks = data.train_dataloader() if part == "train" else data.val_dataloader()
    scored = torch.cat([targets.returns[..., 0].flatten() for _, targets in chunks])
    bars, counts = np.unique(scored[~torch.isnan(scored)].round().int().numpy(), return_counts=True)
    span = data.spans[0] if part == "train" else data.spans[1]
    asset_counts = (~np.isnan(market.features.column("volatility_60"))).sum(axis=1)
    expected = {bar: int(asset_counts[bar]) for bar in range(*span) if asset_counts[bar]}
    assert dict(zip(bars.tolist(), counts.tolist(), strict=True)) == expected


def test_burn_in_bars_are_inputs_without_targets(market) -> None:
    for batch, targets in make_data(market).train_dataloader():
        assert torch.isnan(targets.returns[:, :8]).all() and torch.isnan(targets.log_volatility[:, :8]).all()
        assert (targets.class_5[:, :8] == UNKNOWN).all()
        assert batch.mask[:, :8].any()


def test_no_training_label_ends_after_validation_begins(market) -> None:
    data = make_data(market)
    fold = market.folds[0]
    (start, stop), (validation, end) = data.spans
    assert (start, end) == (fold.train[0], fold.train[-1] + 1)
    assert market.labels.end[stop - 1].max() < market.features.ts[validation] <= market.labels.end[stop].max()
    assert end - validation == round(0.2 * len(fold.train))


def test_the_scaler_is_fitted_on_the_training_rows_only(market) -> None:
    (start, stop), _ = make_data(market).spans
    rows = market.features.rows(start, stop)
    assert make_data(market).scaler == Scaler.fit(rows.values, rows.mask, rows.columns)
    values = market.features.values.copy()
    values[:start] += 7.0
    values[stop:] += 7.0
    shifted = FoldData(CONFIG, replace(market.features, values=values), market.labels, SideInputs(), market.folds[0])
    assert shifted.scaler == make_data(market).scaler


def test_chunks_begin_before_the_scored_rows_and_are_masked_outside_the_panel(market) -> None:
    data = make_data(market)
    first = data.val_dataloader().first_bars[0]
    assert first == data.spans[1][0] - 8
    bars = torch.arange(-3, 4)[None]
    batch = data.inputs.batch(bars)
    assert not batch.mask[0, :3].any()
    assert torch.equal(batch.x[0, 3:], data.inputs.x[:4])
    beyond = data.inputs.batch(torch.arange(3)[None] + len(data.inputs.x) - 1)
    assert not beyond.mask[0, 1:].any()


def test_the_order_of_chunks_is_determined_by_seed_and_epoch(market) -> None:
    def order(seed: int, epoch: int) -> list[float]:
        config = replace(CONFIG, seed=seed)
        data = FoldData(config, market.features, market.labels, SideInputs(), market.folds[0])
        data.trainer = SimpleNamespace(current_epoch=epoch)
        return [float(batch.x.sum()) for batch, _ in data.train_dataloader()]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)
    assert sorted(order(0, 0)) != order(0, 0) or sorted(order(0, 1)) != order(0, 1)


def test_targets_are_in_units_of_the_volatility_known_at_the_bar(market) -> None:
    data = make_data(market)
    bar = 70
    asset = 1
    sigma = market.features.column("volatility_60")[bar, asset]
    row = bar - data.start
    expected = market.labels.returns[bar, asset] / sigma / np.sqrt([1, 5])
    np.testing.assert_allclose(data.targets.returns[row, asset], expected, rtol=1e-5)
    expected = np.log(market.labels.volatility[bar, asset] / sigma)
    np.testing.assert_allclose(data.targets.log_volatility[row, asset], expected, rtol=1e-4)


def test_a_bar_without_trailing_volatility_has_no_target(market) -> None:
    data = make_data(market)
    is_unknown = np.isnan(market.features.column("volatility_60")[data.start : data.spans[1][1]])
    assert is_unknown.any()
    assert torch.isnan(data.targets.returns[is_unknown]).all()
    assert (data.targets.class_5[is_unknown] == UNKNOWN).all()


def test_each_bar_uses_the_latest_snapshot_at_or_before_it(market) -> None:
    scaler = make_data(market).scaler
    inputs = Inputs.from_panel(market.features, scaler, DAY_US, SideInputs(market.snapshots))
    assert inputs.adjacency is not None and inputs.adjacency.shape == (len(market.snapshots), 5, 5)
    assert inputs.step[:10].tolist() == [-1] * 10
    assert inputs.step[10:31].tolist() == [0] * 10 + [1] * 10 + [2]


def test_gaps_are_in_bars(market) -> None:
    panel = replace(market.features.rows(0, 3), ts=market.features.ts[[0, 1, 4]])
    inputs = Inputs.from_panel(panel, make_data(market).scaler, DAY_US, SideInputs())
    assert inputs.gaps.tolist() == [1, 1, 3]


def test_the_error_of_a_fold_without_labels_names_the_fold_and_its_dates(market) -> None:
    with pytest.raises(EmptyFoldError, match=r"fold 0: 0 labelled rows to train on and 0 to validate on, from 2024-01"):
        make_data(market, returns=np.full_like(market.labels.returns, np.nan))


def test_a_slice_shorter_than_its_horizon_is_refused(market) -> None:
    short = replace(market.folds[0], train=market.folds[0].train[-8:])
    with pytest.raises(EmptyFoldError, match="fold 0: none of 8 training rows has a label that ends before validation"):
        FoldData(CONFIG, market.features, market.labels, SideInputs(), short)


def test_config_refuses_chunks_that_consist_of_burn_in_only() -> None:
    with pytest.raises(ValueError, match="burn_in_bars 24 must be at least 0 and below chunk_bars 24"):
        TrainConfig(chunk_bars=24, burn_in_bars=24)
    with pytest.raises(ValueError, match="validation_fraction 1"):
        TrainConfig(validation_fraction=1)
