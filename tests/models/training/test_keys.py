"""A fold's key changes exactly when something that decides its numbers does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.graphs.context import SideInputs
from models.graphs.events import concatenate
from models.graphs.market_events import funding_events
from models.graphs.snapshot import Snapshot
from models.training import keys
from models.training.keys import code_version, fold_key
from models.zoo import Spec


def key(market, model: str = "s4d", **changes) -> str:
    return fold_key(**(market.arguments(model) | changes))


def with_value(market, bar: int, value: float = 9.0):
    values = market.features.values.copy()
    values[bar, 1, 0] = value
    return replace(market.features, values=values)


def test_the_same_fit_has_the_same_key(market) -> None:
    assert key(market) == key(market)
    assert len(key(market)) == 64


@pytest.mark.parametrize("model", ["s4d", "ssm_gnn"])
def test_later_bars_change_no_key(market, model: str) -> None:
    fold = market.folds[0]
    assert fold_key(**market.until(fold.test_start + 1).arguments(model)) == key(market, model)


def test_spec_config_and_seed_change_it(market) -> None:
    config = market.arguments()["config"]
    changed = {
        key(market),
        key(market, spec=Spec("s4d", d_model=16)),
        key(market, spec=Spec("s4d", d_model=8, options={"spectrum": "linear"})),
        key(market, config=replace(config, lr=1.0)),
        key(market, config=replace(config, seed=1)),
    }
    assert len(changed) == 5


def test_a_restated_bar_changes_it_only_where_the_fit_reads(market) -> None:
    fold, burn_in = market.folds[0], market.arguments()["config"].burn_in_bars
    first, last = int(fold.train[0]), int(fold.train[-1])
    for bar, read in ((first - burn_in - 1, False), (first - burn_in, True), (last, True), (last + 1, False)):
        assert (key(market, features=with_value(market, bar)) != key(market)) == read


def test_any_nan_is_the_same_nan(market) -> None:
    bar = int(market.folds[0].train[3])
    positive, negative = with_value(market, bar, np.nan), with_value(market, bar, -np.nan)
    assert np.signbit(positive.values[bar, 1, 0]) != np.signbit(negative.values[bar, 1, 0])
    assert key(market, features=positive) == key(market, features=negative)


def test_a_changed_label_changes_it(market) -> None:
    returns = market.labels.returns.copy()
    returns[market.folds[0].train[5], 0, 0] += 0.01
    assert key(market, labels=replace(market.labels, returns=returns)) != key(market)


def test_a_changed_snapshot_changes_it_only_for_a_network_that_reads_the_graph(market) -> None:
    used = next(i for i, s in enumerate(market.snapshots) if s.as_of >= market.features.ts[market.folds[0].train[0]])
    for at, read in ((used, True), (len(market.snapshots) - 1, False)):
        snapshots = list(market.snapshots)
        snapshots[at] = replace(snapshots[at], weight=snapshots[at].weight * 0.5)
        assert key(market, side_inputs=SideInputs(snapshots)) == key(market)
        assert (key(market, "ssm_gnn", side_inputs=SideInputs(snapshots)) != key(market, "ssm_gnn")) == read


def test_it_is_the_graph_the_network_names_that_counts(market) -> None:
    sector = [replace(s, graph="sector") for s in market.snapshots]
    turned = [replace(s, directed=True) for s in market.snapshots]
    other = [replace(s, weight=s.weight * 0.5) for s in sector]

    def heard(model: str, snapshots: list[Snapshot]) -> str:
        return key(market, model, side_inputs=SideInputs(snapshots))

    assert heard("ssm_gnn_sector", sector) == heard("ssm_gnn_sector", [*market.snapshots, *sector])
    assert heard("ssm_gnn_sector", other) != heard("ssm_gnn_sector", sector)
    assert heard("ssm_gnn", turned) != key(market, "ssm_gnn")
    assert heard("ssm_gnn_attention", []) == key(market, "ssm_gnn_attention")


def with_event(market, t: int) -> SideInputs:
    """The market's, with one more settlement at ``t``."""
    symbols, events = market.features.symbols, market.events.events
    rows = {"t": np.array([t]), "symbol": np.array(["B"]), "rate": np.array([3e-4])}
    more = concatenate([events, funding_events(symbols, rows)])
    return replace(market.side_inputs, events=replace(market.events, events=more))


@pytest.mark.parametrize("model", ["tgn", "tgat", "jodie", "dyrep"])
def test_an_event_changes_it_only_where_the_fit_reads_and_the_network_reads_events(market, model: str) -> None:
    fold, burn_in = market.folds[0], market.arguments()["config"].burn_in_bars
    close = market.events.closes.astype(np.int64)  # of bar i at i + 1
    begin, end = close[int(fold.train[0]) - burn_in], close[int(fold.train[-1]) + 1]
    for t, read in ((begin, False), (begin + 1, True), (end, True), (end + 1, False)):
        told = with_event(market, int(t))
        assert (key(market, model, side_inputs=told) != key(market, model)) == read
        assert key(market, "ssm_gnn", side_inputs=told) == key(market, "ssm_gnn")


@pytest.mark.parametrize("room", ["layers", "graphs"])
def test_the_code_version_is_of_the_source_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: str) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / "zoo.py").write_text("a = 1\n")
    (tmp_path / room / "x.py").write_text("b = 1\n")
    monkeypatch.setattr(keys, "ROOM", tmp_path)
    versions = []
    for text in ("b = 1\n", "b = 2\n", "b = 1\n"):
        (tmp_path / room / "x.py").write_text(text)
        versions.append(code_version.__wrapped__())
    assert versions[0] == versions[2] != versions[1]
