"""Temporal graph networks of a market: events between bars, edges of snapshots, and bars themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from models.features.labels import UNKNOWN
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
from models.nets.forecast import Batch, Forecast, GraphSteps
from models.nets.tgn import Tgn
from models.panel import Panel
from models.training.config import TrainConfig
from models.training.data import Inputs, Targets, event_steps
from models.training.losses import forecast_loss
from models.zoo import Spec, build

HOUR = 3_600_000_000
BARS = 12
SYMBOLS = ("BTC", "ETH", "SOL")
PADDING = 2  # bars of a batch before the panel begins
NAMES = ("tgn", "tgat", "jodie", "dyrep")
every_name = pytest.mark.parametrize("name", NAMES)


def make_panel() -> Panel:
    """Random hourly bars, none missing."""
    rng = np.random.default_rng(0)
    ts = np.datetime64("2024-01-01", "us") + np.arange(BARS) * np.timedelta64(1, "h")
    values = rng.normal(size=(BARS, len(SYMBOLS), 2))
    return Panel(ts, SYMBOLS, ("a", "b"), values, np.ones((BARS, len(SYMBOLS)), dtype=bool))


def make_market_events(count: int = 300, seed: int = 1) -> Events:
    """Random trades over the panel's hours, and a funding settlement at the close of the fifth."""
    rng = np.random.default_rng(seed)
    start = int(make_panel().ts[0].astype(np.int64))
    t = start + np.sort(rng.integers(1, BARS * HOUR, count))
    rows = {"t": t, "symbol": rng.choice(SYMBOLS, count), "price": rng.uniform(90, 110, count)}
    trades = trade_events(SYMBOLS, rows | {"size": rng.uniform(0, 5, count), "side": rng.choice([-1.0, 1.0], count)})
    settled = np.array([start + 5 * HOUR])
    funding = funding_events(SYMBOLS, {"t": settled, "symbol": np.array(["ETH"]), "rate": np.array([1e-4])})
    return concatenate([trades, funding])


def bar_events(events: Events) -> BarEvents:
    """The events by the panel's bars."""
    return BarEvents.from_events(events, make_panel().ts, make_panel().ts + np.timedelta64(1, "h"))


def make_batch(events: Events | None = None) -> Batch:
    """One chunk of the panel's bars after PADDING empty ones, with these events between the bars."""
    scaler = Scaler(("a", "b"), (0.0, 0.0), (1.0, 1.0))
    side_inputs = SideInputs(events=None if events is None else bar_events(events))
    return Inputs.from_panel(make_panel(), scaler, HOUR, side_inputs).batch(torch.arange(-PADDING, BARS)[None])


def make_network(name: str) -> Tgn:
    """A small network in evaluation mode with random heads, whose forecasts are not near 0."""
    network = build(Spec(name, d_model=8, n_layers=1, dropout=0.0), 2, 1)
    torch.manual_seed(0)
    for parameter in network.heads.parameters():
        nn.init.normal_(parameter)
    return network.eval()


def outputs(forecast: Forecast) -> torch.Tensor:
    return torch.cat([forecast.returns, forecast.logits], dim=-1).detach()


def test_an_event_belongs_to_the_first_bar_that_closes_at_or_after_it() -> None:
    events = make_market_events()
    panel = make_panel()
    steps = event_steps(bar_events(events), panel, HOUR)
    close = panel.ts.astype(np.int64) + HOUR
    for bar, (first, stop) in enumerate(steps.spans[0].tolist()):
        t = events.t[first:stop]
        assert ((t > close[bar] - HOUR) & (t <= close[bar])).all()
        assert steps.age[first:stop].tolist() == pytest.approx(((close[bar] - t) / HOUR).tolist(), abs=1e-6)
    assert int((steps.spans[0, :, 1] - steps.spans[0, :, 0]).sum()) == len(events)
    _, stop = steps.spans[0, 4].tolist()  # the settlement at the close is the last event of the fifth bar
    assert float(steps.age[stop - 1]) == 0.0


def test_bars_outside_the_panel_have_no_events() -> None:
    events = make_batch(make_market_events()).events
    assert events is not None
    assert events.spans[0, :2].tolist() == [[0, 0], [0, 0]]
    assert events.spans[0, 2, 1] > 0


def test_events_of_another_market_are_refused() -> None:
    other = trade_events(("DOGE",), {k: np.array([]) for k in ("t", "symbol", "price", "size", "side")})
    with pytest.raises(GraphError, match="asset:DOGE, no node of the market"):
        event_steps(bar_events(other), make_panel(), HOUR)


@every_name
def test_events_change_forecasts_from_their_own_bar_on_and_never_earlier(name: str) -> None:
    """TGN-05: forecasts of returns and of classes."""
    network = make_network(name)
    events = make_market_events()
    close = make_panel().ts.astype(np.int64) + HOUR
    bar = 6
    features = events.features.copy()
    features[events.t > close[bar - 1]] += 1.0
    with torch.no_grad():
        before = outputs(network(make_batch(events)))
        after = outputs(network(make_batch(replace(events, features=features))))
        without_events = outputs(network(make_batch()))
    assert torch.equal(before[:, : PADDING + bar], after[:, : PADDING + bar])
    assert not torch.equal(before[:, PADDING + bar], after[:, PADDING + bar])
    assert not torch.equal(before, without_events)


@every_name
def test_steps_with_events_equal_the_whole_sequence_and_do_not_change_the_given_state(name: str) -> None:
    """TGN-32: bar by bar, as a live program reads."""
    network = make_network(name)
    batch = make_batch(make_market_events())
    state = network.initial_state(1, len(SYMBOLS))
    steps = []
    with torch.no_grad():
        for t in range(batch.x.shape[1]):
            copy = [[part.clone() for part in parts] for parts in state]
            forecast, after = network.step(batch.bars(t, t + 1), state)
            for parts, expected in zip(state, copy, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))
            state = after
            steps.append(outputs(forecast))
        torch.testing.assert_close(torch.cat(steps, dim=1), outputs(network(batch)))


def test_the_order_of_simultaneous_events_changes_no_forecast() -> None:
    events = make_market_events()
    at_close = replace(events, t=events.t // HOUR * HOUR + HOUR)
    order = np.lexsort([np.random.default_rng(3).random(len(at_close)), at_close.t])
    columns = {k: getattr(at_close, k)[order] for k in ("src", "dst", "t", "kind", "features")}
    shuffled = replace(at_close, **columns)
    assert not np.array_equal(shuffled.src, at_close.src)
    for name in NAMES:
        network = make_network(name)
        expected = outputs(network(make_batch(at_close)))
        torch.testing.assert_close(outputs(network(make_batch(shuffled))), expected, rtol=1e-4, atol=1e-5)


def test_the_edges_of_a_snapshot_become_events_once_when_it_comes_into_force() -> None:
    network = make_network("tgn")
    batch = make_batch()
    adjacency = torch.eye(3)[None].repeat(2, 1, 1)
    adjacency[0, 0, 1] = adjacency[0, 1, 0] = 0.7
    step = torch.full((1, PADDING + BARS), -1)
    step[:, 4:] = 0
    with torch.no_grad():
        state = network.initial_state(1, 3)
        counts = []
        for t in range(PADDING + BARS):
            graph = GraphSteps(adjacency, step[:, t : t + 1])
            _, state = network.step(replace(batch.bars(t, t + 1), graph=graph), state)
            counts.append(state[0][2][:3].tolist())
    new_events = np.diff(np.array(counts), axis=0)
    assert new_events[2].tolist() == [1, 1, 1]  # one bar each
    assert new_events[3].tolist() == [3, 3, 1]  # and the edge in both directions
    assert new_events[4:].tolist() == [[1, 1, 1]] * (BARS - 3)


def test_a_liquidation_reaches_the_assets_with_an_edge_from_its_own_at_the_last_close() -> None:
    """TGN-24. The edge ETH → BTC comes into force at the close of the fourth bar: a liquidation within that bar does
    not use it, one in the next bar does."""
    network = make_network("tgn")
    quiet = make_batch()
    adjacency = torch.eye(3)[None].clone()
    adjacency[0, 0, 1] = 0.7
    step = torch.full((1, PADDING + BARS), -1)
    step[:, PADDING + 3 :] = 0
    start = int(make_panel().ts[0].astype(np.int64))
    additional_events = []
    for bar in (3, 4):
        rows = {name: np.array([1.0]) for name in ("price", "size", "side")}
        rows |= {"t": np.array([start + bar * HOUR + HOUR // 2]), "symbol": np.array(["ETH"])}
        batch = replace(make_batch(liquidation_events(SYMBOLS, rows)), graph=GraphSteps(adjacency, step))
        counts = []
        for events in (batch, replace(quiet, graph=batch.graph)):
            state = network.initial_state(1, 3)
            with torch.no_grad():
                for t in range(PADDING + bar + 1):
                    _, state = network.step(events.bars(t, t + 1), state)
            counts.append(state[0][2][:3])
        additional_events.append((counts[0] - counts[1]).tolist())
    assert additional_events == [[0, 1, 0], [1, 1, 0]]


def test_a_liquidation_that_reaches_another_asset_has_the_weight_of_the_edge() -> None:
    network = make_network("tgn")
    memory, buffer, (clock, edges) = network.initial_state(1, 3)
    edges[0, 2, 0] = 0.5
    row = {name: np.array([1.0]) for name in ("price", "size", "side")}
    row |= {"t": make_panel().ts[:1].astype(np.int64) + HOUR // 2, "symbol": np.array(["BTC"])}
    with torch.no_grad():
        _, after = network.step(
            make_batch(liquidation_events(SYMBOLS, row)).bars(2, 3), (memory, buffer, (clock, edges))
        )
    assert after[0][2][:3].tolist() == [2, 1, 2]  # one bar each, and the liquidation
    weight = network.embedding.n_features + FEATURES.index("weight")
    assert [after[1][2][asset, 0, weight].item() for asset in (0, 2)] == [0.0, 0.5]


def test_events_with_other_features_are_refused() -> None:
    batch = make_batch(make_market_events())
    assert batch.events is not None
    truncated = replace(batch, events=replace(batch.events, features=batch.events.features[:, :3]))
    with pytest.raises(ShapeError, match=f"3 features; .*gives {len(FEATURES)}"):
        make_network("tgn")(truncated)


def test_a_network_with_the_option_together_learns_which_assets_move_alike() -> None:
    """TGN-28: two assets always move alike, and a third moves the other way."""
    torch.manual_seed(0)
    network = build(Spec("tgn", d_model=8, dropout=0.0, options={"together": True}), 2, 1).train()
    config = TrainConfig()
    batch = make_batch()
    moves = torch.randn(1, PADDING + BARS, 1, 1) * torch.tensor([1.0, 1.0, -1.0])[:, None]
    unknown = torch.full(moves.shape[:3], torch.nan)
    targets = Targets(moves, unknown, torch.full(moves.shape[:3], UNKNOWN), (1,))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(120):
        optimiser.zero_grad()
        forecast_loss(network(batch), targets, config).backward()
        optimiser.step()
    together = network(batch).together
    assert together is not None
    probability = torch.sigmoid(together.detach())[0, 4:].mean(0)
    assert probability[0, 1] > 0.75
    assert max(probability[0, 2], probability[1, 2]) < 0.25
    assert make_network("tgn")(batch).together is None
