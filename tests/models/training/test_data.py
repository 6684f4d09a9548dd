"""Chunks of a fold (MAM-22): every row is scored once, and no row is from the future (field notes 12 and 13)."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.features.labels import UNKNOWN_CLASS, Labels
from models.features.scaling import Scaler
from models.graphs.context import SideInputs
from models.training.config import TrainConfig
from models.training.data import FoldData, Inputs
from models.training.errors import EmptyFoldError

DAY_US = 86_400_000_000
CONFIG = TrainConfig(epochs=1, chunk_bars=24, burn_in_bars=8, batch_sequences=15, validation_fraction=0.2)


def make_data(market, **label_changes) -> FoldData:
    """The data of the market's first fold; ``label_changes`` are fields of Labels that are replaced."""
    return FoldData(CONFIG, market.features, replace(market.labels, **label_changes), SideInputs(), market.folds[0])


def make_data_with_positions_as_targets(market) -> FoldData:
    """A fold in which the return target of each bar is the bar's position, so a batch shows which bars it scores."""
    labels: Labels = market.labels
    position = np.broadcast_to(np.arange(len(labels.end))[:, None, None], labels.returns.shape).astype(float)
    sigma = market.features.column("volatility_60")[..., None] * np.sqrt(labels.horizons)
    return make_data(market, returns=position * sigma)


@pytest.mark.parametrize("phase", ["train", "validation"])
def test_every_row_is_scored_exactly_once(market, phase: str) -> None:
    data = make_data_with_positions_as_targets(market)
    chunks = data.train_dataloader() if phase == "train" else data.val_dataloader()
    scored = torch.cat([targets.returns[..., 0].flatten() for _, targets in chunks])
    bars, counts = np.unique(scored[~torch.isnan(scored)].round().int().numpy(), return_counts=True)
    start, stop = data.training_range if phase == "train" else data.validation_range
    asset_counts = (~np.isnan(market.features.column("volatility_60"))).sum(axis=1)
    expected = {bar: int(asset_counts[bar]) for bar in range(start, stop) if asset_counts[bar]}
    assert dict(zip(bars.tolist(), counts.tolist(), strict=True)) == expected


def test_burn_in_bars_are_inputs_without_targets(market) -> None:
    burn_in_bars = slice(0, CONFIG.burn_in_bars)
    for batch, targets in make_data(market).train_dataloader():
        assert torch.isnan(targets.returns[:, burn_in_bars]).all()
        assert torch.isnan(targets.log_volatility[:, burn_in_bars]).all()
        assert (targets.class_5[:, burn_in_bars] == UNKNOWN_CLASS).all()
        assert batch.mask[:, burn_in_bars].any()


def test_no_training_label_ends_after_validation_begins(market) -> None:
    data = make_data(market)
    fold = market.folds[0]
    start, stop = data.training_range
    validation_start, validation_stop = data.validation_range
    assert (start, validation_stop) == (fold.train[0], fold.train[-1] + 1)
    last_training_end = market.labels.end[stop - 1].max()
    first_purged_end = market.labels.end[stop].max()
    assert last_training_end < market.features.ts[validation_start] <= first_purged_end
    assert validation_stop - validation_start == round(CONFIG.validation_fraction * len(fold.train))


def test_the_scaler_is_fitted_on_the_training_rows_only(market) -> None:
    data = make_data(market)
    start, stop = data.training_range
    training = market.features.slice_bars(start, stop)
    assert data.scaler == Scaler.fit(training.values, training.mask, training.columns)
    values = market.features.values.copy()
    values[:start] += 7.0
    values[stop:] += 7.0
    shifted = FoldData(CONFIG, replace(market.features, values=values), market.labels, SideInputs(), market.folds[0])
    assert shifted.scaler == data.scaler


def test_the_first_chunk_begins_with_its_burn_in_before_the_scored_bars(market) -> None:
    data = make_data(market)
    validation_start, _ = data.validation_range
    assert data.val_dataloader().first_bars[0] == validation_start - CONFIG.burn_in_bars


def test_bars_before_and_after_the_panel_are_masked(market) -> None:
    inputs = make_data(market).inputs
    from_before = inputs.batch(torch.tensor([[-3, -2, -1, 0, 1, 2, 3]]))
    assert not from_before.mask[0, :3].any()
    assert torch.equal(from_before.x[0, 3:], inputs.x[:4])
    last = len(inputs.x) - 1
    to_after = inputs.batch(torch.tensor([[last, last + 1, last + 2]]))
    assert not to_after.mask[0, 1:].any()


def test_the_order_of_chunks_is_determined_by_seed_and_epoch(market) -> None:
    def sum_of_each_batch(seed: int, epoch: int) -> list[float]:
        """One number per batch, which shows the order of the chunks."""
        config = replace(CONFIG, seed=seed)
        data = FoldData(config, market.features, market.labels, SideInputs(), market.folds[0])
        data.trainer = SimpleNamespace(current_epoch=epoch)
        return [float(batch.x.sum()) for batch, _ in data.train_dataloader()]

    first_epoch = sum_of_each_batch(seed=0, epoch=0)
    second_epoch = sum_of_each_batch(seed=0, epoch=1)
    assert first_epoch == sum_of_each_batch(seed=0, epoch=0)
    assert first_epoch != second_epoch != sum_of_each_batch(seed=1, epoch=1)
    assert sorted(first_epoch) != first_epoch or sorted(second_epoch) != second_epoch


def test_targets_are_in_units_of_the_volatility_known_at_the_bar(market) -> None:
    data = make_data(market)
    bar = 70
    asset = 1
    row = bar - data.start  # the position of the bar in the fold's targets
    sigma = market.features.column("volatility_60")[bar, asset]
    scaled_returns = market.labels.returns[bar, asset] / sigma / np.sqrt(market.labels.horizons)
    np.testing.assert_allclose(data.targets.returns[row, asset], scaled_returns, rtol=1e-5)
    log_volatility = np.log(market.labels.volatility[bar, asset] / sigma)
    np.testing.assert_allclose(data.targets.log_volatility[row, asset], log_volatility, rtol=1e-4)


def test_a_bar_without_trailing_volatility_has_no_target(market) -> None:
    data = make_data(market)
    _, stop = data.validation_range
    is_unknown = np.isnan(market.features.column("volatility_60")[data.start : stop])
    assert is_unknown.any()
    assert torch.isnan(data.targets.returns[is_unknown]).all()
    assert (data.targets.class_5[is_unknown] == UNKNOWN_CLASS).all()


def test_each_bar_uses_the_latest_snapshot_at_or_before_it(market) -> None:
    scaler = make_data(market).scaler
    inputs = Inputs.from_panel(market.features, scaler, DAY_US, SideInputs(market.snapshots))
    n_assets = len(market.features.symbols)
    assert inputs.adjacency is not None
    assert inputs.adjacency.shape == (len(market.snapshots), n_assets, n_assets)
    assert (
        inputs.snapshot_index[:10].tolist() == [-1] * 10
    )  # the market has a snapshot at every tenth bar, from bar 10 on
    assert inputs.snapshot_index[10:31].tolist() == [0] * 10 + [1] * 10 + [2]


def test_gaps_are_in_bars(market) -> None:
    panel = replace(market.features.slice_bars(0, 3), ts=market.features.ts[[0, 1, 4]])
    inputs = Inputs.from_panel(panel, make_data(market).scaler, DAY_US, SideInputs())
    assert inputs.gaps.tolist() == [1, 1, 3]


def test_the_error_for_a_fold_without_labels_names_the_fold_and_its_dates(market) -> None:
    with pytest.raises(EmptyFoldError, match=r"fold 0: 0 labelled rows to train on and 0 to validate on, from 2024-01"):
        make_data(market, returns=np.full_like(market.labels.returns, np.nan))


def test_a_fold_without_a_label_that_ends_before_validation_is_refused(market) -> None:
    short_fold = replace(market.folds[0], train=market.folds[0].train[-8:])
    with pytest.raises(EmptyFoldError, match="fold 0: none of 8 training rows has a label that ends before validation"):
        FoldData(CONFIG, market.features, market.labels, SideInputs(), short_fold)


def test_a_config_whose_chunks_are_all_burn_in_is_refused() -> None:
    with pytest.raises(ValueError, match="burn_in_bars 24 must be at least 0 and below chunk_bars 24"):
        TrainConfig(chunk_bars=24, burn_in_bars=24)


def test_a_validation_fraction_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="validation_fraction 1"):
        TrainConfig(validation_fraction=1)
