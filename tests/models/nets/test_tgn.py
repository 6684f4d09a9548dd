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
    edge_events,
    funding_events,
    liquidation_events,
    market_nodes,
    trade_events,
)
from models.graphs.snapshot import GraphError, Snapshot
from models.layers.errors import ShapeError
from models.nets.forecast import Batch, Forecast, GraphSteps
from models.nets.tgn import Tgn
from models.panel import Panel
from models.training.config import TrainConfig
from models.training.data import Inputs, Targets, event_steps
from models.training.losses import forecast_loss
from models.zoo import Spec, build

HOUR, BARS, SYMBOLS = 3_600_000_000, 12, ("BTC", "ETH", "SOL")
NAMES = ("tgn", "tgat", "jodie", "dyrep")
every_name = pytest.mark.parametrize("name", NAMES)


def panel() -> Panel:
    draw = np.random.default_rng(0)
    ts = np.datetime64("2024-01-01", "us") + np.arange(BARS) * np.timedelta64(1, "h")
    values = draw.normal(size=(BARS, len(SYMBOLS), 2))
    return Panel(ts, SYMBOLS, ("a", "b"), values, np.ones((BARS, len(SYMBOLS)), dtype=bool))


def market_events(count: int = 300, seed: int = 1):
    """Random trades over the panel's hours, and a settlement in the fifth."""
    draw, start = np.random.default_rng(seed), int(panel().ts[0].astype(np.int64))
    t = start + np.sort(draw.integers(1, BARS * HOUR, count))
    rows = {"t": t, "symbol": draw.choice(SYMBOLS, count), "price": draw.uniform(90, 110, count)}
    trades = trade_events(SYMBOLS, rows | {"size": draw.uniform(0, 5, count), "side": draw.choice([-1.0, 1.0], count)})
    settled = np.array([start + 5 * HOUR])
    funding = funding_events(SYMBOLS, {"t": settled, "symbol": np.array(["ETH"]), "rate": np.array([1e-4])})
    return concatenate([trades, funding])


def by_bar(events: Events) -> BarEvents:
    return BarEvents.of(events, panel().ts, panel().ts + np.timedelta64(1, "h"))


def batch_of(events: Events | None = None) -> Batch:
    scaler = Scaler(("a", "b"), (0.0, 0.0), (1.0, 1.0))
    around = SideInputs(events=None if events is None else by_bar(events))
    return Inputs.of(panel(), scaler, HOUR, around).batch(torch.arange(-2, BARS)[None])


def network(name: str) -> Tgn:
    made = build(Spec(name, d_model=8, n_layers=1, dropout=0.0), 2, 1)
    torch.manual_seed(0)
    for parameter in made.heads.parameters():
        nn.init.normal_(parameter)
    return made.eval()


def said(forecast: Forecast) -> torch.Tensor:
    return torch.cat([forecast.returns, forecast.logits], dim=-1).detach()


def test_an_event_belongs_to_the_bar_whose_close_it_does_not_come_after() -> None:
    events, bars = market_events(), panel()
    steps = event_steps(by_bar(events), bars, HOUR)
    close = bars.ts.astype(np.int64) + HOUR
    for bar, (first, stop) in enumerate(steps.spans[0].tolist()):
        t = events.t[first:stop]
        assert ((t > close[bar] - HOUR) & (t <= close[bar])).all()
        assert steps.age[first:stop].tolist() == pytest.approx(((close[bar] - t) / HOUR).tolist(), abs=1e-6)
    assert int((steps.spans[0, :, 1] - steps.spans[0, :, 0]).sum()) == len(events)
    at_close = steps.spans[0, 4].tolist()  # the settlement comes with the close of the fifth bar
    assert float(steps.age[at_close[1] - 1]) == 0.0


def test_bars_outside_the_panel_have_no_events() -> None:
    events = batch_of(market_events()).events
    assert events is not None
    assert events.spans[0, :2].tolist() == [[0, 0], [0, 0]]
    assert events.spans[0, 2, 1] > 0


def test_events_of_another_market_are_refused() -> None:
    other = trade_events(("DOGE",), {k: np.array([]) for k in ("t", "symbol", "price", "size", "side")})
    with pytest.raises(GraphError, match="asset:DOGE, no node of the market"):
        event_steps(by_bar(other), panel(), HOUR)


@every_name
def test_events_are_heard_and_only_from_their_own_bar_on(name: str) -> None:
    made, given = network(name), market_events()
    close = panel().ts.astype(np.int64) + HOUR
    bar = 6
    features = given.features.copy()
    features[given.t > close[bar - 1]] += 1.0
    batch, other = batch_of(given), batch_of(replace(given, features=features))
    with torch.no_grad():
        before, after = said(made(batch)), said(made(other))
    assert torch.equal(before[:, : 2 + bar], after[:, : 2 + bar])
    assert not torch.equal(before[:, 2 + bar], after[:, 2 + bar])
    assert not torch.equal(before, said(made(batch_of())))


@every_name
def test_steps_with_events_are_the_sequence_and_leave_the_given_state_alone(name: str) -> None:
    made, batch = network(name), batch_of(market_events())
    state, seen = made.initial_state(1, len(SYMBOLS)), []
    with torch.no_grad():
        for t in range(batch.x.shape[1]):
            kept = [[part.clone() for part in parts] for parts in state]
            forecast, after = made.step(batch.bars(t, t + 1), state)
            for parts, expected in zip(state, kept, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))
            state = after
            seen.append(said(forecast))
        torch.testing.assert_close(torch.cat(seen, dim=1), said(made(batch)))


def test_simultaneous_events_in_another_order_change_no_forecast() -> None:
    given = market_events()
    same = replace(given, t=given.t // HOUR * HOUR + HOUR)
    order = np.lexsort([np.random.default_rng(3).random(len(same)), same.t])
    columns = {k: getattr(same, k)[order] for k in ("src", "dst", "t", "kind", "features")}
    shuffled = replace(same, **columns)
    assert not np.array_equal(shuffled.src, same.src)
    for name in NAMES:
        made = network(name)
        torch.testing.assert_close(said(made(batch_of(shuffled))), said(made(batch_of(same))), rtol=1e-4, atol=1e-5)


def test_a_snapshots_edges_are_heard_once_when_it_comes_into_force() -> None:
    made, batch = network("tgn"), batch_of()
    adjacency = torch.eye(3)[None].repeat(2, 1, 1)
    adjacency[0, 0, 1] = adjacency[0, 1, 0] = 0.7
    step = torch.full((1, BARS + 2), -1)
    step[:, 4:] = 0
    with torch.no_grad():
        state = made.initial_state(1, 3)
        counts = []
        for t in range(BARS + 2):
            graph = GraphSteps(adjacency, step[:, t : t + 1])
            _, state = made.step(replace(batch.bars(t, t + 1), graph=graph), state)
            counts.append(state[0][2][:3].tolist())
    gained = np.diff(np.array(counts), axis=0)
    assert gained[2].tolist() == [1, 1, 1]  # a bar each
    assert gained[3].tolist() == [3, 3, 1]  # and both ends of the edge, once each way
    assert gained[4:].tolist() == [[1, 1, 1]] * (BARS - 3)


def test_a_liquidation_is_heard_by_the_assets_that_its_own_had_an_edge_to_at_the_last_close() -> None:
    """The edge ETH → BTC comes into force with the fourth bar, so that a liquidation within it does not know it yet."""
    made, quiet = network("tgn"), batch_of()
    adjacency, step = torch.eye(3)[None].clone(), torch.full((1, BARS + 2), -1)
    adjacency[0, 0, 1], step[:, 5:] = 0.7, 0
    start, seen = int(panel().ts[0].astype(np.int64)), []
    for bar in (3, 4):
        rows = {name: np.array([1.0]) for name in ("price", "size", "side")}
        rows |= {"t": np.array([start + bar * HOUR + HOUR // 2]), "symbol": np.array(["ETH"])}
        batch = replace(batch_of(liquidation_events(SYMBOLS, rows)), graph=GraphSteps(adjacency, step))
        counts, states = [], (made.initial_state(1, 3), made.initial_state(1, 3))
        with torch.no_grad():
            for t in range(2 + bar + 1):
                one, other = (part.bars(t, t + 1) for part in (batch, replace(quiet, graph=batch.graph)))
                states = made.step(one, states[0])[1], made.step(other, states[1])[1]
            counts = (states[0][0][2] - states[1][0][2])[:3].tolist()
        seen.append(counts)
    assert seen == [[0, 1, 0], [1, 1, 0]]


def test_a_liquidation_says_the_weight_of_the_edge_that_it_is_heard_over() -> None:
    made, (memory, ring, (clock, edges)) = network("tgn"), network("tgn").initial_state(1, 3)
    edges[0, 2, 0] = 0.5
    row = {name: np.array([1.0]) for name in ("price", "size", "side")}
    row |= {"t": panel().ts[:1].astype(np.int64) + HOUR // 2, "symbol": np.array(["BTC"])}
    with torch.no_grad():
        _, after = made.step(batch_of(liquidation_events(SYMBOLS, row)).bars(2, 3), (memory, ring, (clock, edges)))
    assert after[0][2][:3].tolist() == [2, 1, 2]  # a bar each
    weight = made.embedding.n_features + FEATURES.index("weight")
    assert [after[1][2][asset, 0, weight].item() for asset in (0, 2)] == [0.0, 0.5]


def test_events_with_other_features_are_refused() -> None:
    batch = batch_of(market_events())
    assert batch.events is not None
    wrong = replace(batch, events=replace(batch.events, features=batch.events.features[:, :3]))
    with pytest.raises(ShapeError, match=f"3 features; .*gives {len(FEATURES)}"):
        network("tgn")(wrong)


def test_edges_of_a_snapshot_may_also_come_as_events() -> None:
    as_of = panel().ts[3]
    ends = (np.array([0]), np.array([1]), np.array([0.7]))
    snapshot = Snapshot("correlation", as_of, np.datetime64("NaT", "us"), *ends, SYMBOLS)
    given = edge_events(SYMBOLS, [snapshot], HOUR, "correlation")
    assert given.nodes == market_nodes(SYMBOLS)
    steps = event_steps(by_bar(given), panel(), HOUR)
    assert (steps.spans[0, :, 1] - steps.spans[0, :, 0]).tolist() == [0, 0, 0, 2] + [0] * (BARS - 4)


def test_which_assets_move_together_is_learned_where_it_is_asked_for() -> None:
    """Two assets that always move alike, and a third that moves the other way."""
    torch.manual_seed(0)
    made, config = build(Spec("tgn", d_model=8, dropout=0.0, options={"together": True}), 2, 1).train(), TrainConfig()
    batch = batch_of()
    moves = torch.randn(1, BARS + 2, 1, 1) * torch.tensor([1.0, 1.0, -1.0])[:, None]
    unknown = torch.full(moves.shape[:3], torch.nan)
    targets = Targets(moves, unknown, torch.full(moves.shape[:3], UNKNOWN), (1,))
    optimiser = torch.optim.Adam(made.parameters(), lr=0.02)
    for _ in range(120):
        optimiser.zero_grad()
        forecast_loss(made(batch), targets, config).backward()
        optimiser.step()
    together = made(batch).together
    assert together is not None
    chance = torch.sigmoid(together.detach())[0, 4:].mean(0)
    assert chance[0, 1] > 0.75
    assert max(chance[0, 2], chance[1, 2]) < 0.25
    assert network("tgn")(batch).together is None
