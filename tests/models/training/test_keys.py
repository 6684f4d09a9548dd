"""The key of a fit changes if and only if something that determines its numbers changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.graphs.context import SideInputs
from models.graphs.events import concatenate
from models.graphs.market_events import funding_events
from models.graphs.snapshot import Snapshot
from models.panel import Panel
from models.sessions import to_epoch_us
from models.training import keys
from models.training.keys import code_version, fold_key
from models.zoo import Spec


def key_of_first_fold(market, model: str = "s4d", **changes) -> str:
    """The key of a fit of the market's first fold; ``changes`` are arguments of fold_key that are replaced."""
    return fold_key(**(market.arguments(model) | changes))


def with_value(market, bar: int, value: float = 9.0) -> Panel:
    """The market's features with another value of one feature of one asset at ``bar``."""
    values = market.features.values.copy()
    values[bar, 1, 0] = value
    return replace(market.features, values=values)


def test_the_same_fit_has_the_same_key(market) -> None:
    assert key_of_first_fold(market) == key_of_first_fold(market)
    assert len(key_of_first_fold(market)) == 64


@pytest.mark.parametrize("model", ["s4d", "ssm_gnn"])
def test_later_bars_do_not_change_the_key(market, model: str) -> None:
    fold = market.folds[0]
    assert fold_key(**market.truncate(fold.test_start + 1).arguments(model)) == key_of_first_fold(market, model)


def test_spec_config_and_seed_change_the_key(market) -> None:
    config = market.arguments()["config"]
    distinct_keys = {
        key_of_first_fold(market),
        key_of_first_fold(market, spec=Spec("s4d", d_model=16)),
        key_of_first_fold(market, spec=Spec("s4d", d_model=8, options={"spectrum": "linear"})),
        key_of_first_fold(market, config=replace(config, lr=1.0)),
        key_of_first_fold(market, config=replace(config, seed=1)),
    }
    assert len(distinct_keys) == 5


def test_a_changed_bar_changes_the_key_only_if_the_fit_reads_the_bar(market) -> None:
    fold = market.folds[0]
    burn_in_bars = market.arguments()["config"].burn_in_bars
    first = int(fold.train[0])
    last = int(fold.train[-1])
    first_read = first - burn_in_bars
    for bar, is_read in ((first_read - 1, False), (first_read, True), (last, True), (last + 1, False)):
        assert (key_of_first_fold(market, features=with_value(market, bar)) != key_of_first_fold(market)) == is_read


def test_nans_of_different_bits_give_the_same_key(market) -> None:
    bar = int(market.folds[0].train[3])
    positive = with_value(market, bar, np.nan)
    negative = with_value(market, bar, -np.nan)
    assert np.signbit(positive.values[bar, 1, 0]) != np.signbit(negative.values[bar, 1, 0])
    assert key_of_first_fold(market, features=positive) == key_of_first_fold(market, features=negative)


def test_a_changed_label_changes_the_key(market) -> None:
    returns = market.labels.returns.copy()
    returns[market.folds[0].train[5], 0, 0] += 0.01
    assert key_of_first_fold(market, labels=replace(market.labels, returns=returns)) != key_of_first_fold(market)


def test_a_changed_snapshot_changes_the_key_only_for_a_network_that_reads_the_graph(market) -> None:
    first_training_open = market.features.ts[market.folds[0].train[0]]
    first_read = next(i for i, snapshot in enumerate(market.snapshots) if snapshot.as_of >= first_training_open)
    after_the_training = len(market.snapshots) - 1
    for index, is_read in ((first_read, True), (after_the_training, False)):
        snapshots = list(market.snapshots)
        snapshots[index] = replace(snapshots[index], weight=snapshots[index].weight * 0.5)
        assert key_of_first_fold(market, side_inputs=SideInputs(snapshots)) == key_of_first_fold(market)
        assert (
            key_of_first_fold(market, "ssm_gnn", side_inputs=SideInputs(snapshots))
            != key_of_first_fold(market, "ssm_gnn")
        ) == is_read


def test_only_snapshots_of_the_networks_graph_change_the_key(market) -> None:
    sector = [replace(s, graph="sector") for s in market.snapshots]
    directed = [replace(s, directed=True) for s in market.snapshots]
    changed_sector = [replace(s, weight=s.weight * 0.5) for s in sector]

    def key_with(model: str, snapshots: list[Snapshot]) -> str:
        return key_of_first_fold(market, model, side_inputs=SideInputs(snapshots))

    assert key_with("ssm_gnn_sector", sector) == key_with("ssm_gnn_sector", [*market.snapshots, *sector])
    assert key_with("ssm_gnn_sector", changed_sector) != key_with("ssm_gnn_sector", sector)
    assert key_with("ssm_gnn", directed) != key_of_first_fold(market, "ssm_gnn")
    assert key_with("ssm_gnn_attention", []) == key_of_first_fold(market, "ssm_gnn_attention")


def with_event(market, t: int) -> SideInputs:
    """The market's side inputs with one more funding settlement at ``t``, in microseconds."""
    rows = {"t": np.array([t]), "symbol": np.array(["B"]), "rate": np.array([3e-4])}
    events = concatenate([market.events.events, funding_events(market.features.symbols, rows)])
    return replace(market.side_inputs, events=replace(market.events, events=events))


@pytest.mark.parametrize("model", ["tgn", "tgat", "jodie", "dyrep"])
def test_an_event_changes_the_key_only_if_the_fit_and_the_network_read_it(market, model: str) -> None:
    fold = market.folds[0]
    burn_in_bars = market.arguments()["config"].burn_in_bars
    close_us = to_epoch_us(market.events.close_times)[1:]  # of each bar; the first time is the open of bar 0
    first_read = int(fold.train[0]) - burn_in_bars
    start = close_us[first_read - 1]
    end = close_us[int(fold.train[-1])]
    for t, is_read in ((start, False), (start + 1, True), (end, True), (end + 1, False)):
        side_inputs = with_event(market, int(t))
        assert (
            key_of_first_fold(market, model, side_inputs=side_inputs) != key_of_first_fold(market, model)
        ) == is_read
        assert key_of_first_fold(market, "ssm_gnn", side_inputs=side_inputs) == key_of_first_fold(market, "ssm_gnn")


@pytest.mark.parametrize("folder", ["layers", "graphs"])
def test_the_code_version_is_a_hash_of_the_source_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / "zoo.py").write_text("a = 1\n")
    (tmp_path / folder / "x.py").write_text("b = 1\n")
    monkeypatch.setattr(keys, "PACKAGE", tmp_path)
    versions = []
    for text in ("b = 1\n", "b = 2\n", "b = 1\n"):
        (tmp_path / folder / "x.py").write_text(text)
        versions.append(code_version.__wrapped__())
    assert versions[0] == versions[2] != versions[1]
