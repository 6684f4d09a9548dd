"""Temporal graph networks of a market: events between bars, edges of snapshots, and bars as events.

Ids such as TGN-05: .github/sources.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.features.labels import UNKNOWN_CLASS
from models.features.scaling import Scaler
from models.graphs.context import BarEvents, SideInputs
from models.graphs.events import Events, concatenate
from models.graphs.market_events import (
    FEATURES,
    funding_events,
    liquidation_events,
    trade_events,
)
from models.graphs.snapshot import GraphError
from models.layers.errors import ShapeError
from models.layers.memory import Memory
from models.layers.neighbours import NeighbourBuffer
from models.nets.forecast import Batch, Forecast, GraphSteps
from models.nets.sequence import State
from models.nets.tgn import Tgn
from models.panel import Panel
from models.training.config import TrainConfig
from models.training.data import Inputs, Targets, event_steps
from models.training.losses import forecast_loss
from models.zoo import Spec, build

HOUR_US = 3_600_000_000
N_BARS = 12  # of the panel
PADDING = 2  # empty bars of a batch before the panel's first bar
BATCH_BARS = PADDING + N_BARS
SYMBOLS = ("BTC", "ETH", "SOL")
BTC, ETH, SOL = range(len(SYMBOLS))
N_ASSETS = len(SYMBOLS)
COLUMNS = ("a", "b")
SETTLEMENT_BAR = 4  # the funding settlement is at the close of this bar of the panel
NETWORK_NAMES = ("tgn", "tgat", "jodie", "dyrep")
every_network = pytest.mark.parametrize("name", NETWORK_NAMES)


def make_panel() -> Panel:
    """Random hourly bars, none missing."""
    rng = np.random.default_rng(0)
    ts = np.datetime64("2024-01-01", "us") + np.arange(N_BARS) * np.timedelta64(1, "h")
    values = rng.normal(size=(N_BARS, N_ASSETS, len(COLUMNS)))
    return Panel(ts, SYMBOLS, COLUMNS, values, np.ones((N_BARS, N_ASSETS), dtype=bool))


def open_us(bar: int) -> int:
    """The open of a bar of the panel, in microseconds since 1970."""
    return int(make_panel().ts[0].astype(np.int64)) + bar * HOUR_US


def make_market_events(n_trades: int = 300, seed: int = 1) -> Events:
    """Random trades over the panel's hours, and one funding settlement."""
    rng = np.random.default_rng(seed)
    t = open_us(0) + np.sort(rng.integers(1, N_BARS * HOUR_US, n_trades))
    columns = {"t": t, "symbol": rng.choice(SYMBOLS, n_trades), "price": rng.uniform(90, 110, n_trades)}
    columns |= {"size": rng.uniform(0, 5, n_trades), "side": rng.choice([-1.0, 1.0], n_trades)}
    settled_at = np.array([open_us(SETTLEMENT_BAR) + HOUR_US])
    settlement = {"t": settled_at, "symbol": np.array(["ETH"]), "rate": np.array([1e-4])}
    return concatenate([trade_events(SYMBOLS, columns), funding_events(SYMBOLS, settlement)])


def make_liquidation(symbol: str, bar: int) -> Events:
    """One liquidation in the middle of a bar of the panel."""
    columns = {name: np.array([1.0]) for name in ("price", "size", "side")}
    columns |= {"t": np.array([open_us(bar) + HOUR_US // 2]), "symbol": np.array([symbol])}
    return liquidation_events(SYMBOLS, columns)


def assign_to_bars(events: Events) -> BarEvents:
    """The events, assigned to the panel's bars."""
    return BarEvents.from_events(events, make_panel().ts, make_panel().ts + np.timedelta64(1, "h"))


def make_batch(events: Events | None = None, graph: GraphSteps | None = None) -> Batch:
    """One chunk: PADDING empty bars, then the panel's bars with these events between them."""
    scaler = Scaler(COLUMNS, (0.0, 0.0), (1.0, 1.0))
    side_inputs = SideInputs(events=None if events is None else assign_to_bars(events))
    batch = Inputs.from_panel(make_panel(), scaler, HOUR_US, side_inputs).batch(torch.arange(-PADDING, N_BARS)[None])
    return replace(batch, graph=graph)


def make_graph(edges: list[tuple[int, int]], first_bar: int, weight: float = 0.7) -> GraphSteps:
    """A snapshot with these edges (source, target) that takes effect at the close of ``first_bar`` of the batch."""
    adjacency = torch.eye(N_ASSETS)[None].clone()
    for source, target in edges:
        adjacency[0, target, source] = weight
    snapshot_index = torch.full((1, BATCH_BARS), -1)
    snapshot_index[:, first_bar:] = 0
    return GraphSteps(adjacency, snapshot_index)


def make_network(name: str) -> Tgn:
    """A small network in evaluation mode with random heads, whose forecasts are not near 0."""
    network = build(Spec(name, d_model=8, n_layers=1, dropout=0.0), n_features=len(COLUMNS), n_horizons=1)
    torch.manual_seed(0)
    for parameter in network.heads.parameters():
        nn.init.normal_(parameter)
    return network.eval()


def returns_and_logits(forecast: Forecast) -> Tensor:
    """Both outputs, concatenated along the last dimension, without gradients."""
    return torch.cat([forecast.returns, forecast.logits], dim=-1).detach()


def run_steps(network: Tgn, batch: Batch) -> Iterator[tuple[Forecast, State]]:
    """The forecast of every bar of the batch, and the state after it."""
    state = network.initial_state(1, N_ASSETS)
    for bar in range(BATCH_BARS):
        with torch.no_grad():
            forecast, state = network.step(batch.bars(bar, bar + 1), state)
        yield forecast, state


def asset_event_counts(state: State) -> list[int]:
    """The number of events so far of every asset."""
    memory, _, _ = state
    return Memory(*memory).event_count[:N_ASSETS].tolist()


def test_an_event_belongs_to_the_first_bar_that_closes_at_or_after_it() -> None:
    events = make_market_events()
    panel = make_panel()
    steps = event_steps(assign_to_bars(events), panel, HOUR_US)
    close = panel.ts.astype(np.int64) + HOUR_US
    ranges = steps.event_ranges[0].tolist()
    for bar, (start, stop) in enumerate(ranges):
        t = events.t[start:stop]
        assert ((t > close[bar] - HOUR_US) & (t <= close[bar])).all()
        assert steps.age_in_bars[start:stop].tolist() == pytest.approx(((close[bar] - t) / HOUR_US).tolist(), abs=1e-6)
    assert sum(stop - start for start, stop in ranges) == len(events)
    _, stop = ranges[SETTLEMENT_BAR]
    assert float(steps.age_in_bars[stop - 1]) == 0.0  # the settlement is the last event of its bar


def test_bars_before_the_panel_have_no_events() -> None:
    events = make_batch(make_market_events()).events
    assert events is not None
    assert events.event_ranges[0, :PADDING].tolist() == [[0, 0]] * PADDING
    _, stop = events.event_ranges[0, PADDING].tolist()
    assert stop > 0


def test_events_of_another_market_are_refused() -> None:
    doge_events = trade_events(("DOGE",), {name: np.array([]) for name in ("t", "symbol", "price", "size", "side")})
    with pytest.raises(GraphError, match="asset:DOGE, no node of the market"):
        event_steps(assign_to_bars(doge_events), make_panel(), HOUR_US)


@every_network
def test_events_change_forecasts_from_their_own_bar_on_and_never_earlier(name: str) -> None:
    """TGN-05: forecasts of returns and of classes."""
    network = make_network(name)
    events = make_market_events()
    bar = 6
    features = events.features.copy()
    features[events.t > open_us(bar)] += 1.0
    changed = replace(events, features=features)
    with torch.no_grad():
        before = returns_and_logits(network(make_batch(events)))
        after = returns_and_logits(network(make_batch(changed)))
    batch_bar = PADDING + bar
    assert torch.equal(before[:, :batch_bar], after[:, :batch_bar])
    assert not torch.equal(before[:, batch_bar], after[:, batch_bar])


@every_network
def test_events_change_forecasts(name: str) -> None:
    network = make_network(name)
    with torch.no_grad():
        with_events = returns_and_logits(network(make_batch(make_market_events())))
        without_events = returns_and_logits(network(make_batch()))
    assert not torch.equal(with_events, without_events)


@every_network
def test_steps_with_events_equal_the_whole_sequence(name: str) -> None:
    """TGN-32: bar by bar, as a live program reads."""
    network = make_network(name)
    batch = make_batch(make_market_events())
    stepped = torch.cat([returns_and_logits(forecast) for forecast, _ in run_steps(network, batch)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(stepped, returns_and_logits(network(batch)))


@every_network
def test_a_step_does_not_change_the_state_that_it_receives(name: str) -> None:
    network = make_network(name)
    batch = make_batch(make_market_events())
    state = network.initial_state(1, N_ASSETS)
    for bar, (_, next_state) in enumerate(run_steps(network, batch)):
        before = [tensor.clone() for part in state for tensor in part]
        with torch.no_grad():
            network.step(batch.bars(bar, bar + 1), state)
        after = [tensor for part in state for tensor in part]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        state = next_state


def test_the_order_of_simultaneous_events_changes_no_forecast() -> None:
    events = make_market_events()
    at_close = replace(events, t=events.t // HOUR_US * HOUR_US + HOUR_US)
    order = np.lexsort([np.random.default_rng(3).random(len(at_close)), at_close.t])
    columns = {name: getattr(at_close, name)[order] for name in ("src", "dst", "t", "kind", "features")}
    shuffled = replace(at_close, **columns)
    assert not np.array_equal(shuffled.src, at_close.src)
    for name in NETWORK_NAMES:
        network = make_network(name)
        expected = returns_and_logits(network(make_batch(at_close)))
        actual = returns_and_logits(network(make_batch(shuffled)))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_edges_of_a_snapshot_become_events_once_when_it_takes_effect() -> None:
    first_bar = 4
    graph = make_graph([(ETH, BTC), (BTC, ETH)], first_bar)
    states = run_steps(make_network("tgn"), make_batch(graph=graph))
    counts = np.array([asset_event_counts(state) for _, state in states])
    events_by_bar = np.diff(counts, axis=0, prepend=0)
    a_bar_each = [1, 1, 1]
    edges_both_ways = [2, 2, 0]
    expected = np.zeros((BATCH_BARS, N_ASSETS), dtype=int)
    expected[PADDING:] = a_bar_each
    expected[first_bar] += edges_both_ways
    assert events_by_bar.tolist() == expected.tolist()


@pytest.mark.parametrize(("bar", "expected_counts"), [(3, [0, 1, 0]), (4, [1, 1, 0])])
def test_a_liquidation_reaches_the_assets_that_its_asset_had_an_edge_to_at_the_last_close(
    bar: int, expected_counts: list[int]
) -> None:
    """TGN-24. The edge ETH → BTC takes effect at the close of bar 3 of the panel: a liquidation of ETH within that bar
    does not reach BTC, a liquidation in the next bar does. Counts are of BTC, ETH and SOL."""
    network = make_network("tgn")
    graph = make_graph([(ETH, BTC)], first_bar=PADDING + 3)
    final_counts = []
    for events in (make_liquidation("ETH", bar), None):
        *_, (_, last_state) = run_steps(network, make_batch(events, graph))
        final_counts.append(np.array(asset_event_counts(last_state)))
    with_liquidation, without_liquidation = final_counts
    assert (with_liquidation - without_liquidation).tolist() == expected_counts


def test_a_liquidation_that_reaches_another_asset_has_the_weight_of_the_edge() -> None:
    network = make_network("tgn")
    memory, buffer, (clock, edges) = network.initial_state(1, N_ASSETS)
    edges[0, SOL, BTC] = 0.5  # [chunk, target, source]
    first_bar = make_batch(make_liquidation("BTC", bar=0)).bars(PADDING, PADDING + 1)
    with torch.no_grad():
        _, state = network.step(first_bar, (memory, buffer, (clock, edges)))
    assert asset_event_counts(state) == [2, 1, 2]  # every asset has its bar, BTC and SOL also the liquidation
    _, buffer_after, _ = state
    neighbours = NeighbourBuffer(*buffer_after)
    weight_index = len(COLUMNS) + FEATURES.index("weight")
    liquidation_slot = 0  # the liquidation is inserted before the bar
    assert neighbours.features[BTC, liquidation_slot, weight_index].item() == 0.0
    assert neighbours.features[SOL, liquidation_slot, weight_index].item() == 0.5


def test_events_with_other_features_are_refused() -> None:
    batch = make_batch(make_market_events())
    assert batch.events is not None
    truncated = replace(batch, events=replace(batch.events, features=batch.events.features[:, :3]))
    with pytest.raises(ShapeError, match=f"3 features; .*gives {len(FEATURES)}"):
        make_network("tgn")(truncated)


def test_a_network_with_the_option_together_learns_which_assets_move_in_the_same_direction() -> None:
    """TGN-28: BTC and ETH always have the same return, SOL the opposite one."""
    torch.manual_seed(0)
    spec = Spec("tgn", d_model=8, dropout=0.0, options={"together": True})
    network = build(spec, n_features=len(COLUMNS), n_horizons=1).train()
    batch = make_batch()
    returns = torch.randn(1, BATCH_BARS, 1, 1) * torch.tensor([1.0, 1.0, -1.0])[:, None]
    targets = Targets(
        returns=returns,
        log_volatility=torch.full(returns.shape[:3], torch.nan),
        class_5=torch.full(returns.shape[:3], UNKNOWN_CLASS),
        horizons=(1,),
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(120):
        optimiser.zero_grad()
        forecast_loss(network(batch), targets, TrainConfig()).backward()
        optimiser.step()
    logits = network(batch).co_movement
    assert logits is not None
    burn_in = 2 * PADDING  # the first bars of the panel have too few events
    probability = torch.sigmoid(logits.detach())[0, burn_in:].mean(0)
    assert probability[BTC, ETH] > 0.75
    assert max(probability[BTC, SOL], probability[ETH, SOL]) < 0.25


def test_without_the_option_together_a_forecast_has_no_co_movement() -> None:
    assert make_network("tgn")(make_batch()).co_movement is None
