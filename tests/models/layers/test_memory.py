"""Ten events written down by hand, and what every aggregator and updater must make of them.

The network is set so that everything can be worked out on paper: nothing fades, the message is what there is to say,
and an updater's weights are zeros and ones.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.layers import memory as mem
from models.layers.errors import SizeError
from models.layers.neighbours import NO_NEIGHBOUR, Ends, grouped
from models.nets.event_batch import EventBatch
from models.nets.temporal_graph import Parts, Sizes, State, TemporalGraph, preset

# src, dst, time, feature; nodes 0 and 1 speak to 2, 3 and 4. Batches: [0, 4), [4, 8), [8, 10)
EVENTS = (
    *((0, 2, 1.0, 1.0), (1, 2, 2.0, 2.0), (0, 3, 3.0, 3.0), (0, 2, 4.0, 5.0)),
    *((1, 3, 5.0, 7.0), (0, 4, 6.0, 11.0), (1, 4, 7.0, 13.0), (1, 2, 7.0, 17.0)),
    *((0, 1, 8.0, 19.0), (0, 3, 9.0, 23.0)),
)
BATCHES = ((0, 4), (4, 8), (8, 10))
N, SLOTS = 6, 3  # node 5 never takes part
SAID = {0: [1, 3, 5], 1: [2], 2: [1, 2, 5], 3: [3]}  # what each node hears in the first batch, in order


def contacts(first: int = 0, stop: int = 10) -> EventBatch:
    src, dst, t, said = zip(*EVENTS[first:stop], strict=True)
    times, features = torch.tensor(t, dtype=torch.float64), torch.tensor(said)[:, None]
    return EventBatch(torch.tensor(src), torch.tensor(dst), times, features)


def listening(aggregator: str, updater: str = "rnn", **parts: object) -> TemporalGraph:
    """A memory of one number, which becomes the aggregated message's feature: tanh(x / 100) for "rnn"."""
    chosen = Parts(updater=updater, aggregator=aggregator, fades=False, neighbours=SLOTS, embedding="identity", **parts)
    graph = TemporalGraph(chosen, Sizes(1, 1, 2))
    with torch.no_grad():
        for p in graph.parameters():
            p.zero_()
        lift = {"rnn": "cell.weight_ih", "decay": "lift.weight"}
        if updater in lift:
            graph.updater.get_parameter(lift[updater])[0, FEATURE] = 0.01
    return graph


FEATURE = -2  # a message ends with the event's feature and ±1 for the end of it that the node is


def run(graph: TemporalGraph) -> State:
    state = graph.initial_state(N)
    with torch.no_grad():
        for batch in BATCHES:
            state = graph.insert(state, contacts(*batch))
    return state


def heard(state: State) -> list[float]:
    """The features behind the memories of tanh(x / 100)."""
    return (100 * torch.atanh(state[0].vector[:, 0])).tolist()


def test_counts_and_last_updates_are_those_of_the_ten_events() -> None:
    memory, _ = run(listening("last"))
    assert memory.event_count.tolist() == [6, 5, 4, 3, 2, 0]
    assert memory.updated.tolist() == [9.0, 8.0, 7.0, 9.0, 7.0, 0.0]


def test_the_ring_holds_the_three_newest_neighbours_of_every_node() -> None:
    _, ring = run(listening("last"))
    found = [
        sorted((t, other, x[0]) for t, other, x in zip(*row, strict=True) if other != NO_NEIGHBOUR)
        for row in zip(ring.t.tolist(), ring.other.tolist(), ring.features.tolist(), strict=True)
    ]
    assert found == [
        [(6.0, 4, 11.0), (8.0, 1, 19.0), (9.0, 3, 23.0)],
        [(7.0, 2, 17.0), (7.0, 4, 13.0), (8.0, 0, 19.0)],
        [(2.0, 1, 2.0), (4.0, 0, 5.0), (7.0, 1, 17.0)],
        [(3.0, 0, 3.0), (5.0, 1, 7.0), (9.0, 0, 23.0)],
        [(6.0, 0, 11.0), (7.0, 1, 13.0)],
        [],
    ]
    sides = {1.0: 0, -1.0: 0}
    for side in ring.features[ring.other != NO_NEIGHBOUR][:, 1].tolist():
        sides[side] += 1
    assert sides == {1.0: 5, -1.0: 9}


def test_many_events_of_one_node_in_one_batch_leave_the_same_ring_as_one_by_one() -> None:
    graph = listening("last")
    at_once, one_by_one = graph.insert(graph.initial_state(N), contacts()), graph.initial_state(N)
    for i in range(10):
        one_by_one = graph.insert(one_by_one, contacts(i, i + 1))
    for a, b in zip(at_once[1], one_by_one[1], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(at_once[0].event_count, one_by_one[0].event_count)


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [
        ("last", [23, 19, 17, 23, 13, 0]),  # at 7.0 node 1 has two newest messages, 13 and 17; a later batch follows
        ("mean", [21, 19, 17, 23, 12, 0]),
        ("sum", [42, 19, 17, 23, 24, 0]),
    ],
)
def test_each_aggregator_hands_the_memory_its_own_message(aggregator: str, expected: list[float]) -> None:
    assert heard(run(listening(aggregator))) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("aggregator", "of_node_1"), [("last", 15.0), ("mean", 37 / 3), ("sum", 37.0)])
def test_simultaneous_newest_messages_are_averaged_by_last(aggregator: str, of_node_1: float) -> None:
    """In the second batch node 1 says 7 at 5.0, then 13 and 17 at once."""
    graph = listening(aggregator)
    state = graph.insert(graph.insert(graph.initial_state(N), contacts(0, 4)), contacts(4, 8))
    assert heard((state[0], state[1]))[1] == pytest.approx(of_node_1, abs=1e-3)


def first_batch() -> tuple[Tensor, mem.Groups]:
    """The features of the first batch's messages, and their groups."""
    src, dst, t, said = contacts(0, 4)
    both = Ends(torch.cat([src, dst]), torch.cat([dst, src]), torch.cat([t, t]), torch.cat([said, said]))
    ends, groups = grouped(both)
    assert groups.node.tolist() == [0, 1, 2, 3]
    return ends.features, groups


def test_attention_over_messages_weighs_by_score() -> None:
    messages, groups = first_batch()
    attention = mem.AttentionOverMessages(1)
    with torch.no_grad():
        attention.score.fill_(0.5)
    for row, said in zip(attention(messages, groups).tolist(), SAID.values(), strict=True):
        weights = [math.exp(0.5 * x) for x in said]
        assert row[0] == pytest.approx(sum(w * x for w, x in zip(weights, said, strict=True)) / sum(weights), rel=1e-5)


def test_the_lstm_over_messages_reads_them_in_the_order_of_time() -> None:
    messages, groups = first_batch()
    torch.manual_seed(0)
    over = mem.LstmOverMessages(1)
    for row, said in zip(over(messages, groups), SAID.values(), strict=True):
        every, _ = over.lstm(torch.tensor(said, dtype=torch.float32)[None, :, None])
        torch.testing.assert_close(row, every[0, -1])
    backwards, _ = over.lstm(torch.tensor([5.0, 3.0, 1.0])[None, :, None])
    assert not torch.allclose(over(messages, groups)[0], backwards[0, -1])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_gru_updater_is_the_papers_equation() -> None:
    """Weights 1 from the message, 0.5 from the memory, all biases 0."""
    cell = mem.Gru(1, 1)
    fill(cell, weight_ih=1.0, weight_hh=0.5)
    x, s = 0.3, 0.8
    r, z = sigmoid(x + 0.5 * s), sigmoid(x + 0.5 * s)
    n = math.tanh(x + r * 0.5 * s)
    assert float(updated(cell, x, s)) == pytest.approx((1 - z) * n + z * s, rel=1e-6)


def test_the_gru_updater_and_its_gradients_are_those_of_torchs_cell() -> None:
    torch.manual_seed(0)
    updater, message, s = mem.Gru(7, 5), torch.randn(6, 7), torch.randn(6, 5)
    found = []
    for form in (lambda x, y: updater(x, y, y), updater.cell):
        leaves = message.clone().requires_grad_(), s.clone().requires_grad_()
        updater.zero_grad()
        out = form(*leaves)
        out.sin().sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in (*leaves, *updater.parameters()))])
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    unknown = message.index_fill(0, torch.tensor([2]), torch.nan)
    assert torch.equal(updater(unknown, s, s).isnan(), updater.cell(unknown, s).isnan())


def test_the_rnn_updater_is_one_tanh() -> None:
    cell = mem.Rnn(1, 1)
    fill(cell, weight_ih=1.0, weight_hh=0.5)
    assert float(updated(cell, 0.3, 0.8)) == pytest.approx(math.tanh(0.3 + 0.4), rel=1e-6)


def test_the_lstm_updater_keeps_its_cell_beside_what_others_read() -> None:
    cell = mem.Lstm(1, 1)
    fill(cell, weight_ih=1.0, weight_hh=0.5)
    h, c = 0.8, -0.2
    gate = sigmoid(0.3 + 0.5 * h)
    c_new = gate * c + gate * math.tanh(0.3 + 0.5 * h)
    new = cell(torch.tensor([[0.3]]), torch.tensor([[h, c]]), torch.ones(1))
    assert new[0].tolist() == pytest.approx([gate * math.tanh(c_new), c_new], rel=1e-6)


def test_the_attention_updater_weighs_itself_against_the_message() -> None:
    update = mem.AttentionUpdate(2, 2)
    eye, zero = torch.eye(2), torch.zeros(2)
    with torch.no_grad():
        for layer in (update.lift, update.query, update.key, update.value):
            layer.weight.copy_(eye)
            if layer.bias is not None:
                layer.bias.copy_(zero)
    s, m = torch.tensor([1.0, 3.0]), torch.tensor([2.0, -1.0])
    weights = torch.softmax(torch.stack([s @ s, s @ m]) / math.sqrt(2), 0)
    expected = nn.functional.layer_norm(s + weights[0] * s + weights[1] * m, (2,))
    torch.testing.assert_close(update(m[None], s[None], torch.ones(1))[0], expected)


def test_the_decay_updater_fills_what_has_faded() -> None:
    update = mem.DecayUpdate(1, 1)
    with torch.no_grad():
        update.lift.weight.fill_(1.0)
        update.lift.bias.zero_()
    new = update(torch.tensor([[0.3]]), torch.tensor([[0.2]]), torch.tensor([0.25])).detach()
    assert float(new) == pytest.approx(0.2 + 0.75 * math.tanh(0.3), rel=1e-6)


def fill(module: nn.Module, **values: float) -> None:
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.fill_(next((v for k, v in values.items() if k in name), 0.0))


def updated(cell: nn.Module, x: float, s: float) -> Tensor:
    return cell(torch.tensor([[x]]), torch.tensor([[s]]), torch.ones(1)).detach()


def test_a_memory_has_halved_after_its_half_life() -> None:
    fading = mem.Fading(half_life=10.0)
    state = mem.empty_memory(3, 1, torch.zeros(1))
    state = state._replace(vector=torch.ones(3, 1), updated=torch.tensor([0.0, 10.0, 0.0], dtype=torch.float64))
    state = state._replace(decay=torch.tensor([1.0, 1.0, 2.0]))
    left, elapsed = fading(state, torch.arange(3), torch.full((3,), 10.0, dtype=torch.float64))
    assert left[:, 0].tolist() == pytest.approx([0.5, 1.0, 0.25], rel=1e-3)
    assert elapsed.tolist() == [10.0, 0.0, 10.0]


@pytest.mark.parametrize("aggregator", mem.AGGREGATORS)
@pytest.mark.parametrize("updater", mem.UPDATERS)
def test_every_updater_takes_every_aggregators_message(aggregator: str, updater: str) -> None:
    torch.manual_seed(0)
    graph = TemporalGraph(preset("tgn", updater=updater, aggregator=aggregator), Sizes(4, 1, 4))
    memory, _ = run(graph)
    assert memory.vector.shape == (N, 8 if updater == "lstm" else 4)
    assert not memory.vector[5].any()
    assert (memory.vector[:5].abs().sum(1) > 0).all()
    assert torch.isfinite(memory.vector).all()


def test_names_that_there_are_not_are_refused() -> None:
    with pytest.raises(SizeError, match="aggregator is 'median'"):
        listening("median")
    with pytest.raises(SizeError, match="updater is 'cnn'"):
        mem.updater("cnn", 1, 1)
