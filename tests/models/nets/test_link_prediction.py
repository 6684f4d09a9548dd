"""Link prediction inside a market network: which pairs are scored, which events a score reads, what can be learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.features.scaling import Scaler
from models.graphs.context import BarEvents, SideInputs
from models.graphs.events import Events
from models.graphs.market_events import ASSET, FUNDING, LIQUIDATION, TRADE, market_nodes, trade_events
from models.graphs.negatives import STRATEGIES
from models.layers.dropout import reseed
from models.layers.errors import ShapeError, SizeError, StateError
from models.nets.event_batch import EventBatch
from models.nets.forecast import Batch, GraphSteps
from models.nets.link_prediction import MarketLinks, PairHistory, Pairs, positive_pair_mask
from models.nets.tgn import Tgn
from models.panel import Panel
from models.training.data import Inputs
from models.training.losses import link_loss
from models.zoo import Spec, build

HOUR_US = 3_600_000_000
START = np.datetime64("2024-01-01", "us")
N_BARS = 30
SYMBOLS = ("A", "B", "C", "D", "E")
A, B, C, D, E = range(len(SYMBOLS))
N = len(SYMBOLS)
COLUMNS = ("a", "b")
NODES_PER_CHUNK = len(market_nodes(SYMBOLS))
OPEN_INTEREST = market_nodes(SYMBOLS).index("external:open_interest")
TRAINING_STEPS = 20
N_SAMPLES = 200
NodePair = tuple[int, int]  # the source and the destination of an event


def events_between(pairs: Sequence[NodePair]) -> EventBatch:
    """One event for each pair."""
    src = torch.tensor([source for source, _ in pairs], dtype=torch.int64)
    dst = torch.tensor([destination for _, destination in pairs], dtype=torch.int64)
    return EventBatch(src, dst, t=torch.zeros(len(pairs)), features=torch.zeros(len(pairs), 1))


def own_pair(node_type: int, asset: int, chunk: int = 0) -> NodePair:
    """The pair from the node of this type to its own asset, as numbered in all chunks."""
    first_node = chunk * NODES_PER_CHUNK
    return first_node + node_type * N + asset, first_node + asset


def own_pairs(node_type: int, *assets: int) -> set[NodePair]:
    """The own pairs of these assets in chunk 0."""
    return {own_pair(node_type, asset) for asset in assets}


def make_market_links() -> MarketLinks:
    return MarketLinks(build(Spec("tgn", d_model=4), len(COLUMNS), 1).graph.sizes)


def sample_pairs(
    earlier_pairs: list[list[NodePair]], next_pairs: list[NodePair], has_bar: tuple[bool, ...] = (True,) * N
) -> list[Pairs]:
    """N_SAMPLES samples of the pairs ``next_pairs`` of the next bar and their negatives, in one chunk.

    ``earlier_pairs``: the pairs with events in each bar before.

    ``has_bar``: True for the assets that have the next bar.
    """
    history = PairHistory.empty(1, N, torch.zeros(1))
    for pairs in earlier_pairs:
        history = history.after(positive_pair_mask(events_between(pairs), 1, N))
    has_event = positive_pair_mask(events_between(next_pairs), 1, N)
    links = make_market_links()
    generator = torch.Generator().manual_seed(0)
    return [links.sample_pairs(has_event, history, torch.tensor([has_bar]), generator) for _ in range(N_SAMPLES)]


def candidates(samples: list[Pairs], position: int) -> set[NodePair]:
    """The pairs at this position among the candidates of any sample."""
    return {
        pair
        for sample in samples
        for pair in zip(sample.src[position].tolist(), sample.dst[position].tolist(), strict=True)
    }


def positives(samples: list[Pairs]) -> set[NodePair]:
    """The positive pairs of the samples."""
    return candidates(samples, 0)


def negatives(samples: list[Pairs], strategy: str) -> set[NodePair]:
    """All pairs that the strategy drew in the samples."""
    return candidates(samples, 1 + STRATEGIES.index(strategy))


def test_each_strategy_draws_from_its_own_pairs() -> None:
    """Trades: A and B in the first half of the bars, C in the second half, D in the next bar, E in none. In the latest
    bar C and E are destinations."""
    earlier_pairs = [
        [own_pair(TRADE, A), own_pair(TRADE, B)],
        [own_pair(TRADE, A)],
        [own_pair(TRADE, C)],
        [own_pair(FUNDING, E), own_pair(TRADE, C)],
    ]
    samples = sample_pairs(earlier_pairs, [own_pair(TRADE, D)])
    assert positives(samples) == own_pairs(TRADE, D)
    assert negatives(samples, "random") == own_pairs(TRADE, A, B, C, E)
    assert negatives(samples, "historical") == own_pairs(TRADE, A, B, C)
    assert negatives(samples, "inductive") == own_pairs(TRADE, C)
    assert negatives(samples, "temporal") == own_pairs(TRADE, C, E)


def test_a_pair_history_counts_bars_exactly_in_half_precision() -> None:
    """The first events of A and B are in the bars 299 and 300, which bfloat16 would round to one number."""
    history = PairHistory.empty(1, N, torch.zeros(1, dtype=torch.bfloat16))
    pairs_by_bar = {299: [own_pair(TRADE, A)], 300: [own_pair(TRADE, B)]}
    for bar in range(301):
        history = history.after(positive_pair_mask(events_between(pairs_by_bar.get(bar, [])), 1, N))
    assert history.first_bar[0, TRADE, [A, B]].tolist() == [299, 300]


def test_where_no_pair_qualifies_for_a_strategy_any_negative_of_the_group_is_drawn() -> None:
    samples = sample_pairs([[own_pair(FUNDING, A)]], [own_pair(TRADE, D)])
    for strategy in ("random", "historical", "inductive"):
        assert negatives(samples, strategy) == own_pairs(TRADE, A, B, C, E)


@pytest.mark.parametrize("source_type", [ASSET, LIQUIDATION], ids=["edge", "liquidation"])
def test_negatives_of_a_pair_between_two_assets_never_end_at_the_own_asset_of_the_source(source_type: int) -> None:
    source, _ = own_pair(source_type, A)
    samples = sample_pairs([[(source, C)]], [(source, B)])
    assert negatives(samples, "random") == {(source, asset) for asset in (C, D, E)}
    assert negatives(samples, "historical") == {(source, C)}


def test_negatives_of_an_external_node_end_at_the_other_assets() -> None:
    samples = sample_pairs([[]], [(OPEN_INTEREST, B)])
    assert negatives(samples, "random") == {(OPEN_INTEREST, asset) for asset in (A, C, D, E)}


def test_no_pair_is_sampled_in_a_group_whose_pairs_all_have_events() -> None:
    all_pairs = [own_pair(FUNDING, asset) for asset in range(N)]
    assert positives(sample_pairs([all_pairs], all_pairs)) == set()


def test_negatives_end_at_assets_that_have_the_next_bar() -> None:
    samples = sample_pairs([[]], [own_pair(TRADE, A)], has_bar=(True, True, True, False, False))
    assert negatives(samples, "random") == own_pairs(TRADE, B, C)


def test_no_pair_is_sampled_where_no_other_asset_has_the_next_bar() -> None:
    samples = sample_pairs([[]], [own_pair(TRADE, A)], has_bar=(True, False, False, False, False))
    assert positives(samples) == set()


def test_pairs_and_negatives_come_from_the_chunk_of_their_event() -> None:
    """Chunk 0 has a trade of B, chunk 1 a trade of C and an edge from A to E. In chunk 0 only A can be a negative."""
    edge = (NODES_PER_CHUNK + A, NODES_PER_CHUNK + E)
    events = events_between([own_pair(TRADE, B), own_pair(TRADE, C, chunk=1), edge])
    has_bar = torch.tensor([[True, True, False, False, False], [True] * N])
    history = PairHistory.empty(2, N, torch.zeros(1))
    sample = make_market_links().sample_pairs(
        positive_pair_mask(events, 2, N), history, has_bar, torch.Generator().manual_seed(0)
    )
    pairs = zip(sample.chunk.tolist(), sample.src[0].tolist(), sample.dst[0].tolist(), strict=True)
    assert set(pairs) == {(0, *own_pair(TRADE, B)), (1, *own_pair(TRADE, C)), (1, A, E)}
    negative_destinations = sample.dst[1:, sample.chunk == 0]
    assert set(negative_destinations.flatten().tolist()) == {A}


def test_an_unknown_way_to_learn_links_is_refused() -> None:
    with pytest.raises(SizeError, match="links is 'later'"):
        make_network("later")


def make_trades(in_turn: bool, seed: int = 1) -> Events:
    """Two trades in every bar: of the next asset in turn, or of random assets."""
    rng = np.random.default_rng(seed)
    n_trades = 2 * N_BARS
    half_hour_us = HOUR_US // 2
    offset_us = np.sort(rng.integers(1, HOUR_US, n_trades)) % half_hour_us + np.arange(n_trades) * half_hour_us + 1
    asset = np.arange(n_trades) // 2 % N if in_turn else rng.integers(0, N, n_trades)
    columns = {
        "t": np.sort(int(START.astype(np.int64)) + offset_us),
        "symbol": np.array(SYMBOLS)[asset],
        "price": rng.uniform(90, 110, n_trades),
        "size": rng.uniform(0, 5, n_trades),
        "side": rng.choice([-1.0, 1.0], n_trades),
    }
    return trade_events(SYMBOLS, columns)


def make_batch(events: Events | None, seed: int = 0) -> Batch:
    """One chunk of random hourly bars with these events between them."""
    rng = np.random.default_rng(seed)
    ts = START + np.arange(N_BARS) * np.timedelta64(1, "h")
    values = rng.normal(size=(N_BARS, N, len(COLUMNS)))
    panel = Panel(ts, SYMBOLS, COLUMNS, values, np.ones((N_BARS, N), dtype=bool))
    bar_events = None if events is None else BarEvents.from_events(events, ts, ts + np.timedelta64(1, "h"))
    scaler = Scaler(COLUMNS, (0.0, 0.0), (1.0, 1.0))
    inputs = Inputs.from_panel(panel, scaler, HOUR_US, SideInputs(events=bar_events))
    return inputs.batch(torch.arange(N_BARS)[None])


def make_network(links: str = "alone", name: str = "tgn", seed: int = 0) -> Tgn:
    return build(Spec(name, d_model=8, dropout=0.0, options={"links": links}), len(COLUMNS), 1, seed)


@pytest.mark.parametrize("name", ["tgn", "tgat", "jodie", "dyrep"])
def test_a_link_logit_reads_nothing_of_the_bar_that_it_predicts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From ``bar`` on, events, bars and graph differ; the scored pairs are the same. Logits before ``bar`` + 1 are the
    first that may read ``bar``."""
    bar = 12
    events = make_trades(in_turn=False)
    is_late_event = events.t > int(START.astype(np.int64)) + bar * HOUR_US
    is_late_bar = torch.arange(N_BARS) >= bar
    dst = np.where(is_late_event, (events.dst + 1) % N, events.dst)
    other_events = replace(events, dst=dst, src=TRADE * N + dst, features=events.features + is_late_event[:, None])
    batch = make_batch(events)
    changed = make_batch(other_events)
    graph = GraphSteps(torch.ones(1, N, N), snapshot_index=torch.where(is_late_bar, 0, -1)[None])
    changed = replace(changed, x=changed.x + is_late_bar[:, None, None], graph=graph)

    def fixed_pairs(*_: object) -> Pairs:
        assets = torch.arange(N)
        src = torch.stack([TRADE * N + assets] * 2)
        dst = torch.stack([assets] * 2)
        return Pairs(torch.zeros(N, dtype=torch.int64), src, dst)

    monkeypatch.setattr(MarketLinks, "sample_pairs", fixed_pairs)
    network = make_network(name=name).eval()
    with torch.no_grad():
        before = network(batch).links
        after = network(changed).links
    assert before is not None and after is not None
    assert torch.equal(before.bar, after.bar)
    assert set(before.bar.tolist()) == set(range(1, N_BARS))
    is_early = before.bar <= bar
    assert torch.equal(before.logits[:, is_early], after.logits[:, is_early])
    is_next = before.bar == bar + 1
    assert not torch.equal(before.logits[:, is_next], after.logits[:, is_next])


def test_the_order_of_simultaneous_events_changes_no_link_logit() -> None:
    events = make_trades(in_turn=False)
    at_close = replace(events, t=events.t // HOUR_US * HOUR_US + HOUR_US)
    order = np.lexsort([np.random.default_rng(3).random(len(at_close)), at_close.t])
    columns = {name: getattr(at_close, name)[order] for name in ("src", "dst", "t", "kind", "features")}
    shuffled = replace(at_close, **columns)
    assert not np.array_equal(shuffled.src, at_close.src)
    network = make_network().eval()
    expected = network(make_batch(at_close)).links
    links = network(make_batch(shuffled)).links
    assert expected is not None and links is not None
    torch.testing.assert_close(expected.logits, links.logits, rtol=1e-4, atol=1e-5)


def loss_on_unseen_market(network: Tgn, in_turn: bool) -> float:
    """The link loss in a market that is not in the training data, without its first ten bars."""
    with torch.no_grad():
        links = network.eval()(make_batch(make_trades(in_turn, seed=9), seed=9)).links
    return float(link_loss(links.logits[:, links.bar >= 10]))


def train_on_links(in_turn: bool) -> Tgn:
    """A network trained to predict links in four markets."""
    network = make_network().train()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for step in range(TRAINING_STEPS):
        reseed(network, step)
        market_seed = step % 4
        links = network(make_batch(make_trades(in_turn, seed=market_seed), seed=market_seed)).links
        loss = link_loss(links.logits)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


@pytest.mark.slow
def test_trades_in_turn_can_be_learned_and_trades_at_random_cannot() -> None:
    """log 2 = 0.69 is the loss of equal probabilities. Trained on trades in turn, the loss is at most half of it."""
    assert abs(loss_on_unseen_market(make_network(), in_turn=True) - np.log(2)) < 0.1
    assert loss_on_unseen_market(train_on_links(in_turn=True), in_turn=True) < 0.35
    assert loss_on_unseen_market(train_on_links(in_turn=False), in_turn=False) > 0.6


def test_negatives_depend_on_the_seed_in_training() -> None:
    network = make_network().train()
    batch = make_batch(make_trades(in_turn=False))

    def link_logits(seed: int) -> Tensor:
        reseed(network, seed)
        with torch.no_grad():
            return network(batch).links.logits

    first = link_logits(seed=1)
    assert torch.equal(first, link_logits(seed=1))
    assert not torch.equal(first, link_logits(seed=2))


def test_negatives_are_always_the_same_in_evaluation() -> None:
    network = make_network().eval()
    batch = make_batch(make_trades(in_turn=False))
    with torch.no_grad():
        first = network(batch).links.logits
        torch.manual_seed(7)
        assert torch.equal(first, network(batch).links.logits)


def test_a_network_predicts_links_jointly_only_in_training() -> None:
    network = make_network("jointly")
    batch = make_batch(make_trades(in_turn=False))
    assert network.train()(batch).links is not None
    assert network.eval()(batch).links is None


def test_the_decoder_of_links_changes_no_forecast() -> None:
    network = make_network("jointly").eval()
    plain = build(Spec("tgn", d_model=8, dropout=0.0), len(COLUMNS), 1).eval()
    plain_names = plain.state_dict().keys()
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if name in plain_names})
    batch = make_batch(make_trades(in_turn=False))
    assert torch.equal(network(batch).returns, plain(batch).returns)


def test_a_market_without_events_has_no_links() -> None:
    assert make_network("jointly").train()(make_batch(None)).links is None


def test_a_network_is_not_fitted_to_links_alone_in_a_market_without_events_and_graph() -> None:
    with pytest.raises(ShapeError, match="no links to learn: the batch has neither events nor a graph"):
        make_network("alone")(make_batch(None))


def test_new_edges_are_predicted_as_links_in_a_market_without_events() -> None:
    """A new snapshot takes effect every ten bars. The edges of the first bar are not scored: nothing precedes them."""
    has_edge = torch.rand(3, N, N, generator=torch.Generator().manual_seed(0)) < 0.4
    adjacency = has_edge | torch.eye(N, dtype=torch.bool)
    graph = GraphSteps(adjacency.float(), snapshot_index=(torch.arange(N_BARS) // 10)[None])
    links = make_network("alone").train()(replace(make_batch(None), graph=graph)).links
    assert links is not None
    assert set(links.bar.tolist()) == {10, 20}


def test_only_the_graph_part_of_a_pretrained_network_is_loaded() -> None:
    alone = make_network("alone", seed=1)
    whole = make_network("first", seed=2)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    whole.load_pretrained(alone.state_dict())
    after = whole.state_dict()
    for name, value in after.items():
        assert torch.equal(value, alone.state_dict()[name] if name.startswith("graph.") else before[name])
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_a_network_that_learned_links_first_has_no_decoder_of_links() -> None:
    assert make_network("first").links is None


def test_a_pretrained_graph_part_of_another_size_is_refused() -> None:
    larger = build(Spec("tgn", d_model=16, options={"links": "alone"}), len(COLUMNS), 1)
    with pytest.raises(StateError, match="pretrained links part are missing or of another shape, the first graph"):
        make_network("first").load_pretrained(larger.state_dict())
