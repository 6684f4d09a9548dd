"""Chunks of a fold: every row once, none from the future (field notes 12 and 13)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.features.labels import UNKNOWN, Labels
from models.features.scaling import Scaler
from models.graphs.context import SideInputs
from models.training.config import TrainConfig
from models.training.data import FoldData, Inputs
from models.training.errors import EmptyFoldError

CONFIG = TrainConfig(epochs=1, chunk_bars=24, burn_in_bars=8, batch_sequences=15, validation_fraction=0.2)


def data_of(market, **changes) -> FoldData:
    return FoldData(CONFIG, market.features, replace(market.labels, **changes), SideInputs(), market.folds[0])


def traced(market) -> FoldData:
    """A fold whose targets are the bar's own position, so that a batch says which bars it scores."""
    labels: Labels = market.labels
    position = np.broadcast_to(np.arange(len(labels.end))[:, None, None], labels.returns.shape).astype(float)
    sigma = market.features.column("volatility_60")[..., None] * np.sqrt(labels.horizons)
    return data_of(market, returns=position * sigma)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_every_row_gives_its_loss_exactly_once(market, part: str) -> None:
    data = traced(market)
    chunks = data.train_dataloader() if part == "train" else data.val_dataloader()
    scored = torch.cat([targets.returns[..., 0].flatten() for _, targets in chunks])
    bars, counts = np.unique(scored[~torch.isnan(scored)].round().int().numpy(), return_counts=True)
    span = data.spans[0] if part == "train" else data.spans[1]
    known = (~np.isnan(market.features.column("volatility_60"))).sum(axis=1)
    expected = {bar: int(known[bar]) for bar in range(*span) if known[bar]}
    assert dict(zip(bars.tolist(), counts.tolist(), strict=True)) == expected


def test_burn_in_bars_give_no_loss_but_are_seen(market) -> None:
    for batch, targets in data_of(market).train_dataloader():
        assert torch.isnan(targets.returns[:, :8]).all() and torch.isnan(targets.log_volatility[:, :8]).all()
        assert (targets.class_5[:, :8] == UNKNOWN).all()
        assert batch.mask[:, :8].any()


def test_no_label_that_is_learned_from_ends_after_validation_begins(market) -> None:
    data, fold = data_of(market), market.folds[0]
    (start, stop), (validation, end) = data.spans
    assert (start, end) == (fold.train[0], fold.train[-1] + 1)
    assert market.labels.end[stop - 1].max() < market.features.ts[validation] <= market.labels.end[stop].max()
    assert end - validation == round(0.2 * len(fold.train))


def test_the_scaler_knows_only_rows_that_are_learned_from(market) -> None:
    (start, stop), _ = data_of(market).spans
    rows = market.features.rows(start, stop)
    assert data_of(market).scaler == Scaler.fit(rows.values, rows.mask, rows.columns)
    other = market.features.values.copy()
    other[:start] += 7.0
    other[stop:] += 7.0
    shifted = FoldData(CONFIG, replace(market.features, values=other), market.labels, SideInputs(), market.folds[0])
    assert shifted.scaler == data_of(market).scaler


def test_chunks_reach_before_the_training_rows_and_are_masked_before_the_panel(market) -> None:
    data = data_of(market)
    first = data.val_dataloader().first_bars[0]
    assert first == data.spans[1][0] - 8
    bars = torch.arange(-3, 4)[None]
    batch = data.inputs.batch(bars)
    assert not batch.mask[0, :3].any()
    assert torch.equal(batch.x[0, 3:], data.inputs.x[:4])
    beyond = data.inputs.batch(torch.arange(3)[None] + len(data.inputs.x) - 1)
    assert not beyond.mask[0, 1:].any()


def test_the_order_of_chunks_follows_from_seed_and_epoch(market) -> None:
    def order(seed: int, epoch: int) -> list[float]:
        config = replace(CONFIG, seed=seed)
        data = FoldData(config, market.features, market.labels, SideInputs(), market.folds[0])
        data.trainer = type("At", (), {"current_epoch": epoch})()
        return [float(batch.x.sum()) for batch, _ in data.train_dataloader()]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)
    assert sorted(order(0, 0)) != order(0, 0) or sorted(order(0, 1)) != order(0, 1)


def test_targets_are_in_units_of_the_volatility_known_at_the_bar(market) -> None:
    data = data_of(market)
    bar, asset = 70, 1
    sigma = market.features.column("volatility_60")[bar, asset]
    row = bar - data.start
    expected = market.labels.returns[bar, asset] / sigma / np.sqrt([1, 5])
    np.testing.assert_allclose(data.targets.returns[row, asset], expected, rtol=1e-5)
    expected = np.log(market.labels.volatility[bar, asset] / sigma)
    np.testing.assert_allclose(data.targets.log_volatility[row, asset], expected, rtol=1e-4)


def test_a_bar_without_trailing_volatility_has_no_target(market) -> None:
    data = data_of(market)
    unknown = np.isnan(market.features.column("volatility_60")[data.start : data.spans[1][1]])
    assert unknown.any()
    assert torch.isnan(data.targets.returns[unknown]).all()
    assert (data.targets.class_5[unknown] == UNKNOWN).all()


def test_each_bar_steps_to_the_latest_snapshot_at_or_before_it(market) -> None:
    scaler = data_of(market).scaler
    inputs = Inputs.of(market.features, scaler, 86_400_000_000, SideInputs(market.snapshots))
    assert inputs.adjacency is not None and inputs.adjacency.shape == (len(market.snapshots), 5, 5)
    assert inputs.step[:10].tolist() == [-1] * 10
    assert inputs.step[10:31].tolist() == [0] * 10 + [1] * 10 + [2]


def test_gaps_are_in_bars(market) -> None:
    holes = replace(market.features.rows(0, 3), ts=market.features.ts[[0, 1, 4]])
    inputs = Inputs.of(holes, data_of(market).scaler, 86_400_000_000, SideInputs())
    assert inputs.gaps.tolist() == [1, 1, 3]


def test_a_fold_without_a_label_says_which_fold_and_when(market) -> None:
    with pytest.raises(EmptyFoldError, match=r"fold 0: 0 labelled rows to train on and 0 to validate on, from 2024-01"):
        data_of(market, returns=np.full_like(market.labels.returns, np.nan))


def test_a_slice_shorter_than_its_horizon_is_refused(market) -> None:
    short = replace(market.folds[0], train=market.folds[0].train[-8:])
    with pytest.raises(EmptyFoldError, match="fold 0: none of 8 training rows has a label that ends before validation"):
        FoldData(CONFIG, market.features, market.labels, SideInputs(), short)


def test_config_refuses_chunks_that_are_all_burn_in() -> None:
    with pytest.raises(ValueError, match="burn_in_bars 24 must be at least 0 and below chunk_bars 24"):
        TrainConfig(chunk_bars=24, burn_in_bars=24)
    with pytest.raises(ValueError, match="validation_fraction 1"):
        TrainConfig(validation_fraction=1)
