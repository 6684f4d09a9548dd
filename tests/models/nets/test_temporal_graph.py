"""The states of TGN, TGAT, JODIE and DyRep (TGN-44): what changes them, what must not, and their gradients."""

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

NODES = 8
E = 60
F = 3
every_preset = pytest.mark.parametrize("name", PRESETS)


def make_events(seed: int = 0, ties: bool = False) -> EventBatch:
    """Random events between all nodes, sorted by time; with ``ties`` ten events have each time."""
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(0, NODES, (E,), generator=generator)
    dst = (src + torch.randint(1, NODES, (E,), generator=generator)) % NODES
    t = 100 * torch.rand(E, generator=generator, dtype=torch.float64).sort().values
    t = t[::10].repeat_interleave(10) if ties else t
    return EventBatch(src, dst, t, torch.randn(E, F, generator=generator))


def make_graph(name: str, **parts: object) -> TemporalGraph:
    torch.manual_seed(0)
    return CompiledTemporalGraph(preset(name, neighbours=4, **parts), Sizes(8, F, 8, longest=100.0)).eval()


def insert_all(graph: TemporalGraph, events: EventBatch, state: State | None = None, size: int = 10) -> State:
    """The state after the events, inserted in batches of ``size``."""
    state = graph.initial_state(NODES) if state is None else state
    with torch.no_grad():
        for start in range(0, len(events.src), size):
            state = graph.insert(state, events.part(start, start + size))
    return state


def embed_all(graph: TemporalGraph, state: State, t: float = 101.0) -> Tensor:
    """The embeddings of all nodes at time ``t``."""
    with torch.no_grad():
        return graph.embed(state, torch.arange(NODES), torch.full((NODES,), t, dtype=torch.float64))


def embed_batches(graph: TemporalGraph, events: EventBatch, size: int, insert_first: bool = False) -> list[Tensor]:
    """The embeddings for every batch, at its first time, before the batch is inserted; or after it."""
    state = graph.initial_state(NODES)
    embeddings = []
    with torch.no_grad():
        for start in range(0, E, size):
            batch = events.part(start, start + size)
            if insert_first:
                state = graph.insert(state, batch, in_place=True)
            embeddings.append(embed_all(graph, state, float(batch.t[0])))
            if not insert_first:
                state = graph.insert(state, batch, in_place=True)
    return embeddings


def assert_equal_states(state: State, expected: State | tuple[tuple[Tensor, ...], ...]) -> None:
    """Memories and neighbours are equal to the bit."""
    for part, expected_part in zip(state, expected, strict=True):
        for a, b in zip(part, expected_part, strict=True):
            assert torch.equal(a, b)


@every_preset
@pytest.mark.parametrize("size", [1, 10])
def test_later_events_change_no_earlier_embedding(name: str, size: int) -> None:
    """With other events from the 30th on, embeddings are equal to the bit up to the batch of the 30th, inclusive. They
    differ one batch earlier when a batch is inserted before its own embeddings, which shows that the test can fail."""
    graph = make_graph(name)
    events = make_events()
    mixed = [torch.cat([a[:30], b[30:]]) for a, b in zip(events, make_events(seed=5), strict=True)]
    changed = EventBatch(mixed[0], mixed[1], events.t, mixed[3])
    first_difference = []
    for insert_first in (False, True):
        before = embed_batches(graph, events, size, insert_first)
        after = embed_batches(graph, changed, size, insert_first)
        first_difference.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)].index(True))
    assert first_difference == [30 // size + 1, 30 // size]


@every_preset
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_the_order_of_simultaneous_events_changes_no_embedding(name: str, aggregator: str) -> None:
    graph = make_graph(name, aggregator=aggregator)
    events = make_events(ties=True)
    generator = torch.Generator().manual_seed(3)
    order = torch.cat([torch.randperm(10, generator=generator) + start for start in range(0, E, 10)])
    shuffled = EventBatch(*(column[order] for column in events))
    assert not torch.equal(shuffled.src, events.src)
    expected = embed_all(graph, insert_all(graph, events))
    torch.testing.assert_close(embed_all(graph, insert_all(graph, shuffled)), expected, rtol=1e-5, atol=1e-6)


@every_preset
def test_events_with_swapped_ends_give_other_embeddings(name: str) -> None:
    graph = make_graph(name)
    events = make_events()
    swapped = events._replace(src=events.dst, dst=events.src)
    change = (embed_all(graph, insert_all(graph, events)) - embed_all(graph, insert_all(graph, swapped))).abs().max()
    assert float(change) > 1e-4


@every_preset
def test_the_numbering_of_the_nodes_changes_no_embedding(name: str) -> None:
    graph = make_graph(name, aggregator="mean")
    events = make_events(ties=True)
    number = torch.randperm(NODES, generator=torch.Generator().manual_seed(1))
    renamed = events._replace(src=number[events.src], dst=number[events.dst])
    expected = embed_all(graph, insert_all(graph, events))
    torch.testing.assert_close(embed_all(graph, insert_all(graph, renamed))[number], expected, rtol=1e-4, atol=1e-5)


@every_preset
def test_a_run_resumed_from_a_copied_state_equals_one_run(name: str) -> None:
    graph = make_graph(name)
    events = make_events()
    first = insert_all(graph, events.part(0, 30))
    before = tuple(tuple(tensor.clone() for tensor in part) for part in first)
    resumed = insert_all(graph, events.part(30, E), copied(first))
    assert_equal_states(resumed, insert_all(graph, events))
    assert_equal_states(first, before)


@every_preset
def test_inserting_in_place_gives_the_same_state(name: str) -> None:
    graph = make_graph(name)
    events = make_events()
    state = graph.initial_state(NODES)
    with torch.no_grad():
        for start in range(0, E, 10):
            state = graph.insert(state, events.part(start, start + 10), in_place=True)
    assert_equal_states(state, insert_all(graph, events))


@every_preset
def test_every_weight_has_a_gradient_through_the_batch_before(name: str) -> None:
    """TRAP-06: the state does not contain the predicted batch, and every part still has a gradient (TGN-03)."""
    graph = make_graph(name)
    events = make_events()
    state = detached(insert_all(graph, events.part(0, 20)))
    state = graph.insert(state, events.part(20, 40))
    node_features = torch.randn(NODES, 8, requires_grad=True)
    z = graph.embed(state, torch.arange(NODES), torch.full((NODES,), 101.0).double(), node_features)
    z.square().sum().backward()
    assert [k for k, p in graph.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert not detached(state)[0].vector.requires_grad


@every_preset
def test_double_precision_gives_the_same_embeddings_before_and_after_events(name: str) -> None:
    """Double precision runs the torch operations, as a GPU does: no compiled pass supports it."""
    embeddings = []
    for double in (False, True):
        graph = make_graph(name)
        events = make_events()
        if double:
            graph = graph.double()
            events = events._replace(features=events.features.double())
        states = (graph.initial_state(NODES), insert_all(graph, events))
        embeddings.append(torch.stack([embed_all(graph, state) for state in states]).float())
    torch.testing.assert_close(*embeddings, rtol=1e-4, atol=1e-5)


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
def test_the_compiled_passes_equal_the_torch_operations(size: int, parts: Parts, sizes: Sizes) -> None:
    events = make_events()
    results = []
    for kind in (CompiledTemporalGraph, TemporalGraph):
        torch.manual_seed(0)
        graph = kind(parts, sizes).eval()
        state = graph.initial_state(NODES)
        embeddings = []
        with torch.no_grad():
            for i in range(0, E, size):
                nodes = events.src[i : i + 1].repeat(2)
                embeddings.append(graph.embed(state, nodes, events.t[i : i + 1].repeat(2)))
                state = graph.insert(state, events.part(i, i + size))
        results.append((torch.stack(embeddings), state[0].vector))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    # the passes add in another order: bit-equal results would mean that they did not run
    assert not torch.equal(results[0][0], results[1][0])


def test_the_order_of_events_in_a_batch_changes_no_neighbour() -> None:
    """Node 0 is the destination of the later event and the source of the earlier one."""
    graph = make_graph("tgn")
    t = torch.tensor([2.0, 1.0]).double()
    events = EventBatch(torch.tensor([1, 0]), torch.tensor([0, 2]), t, torch.zeros(2, F))
    flipped = EventBatch(*(column.flip(0) for column in events))
    for a, b in zip(insert_all(graph, events)[1], insert_all(graph, flipped)[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("ids", [[NODES], [1, -1], [0, 1, 2, 3, NODES], [0, 1, 2, 3, -2]])
def test_an_embedding_of_an_unknown_node_is_refused_by_name(ids: list[int]) -> None:
    graph = make_graph("tgn")
    events = make_events()
    state = insert_all(graph, events)
    nodes = torch.tensor(ids)
    with torch.no_grad(), pytest.raises(ShapeError, match=f"asked of the node {ids[-1]}; those .* are 0 … 7"):
        graph.embed(state, nodes, torch.full(nodes.shape, 101.0).double())


def test_an_empty_batch_of_events_returns_the_same_state() -> None:
    graph = make_graph("tgn")
    state = insert_all(graph, make_events())
    assert graph.insert(state, make_events().part(0, 0)) is state


def test_an_embedding_depends_on_its_time() -> None:
    for name in ("tgn", "jodie"):
        graph = make_graph(name)
        state = insert_all(graph, make_events())
        assert not torch.allclose(embed_all(graph, state, 101.0), embed_all(graph, state, 150.0))


def test_events_that_do_not_fit_the_state_are_refused() -> None:
    graph = make_graph("tgn")
    events = make_events()
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
def test_an_invalid_event_is_refused_by_name_and_does_not_change_the_state(
    size: int, column: str, value: object, error: type[Exception], why: str
) -> None:
    graph = make_graph("tgn")
    events = make_events().part(0, size)
    invalid = events._replace(**{column: getattr(events, column).clone()})
    getattr(invalid, column)[-1] = events.dst[-1] if value == "dst" else value
    state = graph.initial_state(NODES)
    before = copied(state)
    with torch.no_grad(), pytest.raises(error, match=why):
        graph.insert(state, invalid, in_place=True)
    assert_equal_states(state, before)


def test_parts_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SizeError, match="its memories are what fades"):
        make_graph("tgn", updater="decay", fades=False)
    with pytest.raises(SizeError, match="there is no memory to embed"):
        make_graph("tgat", embedding="identity")


def test_unknown_parts_are_refused() -> None:
    for parts in ({"embedding": "sum"}, {"message": "cnn"}, {"encoding": "clock"}, {"layers": 0}):
        with pytest.raises(SizeError):
            make_graph("tgn", **parts)
    with pytest.raises(SizeError, match="preset is 'gcn'"):
        preset("gcn")
    with pytest.raises(TypeError):
        preset("tgn", depth=3)


def test_events_become_tensors_with_times_in_the_given_unit() -> None:
    t = np.array([5_000_000, 8_000_000])
    kind = np.array([0, 2], dtype=np.int8)
    events = Events(np.array([0, 1]), np.array([1, 0]), t, kind, np.ones((2, 1), dtype=np.float32), ("a", "b"))
    batch = EventBatch.from_events(events, unit_us=2e6, since_us=1_000_000)
    assert batch.t.tolist() == [2.0, 3.5]
    assert batch.features.shape == (2, 1 + len(EVENT_KINDS))
    assert batch.features[1].tolist() == [1.0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_pair_history_features_count_the_events_in_the_neighbour_buffers() -> None:
    graph = make_graph("tgn")
    src = torch.tensor([0, 0, 1, 3])
    dst = torch.tensor([1, 2, 2, 0])
    t = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    state = graph.insert(graph.initial_state(NODES), EventBatch(src, dst, t, torch.zeros(4, F)))
    now = torch.full((2,), 10.0, dtype=torch.float64)
    with_history, without_history = pair_history_features(state, torch.tensor([0, 0]), torch.tensor([1, 7]), now, 100.0)
    one, two, three = (float(np.log1p(k)) for k in (1, 2, 3))
    # 0 and 1 share one event, 9 ago, and the neighbour 2; 0 has three events, the last 6 ago, and 1 has two, 7 ago
    times = [float(np.log1p(x) / np.log1p(100)) for x in (9, 6, 7)]
    assert with_history.tolist() == pytest.approx([one, one, one, one, three, two, *times], rel=1e-5)
    assert without_history[:4].tolist() == [0.0] * 4
    assert float(without_history[6]) == 2.0


def test_one_source_for_all_candidates_gives_the_logits_of_the_source_repeated() -> None:
    torch.manual_seed(0)
    predictor = LinkPredictor(preset("tgn"), Sizes(8, F, 8, longest=100.0)).eval()
    events = make_events()
    state = insert_all(predictor.graph, events.part(0, 50))
    batch = events.part(50, E)
    v = torch.stack([batch.dst, (batch.dst + 1) % NODES])
    with torch.no_grad():
        shared = predictor(state, batch.src[None], v, batch.t)
        repeated = predictor(state, batch.src.expand_as(v), v, batch.t)
    assert shared.shape == (2, 10)
    torch.testing.assert_close(shared, repeated)


def test_a_longer_half_life_preserves_more_of_a_memory() -> None:
    """Two networks differ only in their half-lives; after a pause the slower one has the larger memories."""
    strength = []
    for longest in (10.0, 1000.0):
        torch.manual_seed(0)
        graph = TemporalGraph(preset("jodie", embedding="identity"), Sizes(8, F, 8, longest=longest))
        state = graph.insert(graph.initial_state(NODES), make_events())
        strength.append(
            float(embed_all(graph, state, 160.0).abs().mean() / embed_all(graph, state, 101.0).abs().mean())
        )
    assert all(a < b for a, b in pairwise(strength))
