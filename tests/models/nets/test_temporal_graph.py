"""The states and embeddings of TGN, TGAT, JODIE and DyRep (TGN-44): what must change them, what must not, gradients.

Ids: .github/sources.md.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.graphs.events import EVENT_KINDS, Events
from models.layers.errors import NotFiniteError, ShapeError, SizeError
from models.layers.memory import AGGREGATORS
from models.nets.event_batch import EventBatch
from models.nets.link import LinkPredictor, pair_history_features
from models.nets.temporal_graph import PRESETS, Parts, Sizes, State, TemporalGraph, copy_state, detach_state, preset
from models.nets.temporal_graph_cpu import CompiledTemporalGraph

N_NODES = 8
N_EVENTS = 60
BATCH_SIZE = 10  # events that are inserted at once
F = 3  # features of an event
D = 8  # channels
LATEST = 100.0  # no event is later
SIZES = Sizes(d=D, n_features=F, d_time=8, longest=LATEST)
every_preset = pytest.mark.parametrize("name", PRESETS)


def make_events(seed: int = 0, has_ties: bool = False) -> EventBatch:
    """Random events between all nodes, sorted by time; with ties, the events of a batch are simultaneous."""
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(0, N_NODES, (N_EVENTS,), generator=generator)
    dst = (src + torch.randint(1, N_NODES, (N_EVENTS,), generator=generator)) % N_NODES
    t = LATEST * torch.rand(N_EVENTS, generator=generator, dtype=torch.float64).sort().values
    t = t[::BATCH_SIZE].repeat_interleave(BATCH_SIZE) if has_ties else t
    return EventBatch(src, dst, t, torch.randn(N_EVENTS, F, generator=generator))


def make_graph(name: str, **parts: object) -> TemporalGraph:
    """A small network of the preset in evaluation mode; ``parts`` replace its parts."""
    torch.manual_seed(0)
    return CompiledTemporalGraph(preset(name, neighbours=4, **parts), SIZES).eval()


def repeat_time(count: int, t: float) -> Tensor:
    """The time ``t``, ``count`` times: (count,) float64."""
    return torch.full((count,), t, dtype=torch.float64)


def insert_all(graph: TemporalGraph, events: EventBatch, state: State | None = None, in_place: bool = False) -> State:
    """The state after the events, inserted in batches."""
    state = graph.initial_state(N_NODES) if state is None else state
    with torch.no_grad():
        for start in range(0, len(events.src), BATCH_SIZE):
            state = graph.insert(state, events.part(start, start + BATCH_SIZE), in_place)
    return state


def embed_all(graph: TemporalGraph, state: State, t: float = LATEST + 1) -> Tensor:
    """The embeddings of all nodes at time ``t``."""
    with torch.no_grad():
        return graph.embed(state, torch.arange(N_NODES), repeat_time(N_NODES, t))


def embed_at_batches(graph: TemporalGraph, events: EventBatch, size: int, insert_first: bool = False) -> list[Tensor]:
    """For every batch of ``size`` events, the embeddings of all nodes at the batch's first time.

    They are computed before the batch is inserted, or after it with ``insert_first``.
    """
    state = graph.initial_state(N_NODES)
    embeddings = []
    with torch.no_grad():
        for start in range(0, N_EVENTS, size):
            batch = events.part(start, start + size)
            if insert_first:
                state = graph.insert(state, batch, in_place=True)
            embeddings.append(embed_all(graph, state, float(batch.t[0])))
            if not insert_first:
                state = graph.insert(state, batch, in_place=True)
    return embeddings


def assert_equal_states(state: State, expected: State | tuple[tuple[Tensor, ...], ...]) -> None:
    """Memories and neighbours are bit-identical."""
    for part, expected_part in zip(state, expected, strict=True):
        for tensor, expected_tensor in zip(part, expected_part, strict=True):
            assert torch.equal(tensor, expected_tensor)


@every_preset
@pytest.mark.parametrize("size", [1, 10])
def test_later_events_change_no_earlier_embedding(name: str, size: int) -> None:
    """With other events from position 30 on, the first batch whose embeddings differ is the batch after that event's.

    If a batch is inserted before its own embeddings are computed, the event's own batch differs: the test can fail.
    """
    graph = make_graph(name)
    events = make_events()
    other = make_events(seed=5)
    first_changed = 30
    src, dst, _, features = (
        torch.cat([column[:first_changed], other_column[first_changed:]])
        for column, other_column in zip(events, other, strict=True)
    )
    changed = EventBatch(src, dst, events.t, features)

    def first_differing_batch(insert_first: bool) -> int:
        before = embed_at_batches(graph, events, size, insert_first)
        after = embed_at_batches(graph, changed, size, insert_first)
        return [torch.equal(a, b) for a, b in zip(before, after, strict=True)].index(False)

    changed_batch = first_changed // size
    assert first_differing_batch(insert_first=False) == changed_batch + 1
    assert first_differing_batch(insert_first=True) == changed_batch


@every_preset
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_the_order_of_simultaneous_events_changes_no_embedding(name: str, aggregator: str) -> None:
    graph = make_graph(name, aggregator=aggregator)
    events = make_events(has_ties=True)
    generator = torch.Generator().manual_seed(3)
    batch_starts = range(0, N_EVENTS, BATCH_SIZE)
    order = torch.cat([torch.randperm(BATCH_SIZE, generator=generator) + start for start in batch_starts])
    shuffled = EventBatch(*(column[order] for column in events))
    assert not torch.equal(shuffled.src, events.src)
    expected = embed_all(graph, insert_all(graph, events))
    torch.testing.assert_close(embed_all(graph, insert_all(graph, shuffled)), expected, rtol=1e-5, atol=1e-6)


@every_preset
def test_events_with_swapped_source_and_destination_give_other_embeddings(name: str) -> None:
    graph = make_graph(name)
    events = make_events()
    swapped = events._replace(src=events.dst, dst=events.src)
    embeddings = embed_all(graph, insert_all(graph, events))
    swapped_embeddings = embed_all(graph, insert_all(graph, swapped))
    assert float((embeddings - swapped_embeddings).abs().max()) > 1e-4


@every_preset
def test_the_numbering_of_the_nodes_changes_no_embedding(name: str) -> None:
    graph = make_graph(name, aggregator="mean")
    events = make_events(has_ties=True)
    new_number = torch.randperm(N_NODES, generator=torch.Generator().manual_seed(1))
    renumbered = events._replace(src=new_number[events.src], dst=new_number[events.dst])
    expected = embed_all(graph, insert_all(graph, events))
    embeddings = embed_all(graph, insert_all(graph, renumbered))[new_number]
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-5)


@every_preset
def test_a_run_resumed_from_a_state_equals_one_run(name: str) -> None:
    graph = make_graph(name)
    events = make_events()
    half_way = insert_all(graph, events.part(0, 30))
    resumed = insert_all(graph, events.part(30, N_EVENTS), half_way)
    assert_equal_states(resumed, insert_all(graph, events))


@every_preset
def test_inserting_leaves_the_given_state_unchanged(name: str) -> None:
    graph = make_graph(name)
    events = make_events()
    state = insert_all(graph, events.part(0, 30))
    before = copy_state(state)
    insert_all(graph, events.part(30, N_EVENTS), state)
    assert_equal_states(state, before)


@every_preset
def test_inserting_in_place_into_a_copy_leaves_the_original_state_unchanged(name: str) -> None:
    graph = make_graph(name)
    events = make_events()
    state = insert_all(graph, events.part(0, 30))
    before = tuple(tuple(tensor.clone() for tensor in part) for part in state)
    insert_all(graph, events.part(30, N_EVENTS), copy_state(state), in_place=True)
    assert_equal_states(state, before)


@every_preset
def test_inserting_in_place_gives_the_same_state(name: str) -> None:
    graph = make_graph(name)
    events = make_events()
    assert_equal_states(insert_all(graph, events, in_place=True), insert_all(graph, events))


@every_preset
def test_every_weight_has_a_gradient_through_the_batch_before(name: str) -> None:
    """TRAP-06: the state does not contain the batch to predict, and every part still has a gradient (TGN-03)."""
    graph = make_graph(name)
    events = make_events()
    state = detach_state(insert_all(graph, events.part(0, 20)))
    state = graph.insert(state, events.part(20, 40))
    node_features = torch.randn(N_NODES, D, requires_grad=True)
    z = graph.embed(state, torch.arange(N_NODES), repeat_time(N_NODES, LATEST + 1), node_features)
    z.square().sum().backward()
    without_gradient = [k for k, p in graph.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without_gradient == []


def test_a_detached_state_has_no_gradient() -> None:
    graph = make_graph("tgn")
    state = graph.insert(graph.initial_state(N_NODES), make_events())
    memory, _ = state
    detached_memory, _ = detach_state(state)
    assert memory.vector.requires_grad
    assert not detached_memory.vector.requires_grad


@every_preset
def test_double_precision_gives_the_same_embeddings_before_and_after_events(name: str) -> None:
    """Double precision runs the torch operations, as a GPU does: no compiled pass supports it."""
    graph = make_graph(name)
    events = make_events()
    double_graph = make_graph(name).double()
    double_events = events._replace(features=events.features.double())
    before = embed_all(graph, graph.initial_state(N_NODES))
    double_before = embed_all(double_graph, double_graph.initial_state(N_NODES))
    torch.testing.assert_close(before, double_before.float(), rtol=1e-4, atol=1e-5)
    after = embed_all(graph, insert_all(graph, events))
    double_after = embed_all(double_graph, insert_all(double_graph, double_events))
    torch.testing.assert_close(after, double_after.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (Parts(neighbours=4), SIZES),
        (Parts(neighbours=4, fades=False), SIZES),
        (Parts(neighbours=1, heads=3), Sizes(d=15, n_features=F, d_time=6, longest=LATEST)),
        (Parts(neighbours=7, heads=1, aggregator="mean"), Sizes(d=17, n_features=F, d_time=2, longest=LATEST)),
    ],
)
def test_compiled_passes_give_the_results_of_the_torch_operations(size: int, parts: Parts, sizes: Sizes) -> None:
    events = make_events()

    def run(graph_class: type[TemporalGraph]) -> tuple[Tensor, Tensor]:
        """The embeddings of every batch's first source, computed twice in one call, and the last memory vectors."""
        torch.manual_seed(0)
        graph = graph_class(parts, sizes).eval()
        state = graph.initial_state(N_NODES)
        embeddings = []
        with torch.no_grad():
            for start in range(0, N_EVENTS, size):
                batch = events.part(start, start + size)
                embeddings.append(graph.embed(state, batch.src[:1].repeat(2), batch.t[:1].repeat(2)))
                state = graph.insert(state, batch)
        memory, _ = state
        return torch.stack(embeddings), memory.vector

    compiled_embeddings, compiled_vector = run(CompiledTemporalGraph)
    embeddings, vector = run(TemporalGraph)
    torch.testing.assert_close(compiled_embeddings, embeddings, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(compiled_vector, vector, rtol=1e-4, atol=1e-6)
    # the passes add in another order: bit-identical results would mean that they did not run
    assert not torch.equal(compiled_embeddings, embeddings)


def test_the_order_of_events_in_a_batch_changes_no_neighbour() -> None:
    """Node 0 is the destination of the later event and the source of the earlier one."""
    graph = make_graph("tgn")
    t = torch.tensor([2.0, 1.0]).double()
    events = EventBatch(src=torch.tensor([1, 0]), dst=torch.tensor([0, 2]), t=t, features=torch.zeros(2, F))
    flipped = EventBatch(*(column.flip(0) for column in events))
    _, buffer = insert_all(graph, events)
    _, flipped_buffer = insert_all(graph, flipped)
    for tensor, flipped_tensor in zip(buffer, flipped_buffer, strict=True):
        assert torch.equal(tensor, flipped_tensor)


@pytest.mark.parametrize("nodes", [[N_NODES], [1, -1], [0, 1, 2, 3, N_NODES], [0, 1, 2, 3, -2]])
def test_an_embedding_of_an_unknown_node_is_refused_by_name(nodes: list[int]) -> None:
    """The last node is unknown. Up to 4 nodes are embedded in a compiled pass, more by torch."""
    graph = make_graph("tgn")
    state = insert_all(graph, make_events())
    with (
        torch.no_grad(),
        pytest.raises(ShapeError, match=f"node {nodes[-1]} cannot be embedded; .* has the nodes 0 … 7"),
    ):
        graph.embed(state, torch.tensor(nodes), repeat_time(len(nodes), LATEST + 1))


def test_an_empty_batch_of_events_returns_the_same_state() -> None:
    graph = make_graph("tgn")
    state = insert_all(graph, make_events())
    assert graph.insert(state, make_events().part(0, 0)) is state


@pytest.mark.parametrize("name", ["tgn", "jodie"])
def test_an_embedding_depends_on_its_time(name: str) -> None:
    graph = make_graph(name)
    state = insert_all(graph, make_events())
    assert not torch.allclose(embed_all(graph, state, LATEST + 1), embed_all(graph, state, LATEST + 50))


def test_events_between_more_nodes_than_the_state_has_are_refused() -> None:
    graph = make_graph("tgn")
    with pytest.raises(ShapeError, match="this state has 3 nodes"):
        graph.insert(graph.initial_state(3), make_events())


def test_event_tensors_of_different_lengths_or_with_other_features_are_refused() -> None:
    graph = make_graph("tgn")
    events = make_events()
    for column, values in (("features", events.features[:, :2]), ("dst", events.dst[1:]), ("t", events.t[:-1])):
        with torch.no_grad(), pytest.raises(ShapeError, match="give as many of each, and 3 features"):
            graph.insert(graph.initial_state(N_NODES), events._replace(**{column: values}))


def test_nodes_and_times_of_different_lengths_are_refused() -> None:
    graph = make_graph("tgn")
    with torch.no_grad(), pytest.raises(ShapeError, match=r"nodes are \(2,\) and times \(1,\)"):
        graph.embed(graph.initial_state(N_NODES), torch.arange(2), repeat_time(1, LATEST))


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize(
    ("column", "value", "error", "message"),
    [
        ("src", -1, ShapeError, "names the node -1"),
        ("dst", -3, ShapeError, "names the node -3"),
        ("src", "dst", ShapeError, "runs from a node to itself"),
        ("t", -0.5, NotFiniteError, "time is -0.5"),
        ("t", float("nan"), NotFiniteError, "time is nan"),
    ],
)
def test_an_invalid_event_is_refused_by_name_and_does_not_change_the_state(
    size: int, column: str, value: object, error: type[Exception], message: str
) -> None:
    """The last event of the batch is invalid; the value "dst" stands for the event's own destination."""
    graph = make_graph("tgn")
    events = make_events().part(0, size)
    invalid = events._replace(**{column: getattr(events, column).clone()})
    getattr(invalid, column)[-1] = events.dst[-1] if value == "dst" else value
    state = graph.initial_state(N_NODES)
    before = copy_state(state)
    with torch.no_grad(), pytest.raises(error, match=message):
        graph.insert(state, invalid, in_place=True)
    assert_equal_states(state, before)


def test_parts_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SizeError, match="its memories are what fades"):
        make_graph("tgn", updater="decay", fades=False)
    with pytest.raises(SizeError, match="there is no memory to embed"):
        make_graph("tgat", embedding="identity")


@pytest.mark.parametrize("parts", [{"embedding": "sum"}, {"message": "cnn"}, {"encoding": "clock"}, {"layers": 0}])
def test_unknown_parts_are_refused(parts: dict[str, object]) -> None:
    with pytest.raises(SizeError):
        make_graph("tgn", **parts)


def test_an_unknown_preset_or_name_of_a_part_is_refused() -> None:
    with pytest.raises(SizeError, match="preset is 'gcn'"):
        preset("gcn")
    with pytest.raises(TypeError):
        preset("tgn", depth=3)


def test_events_become_tensors_with_times_in_the_given_unit() -> None:
    """Times in units of two seconds since the first second."""
    kinds = np.array([EVENT_KINDS.index("trade"), EVENT_KINDS.index("bar")], dtype=np.int8)
    events = Events(
        src=np.array([0, 1]),
        dst=np.array([1, 0]),
        t=np.array([5_000_000, 8_000_000]),
        kind=kinds,
        features=np.ones((2, 1), dtype=np.float32),
        nodes=("a", "b"),
    )
    batch = EventBatch.from_events(events, unit_us=2e6, since_us=1_000_000)
    assert batch.t.tolist() == [2.0, 3.5]
    assert batch.features.shape == (2, 1 + len(EVENT_KINDS))
    assert batch.features[1].tolist() == [1.0, *(float(kind == "bar") for kind in EVENT_KINDS)]


def test_pair_history_features_count_the_events_in_the_neighbour_buffers() -> None:
    """Nodes 0 and 1 share one event, 9 units of time ago, and the neighbour 2. Node 0 has three events, the last 6 ago;
    node 1 has two, the last 7 ago. Nodes 0 and 7 share nothing."""
    graph = make_graph("tgn")
    events = EventBatch(
        src=torch.tensor([0, 0, 1, 3]),
        dst=torch.tensor([1, 2, 2, 0]),
        t=torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64),
        features=torch.zeros(4, F),
    )
    state = graph.insert(graph.initial_state(N_NODES), events)
    with_history, without_history = pair_history_features(
        state, u=torch.tensor([0, 0]), v=torch.tensor([1, 7]), t=repeat_time(2, 10.0), longest=LATEST
    )
    # events with each other, common neighbours, own events: each in the buffer of u, then of v
    counts = np.log1p([1, 1, 1, 1, 3, 2])
    elapsed = np.log1p([9, 6, 7]) / np.log1p(LATEST)
    assert with_history.tolist() == pytest.approx([*counts, *elapsed], rel=1e-5)
    assert without_history[:4].tolist() == [0.0] * 4  # no common events, no common neighbours
    assert float(without_history[6]) == 2.0  # the buffer has no event of the pair


def test_one_source_for_all_candidates_gives_the_logits_of_the_source_repeated() -> None:
    torch.manual_seed(0)
    predictor = LinkPredictor(preset("tgn"), SIZES).eval()
    events = make_events()
    state = insert_all(predictor.graph, events.part(0, 50))
    batch = events.part(50, N_EVENTS)
    candidates = torch.stack([batch.dst, (batch.dst + 1) % N_NODES])
    with torch.no_grad():
        shared = predictor(state, batch.src[None], candidates, batch.t)
        repeated = predictor(state, batch.src.expand_as(candidates), candidates, batch.t)
    assert shared.shape == candidates.shape
    torch.testing.assert_close(shared, repeated)


def test_memories_with_a_longer_half_life_decay_less_in_a_pause() -> None:
    """The two networks differ only in their half-lives."""

    def remaining_share_after_pause(half_life: float) -> float:
        torch.manual_seed(0)
        sizes = Sizes(d=D, n_features=F, d_time=8, longest=half_life)
        graph = TemporalGraph(preset("jodie", embedding="identity"), sizes)
        state = graph.insert(graph.initial_state(N_NODES), make_events())
        before, after = (embed_all(graph, state, t).abs().mean() for t in (LATEST + 1, LATEST + 60))
        return float(after / before)

    assert remaining_share_after_pause(half_life=10.0) < remaining_share_after_pause(half_life=1000.0)
