"""Messages, aggregators and updaters of node memories equal hand-computed numbers, most of them for ten events.

The network allows computation by hand: memories do not decay, the message is its raw content, and an updater's weights
are zeros and ones.

Ids such as TGN-08: .github/sources.md.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.layers import memory as mem
from models.layers.errors import SizeError
from models.layers.neighbours import NO_NEIGHBOUR, Ends, group_by_node
from models.nets.event_batch import EventBatch
from models.nets.temporal_graph import Parts, Sizes, State, TemporalGraph, preset

# source, destination, time, feature; the sources are the nodes 0 and 1
EVENTS = (
    *((0, 2, 1.0, 1.0), (1, 2, 2.0, 2.0), (0, 3, 3.0, 3.0), (0, 2, 4.0, 5.0)),
    *((1, 3, 5.0, 7.0), (0, 4, 6.0, 11.0), (1, 4, 7.0, 13.0), (1, 2, 7.0, 17.0)),
    *((0, 1, 8.0, 19.0), (0, 3, 9.0, 23.0)),
)
BATCHES = ((0, 4), (4, 8), (8, 10))  # positions of the first event and of the event after the last
N = 6  # nodes; node 5 has no event
N_SLOTS = 3
FEATURES_OF_NODE = {0: [1, 3, 5], 1: [2], 2: [1, 2, 5], 3: [3]}  # of the first batch, oldest first
FEATURE = -2  # position in a message, which ends with the event's feature and 1 for its source, −1 for its destination


def make_events(first: int = 0, stop: int = 10) -> EventBatch:
    """The events at the positions [first, stop)."""
    src, dst, t, feature = zip(*EVENTS[first:stop], strict=True)
    times = torch.tensor(t, dtype=torch.float64)
    features = torch.tensor(feature)[:, None]
    return EventBatch(torch.tensor(src), torch.tensor(dst), times, features)


def make_graph(aggregator: str, updater: str = "rnn", **options: object) -> TemporalGraph:
    """A network with memories of one number; ``options``: further options of Parts.

    With the updater "rnn" a memory is tanh(x / 100), where x is the feature in the aggregated message.
    """
    all_parts = Parts(
        updater=updater, aggregator=aggregator, fades=False, neighbours=N_SLOTS, embedding="identity", **options
    )
    graph = TemporalGraph(all_parts, Sizes(1, 1, 2))
    with torch.no_grad():
        for p in graph.parameters():
            p.zero_()
        input_weight = {"rnn": "cell.weight_ih", "decay": "lift.weight"}
        if updater in input_weight:
            graph.updater.get_parameter(input_weight[updater])[0, FEATURE] = 0.01
    return graph


def insert_all_batches(graph: TemporalGraph) -> State:
    """The memory and the neighbour buffer after all ten events."""
    state = graph.initial_state(N)
    with torch.no_grad():
        for batch in BATCHES:
            state = graph.insert(state, make_events(*batch))
    return state


def stored_features(state: State) -> list[float]:
    """The features x of memories tanh(x / 100)."""
    memory, _ = state
    return (100 * torch.atanh(memory.vector[:, 0])).tolist()


def test_event_counts_and_last_times_match_the_ten_events() -> None:
    """TGN-08: a memory has the time of its last event and the number of its events."""
    memory, _ = insert_all_batches(make_graph("last"))
    assert memory.event_count.tolist() == [6, 5, 4, 3, 2, 0]
    assert memory.updated.tolist() == [9.0, 8.0, 7.0, 9.0, 7.0, 0.0]


def test_the_buffer_holds_the_three_newest_neighbours_of_every_node() -> None:
    """TGN-04: an embedding reads the buffer besides the memory."""
    _, buffer = insert_all_batches(make_graph("last"))
    neighbours = [
        sorted((t, other, features[0]) for t, other, features in zip(*slots, strict=True) if other != NO_NEIGHBOUR)
        for slots in zip(buffer.t.tolist(), buffer.other.tolist(), buffer.features.tolist(), strict=True)
    ]
    assert neighbours == [  # time, neighbour and feature of each slot
        [(6.0, 4, 11.0), (8.0, 1, 19.0), (9.0, 3, 23.0)],
        [(7.0, 2, 17.0), (7.0, 4, 13.0), (8.0, 0, 19.0)],
        [(2.0, 1, 2.0), (4.0, 0, 5.0), (7.0, 1, 17.0)],
        [(3.0, 0, 3.0), (5.0, 1, 7.0), (9.0, 0, 23.0)],
        [(6.0, 0, 11.0), (7.0, 1, 13.0)],
        [],
    ]
    roles = buffer.features[buffer.other != NO_NEIGHBOUR][:, 1].tolist()  # 1 in a source's slots, −1 in a destination's
    assert (roles.count(1.0), roles.count(-1.0)) == (5, 9)


def test_one_batch_of_many_events_gives_the_same_buffer_as_single_events() -> None:
    graph = make_graph("last")
    memory, buffer = graph.insert(graph.initial_state(N), make_events())
    state = graph.initial_state(N)
    for i in range(len(EVENTS)):
        state = graph.insert(state, make_events(i, i + 1))
    memory_of_singles, buffer_of_singles = state
    for tensor, expected in zip(buffer, buffer_of_singles, strict=True):
        assert torch.equal(tensor, expected)
    assert torch.equal(memory.event_count, memory_of_singles.event_count)


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [
        ("last", [23, 19, 17, 23, 13, 0]),  # by node, after the last batch
        ("mean", [21, 19, 17, 23, 12, 0]),
        ("sum", [42, 19, 17, 23, 24, 0]),
    ],
)
def test_each_aggregator_stores_the_hand_computed_feature(aggregator: str, expected: list[float]) -> None:
    """TGN-15: last, mean and sum."""
    assert stored_features(insert_all_batches(make_graph(aggregator))) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("aggregator", "expected"), [("last", 15.0), ("mean", 37 / 3), ("sum", 37.0)])
def test_the_last_aggregator_averages_simultaneous_newest_messages(aggregator: str, expected: float) -> None:
    """In the second batch node 1 has the messages 7 at 5.0, then 13 and 17 at the same time."""
    graph = make_graph(aggregator)
    state = graph.initial_state(N)
    for batch in BATCHES[:2]:
        state = graph.insert(state, make_events(*batch))
    assert stored_features(state)[1] == pytest.approx(expected, abs=1e-3)


def first_batch_messages() -> tuple[Tensor, mem.Groups]:
    """The features of the first batch's messages, sorted by node and time, and their groups."""
    src, dst, t, features = make_events(*BATCHES[0])
    nodes = torch.cat([src, dst])
    others = torch.cat([dst, src])
    ends, groups = group_by_node(Ends(nodes, others, torch.cat([t, t]), torch.cat([features, features])))
    assert groups.node.tolist() == [0, 1, 2, 3]
    return ends.features, groups


def test_messages_of_source_and_destination_pass_through_an_mlp_each() -> None:
    """TGN-14: out = W₂ ReLU(W₁ content + b₁) + b₂, with separate weights for the source and the destination."""
    torch.manual_seed(0)
    message = mem.Mlp(5, 3)
    content = torch.randn(4, 5)
    is_source = torch.tensor([True, False, False, True])
    weights = dict(message.named_parameters())
    expected = []
    for row, row_is_source in zip(content, is_source.tolist(), strict=True):
        mlp = "ends.0" if row_is_source else "ends.1"
        hidden = (weights[f"{mlp}.0.weight"] @ row + weights[f"{mlp}.0.bias"]).clamp(min=0)
        expected.append(weights[f"{mlp}.2.weight"] @ hidden + weights[f"{mlp}.2.bias"])
    torch.testing.assert_close(message(content, is_source), torch.stack(expected))
    assert message.out_features == 3
    assert not torch.allclose(message(content, is_source), message(content, ~is_source))


def test_attention_over_messages_weighs_by_score() -> None:
    """TGN-15: attention."""
    messages, groups = first_batch_messages()
    attention = mem.AttentionOverMessages(1)
    with torch.no_grad():
        attention.score.fill_(0.5)
    for aggregated, features in zip(attention(messages, groups).tolist(), FEATURES_OF_NODE.values(), strict=True):
        weights = [math.exp(0.5 * x) for x in features]
        expected = sum(w * x for w, x in zip(weights, features, strict=True)) / sum(weights)
        assert aggregated == pytest.approx([expected], rel=1e-5)


def test_the_lstm_over_messages_reads_them_oldest_first() -> None:
    """TGN-15: LSTM."""
    messages, groups = first_batch_messages()
    torch.manual_seed(0)
    aggregate = mem.LstmOverMessages(1)
    for aggregated, features in zip(aggregate(messages, groups), FEATURES_OF_NODE.values(), strict=True):
        outputs, _ = aggregate.lstm(torch.tensor(features, dtype=torch.float32)[None, :, None])
        torch.testing.assert_close(aggregated, outputs[0, -1])
    newest_first, _ = aggregate.lstm(torch.tensor([5.0, 3.0, 1.0])[None, :, None])  # of node 0
    assert not torch.allclose(aggregate(messages, groups)[0], newest_first[0, -1])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_gru_updater_equals_the_papers_equation() -> None:
    """TGN-09: weights 1 from the message, 0.5 from the memory, all biases 0."""
    cell = mem.Gru(1, 1)
    fill_parameters(cell, weight_ih=1.0, weight_hh=0.5)
    x = 0.3
    s = 0.8
    r = sigmoid(x + 0.5 * s)
    z = sigmoid(x + 0.5 * s)
    n = math.tanh(x + r * 0.5 * s)
    assert float(updated_memory(cell, x, s)) == pytest.approx((1 - z) * n + z * s, rel=1e-6)


def test_the_gru_updater_and_its_gradients_equal_torchs_cell() -> None:
    torch.manual_seed(0)
    updater = mem.Gru(7, 5)
    message = torch.randn(6, 7)
    s = torch.randn(6, 5)
    results = []
    decay_factor = torch.ones(6)  # the GRU does not read it
    for function in (lambda m, s: updater(m, s, decay_factor), updater.cell):
        leaves = (message.clone().requires_grad_(), s.clone().requires_grad_())
        updater.zero_grad()
        out = function(*leaves)
        out.sin().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in (*leaves, *updater.parameters()))])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    with_nan = message.index_fill(0, torch.tensor([2]), torch.nan)
    assert torch.equal(updater(with_nan, s, decay_factor).isnan(), updater.cell(with_nan, s).isnan())


def test_the_rnn_updater_is_one_tanh() -> None:
    cell = mem.Rnn(1, 1)
    fill_parameters(cell, weight_ih=1.0, weight_hh=0.5)
    assert float(updated_memory(cell, 0.3, 0.8)) == pytest.approx(math.tanh(0.3 + 0.4), rel=1e-6)


def test_the_lstm_updater_stores_its_cell_state_after_its_output() -> None:
    """TGN-10."""
    cell = mem.Lstm(1, 1)
    fill_parameters(cell, weight_ih=1.0, weight_hh=0.5)
    h = 0.8
    c = -0.2
    gate = sigmoid(0.3 + 0.5 * h)
    c_new = gate * c + gate * math.tanh(0.3 + 0.5 * h)
    new = cell(torch.tensor([[0.3]]), torch.tensor([[h, c]]), torch.ones(1))
    assert new[0].tolist() == pytest.approx([gate * math.tanh(c_new), c_new], rel=1e-6)


def test_the_attention_updater_weighs_the_memory_against_the_message() -> None:
    """TGN-11."""
    update = mem.AttentionUpdate(2, 2)
    eye = torch.eye(2)
    zero = torch.zeros(2)
    with torch.no_grad():
        for layer in (update.lift, update.query, update.key, update.value):
            layer.weight.copy_(eye)
            if layer.bias is not None:
                layer.bias.copy_(zero)
    s = torch.tensor([1.0, 3.0])
    m = torch.tensor([2.0, -1.0])
    weights = torch.softmax(torch.stack([s @ s, s @ m]) / math.sqrt(2), 0)
    expected = nn.functional.layer_norm(s + weights[0] * s + weights[1] * m, (2,))
    torch.testing.assert_close(update(m[None], s[None], torch.ones(1))[0], expected)


def test_the_decay_updater_adds_one_minus_the_decay_factor_times_the_message() -> None:
    """TGN-12."""
    update = mem.DecayUpdate(1, 1)
    with torch.no_grad():
        update.lift.weight.fill_(1.0)
        update.lift.bias.zero_()
    new = update(torch.tensor([[0.3]]), torch.tensor([[0.2]]), torch.tensor([0.25])).detach()
    assert float(new) == pytest.approx(0.2 + 0.75 * math.tanh(0.3), rel=1e-6)


def fill_parameters(module: nn.Module, **values: float) -> None:
    """Fills every parameter whose name contains a key of ``values`` with its value, and all others with 0."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.fill_(next((v for k, v in values.items() if k in name), 0.0))


def updated_memory(cell: nn.Module, x: float, s: float) -> Tensor:
    """The new memory (1, 1) after the message ``x``; ``s`` is the old memory, which has not decayed."""
    return cell(torch.tensor([[x]]), torch.tensor([[s]]), torch.ones(1)).detach()


def test_a_memory_is_halved_after_its_half_life() -> None:
    """TGN-08, TGN-13: the third memory decays at twice the rate of the others."""
    fading = mem.Fading(half_life=10.0)
    state = mem.empty_memory(3, 1, torch.zeros(1))
    state = state._replace(vector=torch.ones(3, 1), updated=torch.tensor([0.0, 10.0, 0.0], dtype=torch.float64))
    state = state._replace(decay=torch.tensor([1.0, 1.0, 2.0]))
    decayed, elapsed = fading(state, torch.arange(3), torch.full((3,), 10.0, dtype=torch.float64))
    assert decayed[:, 0].tolist() == pytest.approx([0.5, 1.0, 0.25], rel=1e-3)
    assert elapsed.tolist() == [10.0, 0.0, 10.0]


@pytest.mark.parametrize("aggregator", mem.AGGREGATORS)
@pytest.mark.parametrize("updater", mem.UPDATERS)
def test_every_updater_accepts_messages_of_every_aggregator(aggregator: str, updater: str) -> None:
    torch.manual_seed(0)
    graph = TemporalGraph(preset("tgn", updater=updater, aggregator=aggregator), Sizes(4, 1, 4))
    memory, _ = insert_all_batches(graph)
    assert memory.vector.shape == (N, 8 if updater == "lstm" else 4)  # an LSTM's memory contains its cell state too
    assert not memory.vector[5].any()  # node 5 has no event
    assert (memory.vector[:5].abs().sum(1) > 0).all()
    assert torch.isfinite(memory.vector).all()


def test_unknown_aggregators_and_updaters_are_refused() -> None:
    with pytest.raises(SizeError, match="aggregator is 'median'"):
        make_graph("median")
    with pytest.raises(SizeError, match="updater is 'cnn'"):
        mem.make_updater("cnn", 1, 1)
