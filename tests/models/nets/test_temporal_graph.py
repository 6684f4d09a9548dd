"""The temporal graph network's states: what changes them, what must not, and what is learned through them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from models.graphs.events import EVENT_KINDS, Events
from models.layers.errors import NotFiniteError, ShapeError, SizeError
from models.layers.memory import AGGREGATORS
from models.nets.event_batch import EventBatch
from models.nets.link import LinkPredictor, pair_history_features
from models.nets.temporal_graph import PRESETS, Parts, Sizes, State, TemporalGraph, copied, detached, preset
from models.nets.temporal_graph_cpu import CompiledTemporalGraph

NODES, E, F = 8, 60, 3
every_preset = pytest.mark.parametrize("name", PRESETS)


def contacts(seed: int = 0, ties: bool = False) -> EventBatch:
    """Random events between all nodes, in order; with ``ties`` ten at a time."""
    draw = torch.Generator().manual_seed(seed)
    src = torch.randint(0, NODES, (E,), generator=draw)
    dst = (src + torch.randint(1, NODES, (E,), generator=draw)) % NODES
    t = 100 * torch.rand(E, generator=draw, dtype=torch.float64).sort().values
    t = t[::10].repeat_interleave(10) if ties else t
    return EventBatch(src, dst, t, torch.randn(E, F, generator=draw))


def network(name: str, **parts: object) -> TemporalGraph:
    torch.manual_seed(0)
    return CompiledTemporalGraph(preset(name, neighbours=4, **parts), Sizes(8, F, 8, longest=100.0)).eval()


def run(graph: TemporalGraph, events: EventBatch, state: State | None = None, size: int = 10) -> State:
    state = graph.initial_state(NODES) if state is None else state
    with torch.no_grad():
        for start in range(0, len(events.src), size):
            state = graph.insert(state, events.part(start, start + size))
    return state


def view(graph: TemporalGraph, state: State, at: float = 101.0) -> Tensor:
    with torch.no_grad():
        return graph.embed(state, torch.arange(NODES), torch.full((NODES,), at, dtype=torch.float64))


def predicted(graph: TemporalGraph, events: EventBatch, size: int, peeks: bool = False) -> list[Tensor]:
    """What is predicted for every batch at its own times before it is inserted; after that, if it ``peeks``."""
    state, seen = graph.initial_state(NODES), []
    with torch.no_grad():
        for start in range(0, E, size):
            batch = events.part(start, start + size)
            if peeks:
                state = graph.insert(state, batch, in_place=True)
            seen.append(view(graph, state, float(batch.t[0])))
            if not peeks:
                state = graph.insert(state, batch, in_place=True)
    return seen


@every_preset
@pytest.mark.parametrize("size", [1, 10])
def test_what_happens_later_changes_nothing_before_it(name: str, size: int) -> None:
    """Other events from the 30th on leave every prediction up to that of their own batch as it was, to the bit."""
    graph, events, other = network(name), contacts(), contacts(seed=5)
    late = [torch.cat([a[:30], b[30:]]) for a, b in zip(events, other, strict=True)]
    changed = EventBatch(late[0], late[1], events.t, late[3])
    apart = []
    for peeks in (False, True):
        both = (predicted(graph, stream, size, peeks) for stream in (events, changed))
        apart.append([not torch.equal(a, b) for a, b in zip(*both, strict=True)].index(True))
    assert apart == [30 // size + 1, 30 // size]  # one that peeks is found out


@every_preset
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_simultaneous_events_in_any_order_give_the_same_predictions(name: str, aggregator: str) -> None:
    graph, events = network(name, aggregator=aggregator), contacts(ties=True)
    draw = torch.Generator().manual_seed(3)
    order = torch.cat([torch.randperm(10, generator=draw) + start for start in range(0, E, 10)])
    shuffled = EventBatch(*(column[order] for column in events))
    assert not torch.equal(shuffled.src, events.src)
    torch.testing.assert_close(view(graph, run(graph, shuffled)), view(graph, run(graph, events)), rtol=1e-5, atol=1e-6)


@every_preset
def test_reversed_events_give_other_predictions(name: str) -> None:
    graph, events = network(name), contacts()
    back = events._replace(src=events.dst, dst=events.src)
    apart = (view(graph, run(graph, events)) - view(graph, run(graph, back))).abs().max()
    assert float(apart) > 1e-4


@every_preset
def test_nodes_by_other_numbers_give_the_same_predictions(name: str) -> None:
    graph, events = network(name, aggregator="mean"), contacts(ties=True)
    number = torch.randperm(NODES, generator=torch.Generator().manual_seed(1))
    renamed = events._replace(src=number[events.src], dst=number[events.dst])
    expected = view(graph, run(graph, events))
    torch.testing.assert_close(view(graph, run(graph, renamed))[number], expected, rtol=1e-4, atol=1e-5)


@every_preset
def test_a_run_cut_in_two_is_one_run(name: str) -> None:
    graph, events = network(name), contacts()
    first = run(graph, events.part(0, 30))
    kept = [[part.clone() for part in half] for half in first]
    whole, resumed = run(graph, events), run(graph, events.part(30, E), copied(first))
    for half, expected in zip(resumed, whole, strict=True):
        for a, b in zip(half, expected, strict=True):
            assert torch.equal(a, b)
    for half, expected in zip(first, kept, strict=True):
        for a, b in zip(half, expected, strict=True):
            assert torch.equal(a, b)


@every_preset
def test_written_in_place_the_state_is_the_same(name: str) -> None:
    graph, events = network(name), contacts()
    state = graph.initial_state(NODES)
    with torch.no_grad():
        for start in range(0, E, 10):
            state = graph.insert(state, events.part(start, start + 10), in_place=True)
    expected = run(graph, events)
    for half, other in zip(state, expected, strict=True):
        for a, b in zip(half, other, strict=True):
            assert torch.equal(a, b)


@every_preset
def test_all_weights_learn_from_the_batch_before(name: str) -> None:
    """TRAP-06: what is predicted is not in the state yet, and the updater still has a gradient."""
    graph, events = network(name), contacts()
    state = detached(run(graph, events.part(0, 20)))
    state = graph.insert(state, events.part(20, 40))
    own = torch.randn(NODES, 8, requires_grad=True)
    graph.embed(state, torch.arange(NODES), torch.full((NODES,), 101.0).double(), own).square().sum().backward()
    assert [k for k, p in graph.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert not detached(state)[0].vector.requires_grad


@every_preset
def test_the_torch_forms_say_the_same_from_before_the_first_event_on(name: str) -> None:
    """In double precision, which no compiled pass knows, as on a GPU."""
    events, seen = contacts(), []
    for double in (False, True):
        graph = network(name).double() if double else network(name)
        given = events._replace(features=events.features.double()) if double else events
        states = graph.initial_state(NODES), run(graph, given)
        seen.append(torch.stack([view(graph, state) for state in states]).float())
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (Parts(neighbours=4), Sizes(8, F, 8, longest=100.0)),
        (Parts(neighbours=4, fades=False), Sizes(8, F, 8, longest=100.0)),
        (Parts(neighbours=1, heads=3), Sizes(15, F, 6, longest=100.0)),
        (Parts(neighbours=7, heads=1, aggregator="mean"), Sizes(17, F, 2, longest=100.0)),
    ],
)
def test_the_compiled_passes_say_what_torch_says(size: int, parts: Parts, sizes: Sizes) -> None:
    events, found = contacts(), []
    for kind in (CompiledTemporalGraph, TemporalGraph):
        torch.manual_seed(0)
        graph = kind(parts, sizes).eval()
        state, seen = graph.initial_state(NODES), []
        with torch.no_grad():
            for i in range(0, E, size):
                few = events.src[i : i + 1].repeat(2), events.t[i : i + 1].repeat(2)
                seen.append(graph.embed(state, *few))
                state = graph.insert(state, events.part(i, i + size))
        found.append((torch.stack(seen), state[0].vector))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not torch.equal(found[0][0], found[1][0])  # by another order of sums: the passes did run


def test_events_of_a_batch_in_any_order_leave_the_same_neighbours() -> None:
    """Node 0 hears of the later event as a destination, of the earlier one as a source."""
    graph, src, dst = network("tgn"), torch.tensor([1, 0]), torch.tensor([0, 2])
    events = EventBatch(src, dst, torch.tensor([2.0, 1.0]).double(), torch.zeros(2, F))
    back = EventBatch(*(column.flip(0) for column in events))
    for a, b in zip(run(graph, events)[1], run(graph, back)[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("asked", [[NODES], [1, -1], [0, 1, 2, 3, NODES], [0, 1, 2, 3, -2]])
def test_an_embedding_of_an_unknown_node_is_refused_by_name(asked: list[int]) -> None:
    graph, events = network("tgn"), contacts()
    state, nodes = run(graph, events), torch.tensor(asked)
    with torch.no_grad(), pytest.raises(ShapeError, match=f"asked of the node {asked[-1]}; those .* are 0 … 7"):
        graph.embed(state, nodes, torch.full(nodes.shape, 101.0).double())


def test_no_events_change_nothing() -> None:
    graph = network("tgn")
    state = run(graph, contacts())
    assert graph.insert(state, contacts().part(0, 0)) is state


def test_an_embedding_depends_on_when_it_is_asked_for() -> None:
    for name in ("tgn", "jodie"):
        graph = network(name)
        state = run(graph, contacts())
        assert not torch.allclose(view(graph, state, 101.0), view(graph, state, 150.0))


def test_events_that_do_not_fit_the_state_are_refused() -> None:
    graph, events = network("tgn"), contacts()
    with pytest.raises(ShapeError, match="beyond the 3 of this state"):
        graph.insert(graph.initial_state(3), events)
    for column, part in (("features", events.features[:, :2]), ("dst", events.dst[1:]), ("t", events.t[:-1])):
        with torch.no_grad(), pytest.raises(ShapeError, match="give as many of each, and 3 features"):
            graph.insert(graph.initial_state(NODES), events._replace(**{column: part}))
    with torch.no_grad(), pytest.raises(ShapeError, match=r"nodes are \(2,\) and times \(1,\)"):
        graph.embed(graph.initial_state(NODES), torch.arange(2), events.t[:1])


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize(
    ("column", "value", "error", "why"),
    [
        ("src", -1, ShapeError, "names the node -1"),
        ("dst", -3, ShapeError, "names the node -3"),
        ("src", "dst", ShapeError, "runs from a node to itself"),
        ("t", -0.5, NotFiniteError, "time is -0.5"),
        ("t", float("nan"), NotFiniteError, "time is nan"),
    ],
)
def test_an_event_that_cannot_be_is_refused_by_name_and_leaves_the_state(
    size: int, column: str, value: object, error: type[Exception], why: str
) -> None:
    graph, events = network("tgn"), contacts().part(0, size)
    wrong = events._replace(**{column: getattr(events, column).clone()})
    getattr(wrong, column)[-1] = events.dst[-1] if value == "dst" else value
    state = graph.initial_state(NODES)
    before = copied(state)
    with torch.no_grad(), pytest.raises(error, match=why):
        graph.insert(state, wrong, in_place=True)
    for half, other in zip(state, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(half, other, strict=True))


def test_parts_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SizeError, match="its memories are what fades"):
        network("tgn", updater="decay", fades=False)
    with pytest.raises(SizeError, match="there is no memory to embed"):
        network("tgat", embedding="identity")


def test_parts_that_there_are_not_are_refused() -> None:
    for wrong in ({"embedding": "sum"}, {"message": "cnn"}, {"encoding": "clock"}, {"layers": 0}):
        with pytest.raises(SizeError):
            network("tgn", **wrong)
    with pytest.raises(SizeError, match="preset is 'gcn'"):
        preset("gcn")
    with pytest.raises(TypeError):
        preset("tgn", depth=3)


def test_events_become_tensors_in_the_unit_asked_for() -> None:
    t, kind = np.array([5_000_000, 8_000_000]), np.array([0, 2], dtype=np.int8)
    given = Events(np.array([0, 1]), np.array([1, 0]), t, kind, np.ones((2, 1), dtype=np.float32), ("a", "b"))
    made = EventBatch.of(given, unit_us=2e6, since_us=1_000_000)
    assert made.t.tolist() == [2.0, 3.5]
    assert made.features.shape == (2, 1 + len(EVENT_KINDS))
    assert made.features[1].tolist() == [1.0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_acquaintance_counts_what_the_rings_hold() -> None:
    graph = network("tgn")
    src, dst = torch.tensor([0, 0, 1, 3]), torch.tensor([1, 2, 2, 0])
    t = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    state = graph.insert(graph.initial_state(NODES), EventBatch(src, dst, t, torch.zeros(4, F)))
    now = torch.full((2,), 10.0, dtype=torch.float64)
    known, stranger = pair_history_features(state, torch.tensor([0, 0]), torch.tensor([1, 7]), now, 100.0)
    one, two, three = (float(np.log1p(k)) for k in (1, 2, 3))
    # 0 and 1 met once, 9 ago; both know 2; 0 had three events, its last 6 ago, and 1 had two, its last 7 ago
    times = [float(np.log1p(x) / np.log1p(100)) for x in (9, 6, 7)]
    assert known.tolist() == pytest.approx([one, one, one, one, three, two, *times], rel=1e-5)
    assert stranger[:4].tolist() == [0.0] * 4
    assert float(stranger[6]) == 2.0


def test_candidates_with_one_source_are_scored_as_if_it_were_named_for_each() -> None:
    torch.manual_seed(0)
    predictor = LinkPredictor(preset("tgn"), Sizes(8, F, 8, longest=100.0)).eval()
    events = contacts()
    state = run(predictor.graph, events.part(0, 50))
    batch = events.part(50, E)
    v = torch.stack([batch.dst, (batch.dst + 1) % NODES])
    with torch.no_grad():
        shared = predictor(state, batch.src[None], v, batch.t)
        named = predictor(state, batch.src.expand_as(v), v, batch.t)
    assert shared.shape == (2, 10)
    torch.testing.assert_close(shared, named)


def test_a_longer_half_life_keeps_more() -> None:
    """Of two networks alike but for their half-lives, the slower one remembers more after a pause."""
    strength = []
    for longest in (10.0, 1000.0):
        torch.manual_seed(0)
        graph = TemporalGraph(preset("jodie", embedding="identity"), Sizes(8, F, 8, longest=longest))
        state = graph.insert(graph.initial_state(NODES), contacts())
        strength.append(float(view(graph, state, 160.0).abs().mean() / view(graph, state, 101.0).abs().mean()))
    assert all(a < b for a, b in pairwise(strength))
