"""Link prediction inside a market network: which pairs are scored, from which events, and that it can be learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.features.scaling import Scaler
from models.graphs.context import BarEvents, SideInputs
from models.graphs.events import Events
from models.graphs.market_events import ASSET, FUNDING, LIQUIDATION, TRADE, trade_events
from models.graphs.negatives import STRATEGIES
from models.layers.dropout import reseed
from models.layers.errors import ShapeError, SizeError, StateError
from models.nets.event_batch import EventBatch
from models.nets.forecast import Batch, GraphSteps
from models.nets.link_prediction import MarketLinks, PairHistory, Pairs, positive_pairs
from models.nets.tgn import Tgn
from models.panel import Panel
from models.training.data import Inputs
from models.training.losses import link_loss
from models.zoo import Spec, build

HOUR = 3_600_000_000
BARS = 30
SYMBOLS = ("A", "B", "C", "D", "E")
N = len(SYMBOLS)
STEPS = 20
OPEN_INTEREST = 6 * N + 1
NODES = 6 * N + 2
EventEnds = list[tuple[int, int]]  # source and destination of each event


def events_between(*pairs: tuple[int, int]) -> EventBatch:
    """One event for each pair (source, destination)."""
    src, dst = (torch.tensor([pair[end] for pair in pairs], dtype=torch.int64) for end in (0, 1))
    return EventBatch(src, dst, torch.zeros(len(pairs)), torch.zeros(len(pairs), 1))


def own_pair(kind: int, asset: int) -> tuple[int, int]:
    """The pair from a node of this kind to its own asset."""
    return kind * N + asset, asset


def make_market_links() -> MarketLinks:
    return MarketLinks(build(Spec("tgn", d_model=4), 2, 1).graph.sizes)


def sample_pairs(bars: list[EventEnds], next_bar: EventEnds, has_bar: tuple[bool, ...] = (True,) * N) -> list[Pairs]:
    """Two hundred samples of the pairs of ``next_bar`` and their negatives in one chunk after ``bars``."""
    history = PairHistory.empty(1, N, torch.zeros(1))
    for ends in bars:
        history = history.after(positive_pairs(events_between(*ends), 1, N))
    has_event = positive_pairs(events_between(*next_bar), 1, N)
    links = make_market_links()
    generator = torch.Generator().manual_seed(0)
    return [links.sample_pairs(has_event, history, torch.tensor([has_bar]), generator) for _ in range(200)]


def negatives(samples: list[Pairs], strategy: str) -> set[tuple[int, int]]:
    """All pairs that the strategy drew in the samples."""
    row = 1 + STRATEGIES.index(strategy)
    return {pair for one in samples for pair in zip(one.src[row].tolist(), one.dst[row].tolist(), strict=True)}


def test_each_strategy_draws_from_its_own_pairs() -> None:
    """Trades: A and B in the first bars, C in the last two, D in the next bar, E in none."""
    bars = [
        [own_pair(TRADE, 0), own_pair(TRADE, 1)],
        [own_pair(TRADE, 0)],
        [own_pair(TRADE, 2)],
        [own_pair(FUNDING, 4), own_pair(TRADE, 2)],
    ]
    samples = sample_pairs(bars, [own_pair(TRADE, 3)])
    assert {(*one.src[0].tolist(), *one.dst[0].tolist()) for one in samples} == {own_pair(TRADE, 3)}
    assert negatives(samples, "random") == {own_pair(TRADE, asset) for asset in (0, 1, 2, 4)}
    assert negatives(samples, "historical") == {own_pair(TRADE, asset) for asset in (0, 1, 2)}
    assert negatives(samples, "inductive") == {own_pair(TRADE, 2)}
    assert negatives(samples, "temporal") == {own_pair(TRADE, asset) for asset in (2, 4)}


def test_a_pair_history_counts_exactly_in_half_precision() -> None:
    """The first events of two pairs are in bars 299 and 300, which half precision would round to one number."""
    history = PairHistory.empty(1, N, torch.zeros(1, dtype=torch.bfloat16))
    for bar in range(301):
        pairs = [own_pair(TRADE, bar - 299)] if bar >= 299 else []
        history = history.after(positive_pairs(events_between(*pairs), 1, N))
    assert history.first[0, TRADE, :2].tolist() == [299, 300]


def test_where_no_pair_qualifies_for_a_strategy_any_pair_of_the_row_is_drawn() -> None:
    samples = sample_pairs([[own_pair(FUNDING, 0)]], [own_pair(TRADE, 3)])
    for strategy in ("random", "historical", "inductive"):
        assert negatives(samples, strategy) == {own_pair(TRADE, asset) for asset in (0, 1, 2, 4)}


@pytest.mark.parametrize("source", [0, LIQUIDATION * N], ids=["edge", "liquidation"])
def test_negatives_of_a_node_to_another_asset_end_at_other_assets_but_its_own(source: int) -> None:
    samples = sample_pairs([[(source, 2)]], [(source, 1)])
    assert negatives(samples, "random") == {(source, asset) for asset in (2, 3, 4)}
    assert negatives(samples, "historical") == {(source, 2)}


def test_negatives_of_an_external_node_end_at_the_other_assets() -> None:
    samples = sample_pairs([[]], [(OPEN_INTEREST, 1)])
    assert negatives(samples, "random") == {(OPEN_INTEREST, asset) for asset in (0, 2, 3, 4)}


def test_no_pair_is_sampled_in_a_row_full_of_events_or_with_an_asset_without_a_bar() -> None:
    all_assets = [own_pair(FUNDING, asset) for asset in range(N)]
    assert all(not len(one.chunk) for one in sample_pairs([all_assets], all_assets))
    samples = sample_pairs([[]], [own_pair(TRADE, 0)], (True, True, True, False, False))
    assert negatives(samples, "random") == {own_pair(TRADE, 1), own_pair(TRADE, 2)}
    assert all(
        not len(one.chunk) for one in sample_pairs([[]], [own_pair(TRADE, 0)], (True, False, False, False, False))
    )


def test_negatives_come_from_the_chunk_of_their_pair() -> None:
    pairs = events_between(own_pair(TRADE, 1), (NODES + own_pair(TRADE, 2)[0], NODES + 2), (NODES + ASSET, NODES + 4))
    has_event = positive_pairs(pairs, 2, N)
    has_bar = torch.tensor([[True, True, False, False, False], [True] * N])
    history = PairHistory.empty(2, N, torch.zeros(1))
    sample = make_market_links().sample_pairs(has_event, history, has_bar, torch.Generator().manual_seed(0))
    ends = zip(sample.chunk.tolist(), sample.src[0].tolist(), sample.dst[0].tolist(), strict=True)
    assert set(ends) == {(0, *own_pair(TRADE, 1)), (1, *own_pair(TRADE, 2)), (1, 0, 4)}
    assert set(sample.dst[1:, sample.chunk == 0].flatten().tolist()) == {0}


def test_an_unknown_way_to_learn_links_is_refused() -> None:
    with pytest.raises(SizeError, match="links is 'later'"):
        make_network("later")


def make_trades(in_turn: bool, seed: int = 1) -> Events:
    """Two trades an hour: of the assets in turn, or of random assets."""
    rng = np.random.default_rng(seed)
    start = int(np.datetime64("2024-01-01", "us").astype(np.int64))
    count = 2 * BARS
    t = start + np.sort(rng.integers(1, HOUR, count)) % (HOUR // 2) + np.arange(count) * (HOUR // 2) + 1
    symbol = np.arange(count) // 2 % N if in_turn else rng.integers(0, N, count)
    rows = {"t": np.sort(t), "symbol": np.array(SYMBOLS)[symbol], "price": rng.uniform(90, 110, count)}
    return trade_events(SYMBOLS, rows | {"size": rng.uniform(0, 5, count), "side": rng.choice([-1.0, 1.0], count)})


def make_batch(events: Events | None, seed: int = 0) -> Batch:
    """One chunk of random bars with these events between them."""
    rng = np.random.default_rng(seed)
    ts = np.datetime64("2024-01-01", "us") + np.arange(BARS) * np.timedelta64(1, "h")
    panel = Panel(ts, SYMBOLS, ("a", "b"), rng.normal(size=(BARS, N, 2)), np.ones((BARS, N), dtype=bool))
    bar_events = None if events is None else BarEvents.from_events(events, ts, ts + np.timedelta64(1, "h"))
    scaler = Scaler(("a", "b"), (0.0, 0.0), (1.0, 1.0))
    return Inputs.from_panel(panel, scaler, HOUR, SideInputs(events=bar_events)).batch(torch.arange(BARS)[None])


def make_network(links: str = "alone", name: str = "tgn", seed: int = 0) -> Tgn:
    return build(Spec(name, d_model=8, dropout=0.0, options={"links": links}), 2, 1, seed)


@pytest.mark.parametrize("name", ["tgn", "tgat", "jodie", "dyrep"])
def test_a_link_logit_reads_nothing_of_the_bar_that_it_predicts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From ``bar`` on, events, bars and graph differ; the scored pairs are the same."""
    bar = 12
    events = make_trades(in_turn=False)
    is_late = events.t > int(events.t[0]) // HOUR * HOUR + bar * HOUR
    dst = np.where(is_late, (events.dst + 1) % N, events.dst)
    other_events = replace(events, dst=dst, src=TRADE * N + dst, features=events.features + is_late[:, None])
    batch = make_batch(events)
    changed = make_batch(other_events)
    changed = replace(changed, x=changed.x + (torch.arange(BARS) >= bar)[:, None, None])
    step = torch.where(torch.arange(BARS) >= bar, 0, -1)[None]
    changed = replace(changed, graph=GraphSteps(torch.ones(1, N, N), step))

    def fixed_pairs(*_: object) -> Pairs:
        assets = torch.arange(N)
        return Pairs(
            torch.zeros(N, dtype=torch.int64), torch.stack([TRADE * N + assets] * 2), torch.stack([assets] * 2)
        )

    monkeypatch.setattr(MarketLinks, "sample_pairs", fixed_pairs)
    network = make_network(name=name).eval()
    with torch.no_grad():
        before = network(batch).links
        after = network(changed).links
    assert before is not None and after is not None and torch.equal(before.bar, after.bar)
    assert set(before.bar.tolist()) == set(range(1, BARS))
    is_early = before.bar <= bar
    assert torch.equal(before.logits[:, is_early], after.logits[:, is_early])
    is_next = before.bar == bar + 1
    assert not torch.equal(before.logits[:, is_next], after.logits[:, is_next])


def test_the_order_of_simultaneous_events_changes_no_link_logit() -> None:
    events = make_trades(in_turn=False)
    at_close = replace(events, t=events.t // HOUR * HOUR + HOUR)
    order = np.lexsort([np.random.default_rng(3).random(len(at_close)), at_close.t])
    shuffled = replace(at_close, **{k: getattr(at_close, k)[order] for k in ("src", "dst", "t", "kind", "features")})
    assert not np.array_equal(shuffled.src, at_close.src)
    network = make_network().eval()
    expected = network(make_batch(at_close)).links
    links = network(make_batch(shuffled)).links
    assert expected is not None and links is not None
    torch.testing.assert_close(expected.logits, links.logits, rtol=1e-4, atol=1e-5)


def loss_on_unseen_market(network: Tgn, in_turn: bool) -> float:
    """The link loss in a market that is not in the training data, without its first ten hours."""
    with torch.no_grad():
        links = network.eval()(make_batch(make_trades(in_turn, seed=9), seed=9)).links
    return float(link_loss(links.logits[:, links.bar >= 10]))


def train_on_links(in_turn: bool) -> Tgn:
    network = make_network().train()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for step in range(STEPS):
        reseed(network, step)
        loss = link_loss(network(make_batch(make_trades(in_turn, seed=step % 4), seed=step % 4)).links.logits)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


@pytest.mark.slow
def test_trades_in_turn_can_be_learned_and_trades_at_random_cannot() -> None:
    assert abs(loss_on_unseen_market(make_network(), in_turn=True) - np.log(2)) < 0.1
    assert loss_on_unseen_market(train_on_links(in_turn=True), in_turn=True) < 0.35
    assert loss_on_unseen_market(train_on_links(in_turn=False), in_turn=False) > 0.6


def test_negatives_depend_on_the_seed_in_training_and_are_always_the_same_in_evaluation() -> None:
    network = make_network()
    batch = make_batch(make_trades(in_turn=False))
    with torch.no_grad():
        logits = []
        for seed in (1, 1, 2):
            reseed(network.train(), seed)
            logits.append(network(batch).links.logits)
        assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
        torch.manual_seed(7)
        assert torch.equal(network.eval()(batch).links.logits, network(batch).links.logits)


def test_links_are_predicted_in_training_only_and_change_no_forecast() -> None:
    network = make_network("jointly")
    batch = make_batch(make_trades(in_turn=False))
    assert network.train()(batch).links is not None
    assert network.eval()(batch).links is None
    plain = build(Spec("tgn", d_model=8, dropout=0.0), 2, 1).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("links.")})
    assert torch.equal(network(batch).returns, plain(batch).returns)


def test_a_market_without_events_has_no_links_and_cannot_be_fitted_to_links_alone() -> None:
    quiet = make_batch(None)
    assert make_network("jointly").train()(quiet).links is None
    with pytest.raises(ShapeError, match="no links to learn: the batch has neither events nor a graph"):
        make_network("alone")(quiet)


def test_new_edges_are_predicted_as_links_in_a_market_without_events() -> None:
    step = (torch.arange(BARS) // 10)[None]
    adjacency = (torch.rand(3, N, N, generator=torch.Generator().manual_seed(0)) < 0.4) | torch.eye(N, dtype=torch.bool)
    batch = replace(make_batch(None), graph=GraphSteps(adjacency.float(), step))
    links = make_network("alone").train()(batch).links
    assert links is not None
    assert set(links.bar.tolist()) == {10, 20}


def test_a_pretrained_graph_part_is_loaded_to_the_bit_and_nothing_else() -> None:
    alone = make_network("alone", seed=1)
    whole = make_network("first", seed=2)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    whole.load_pretrained(alone.state_dict())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name] if name.startswith("graph.") else before[name])
    assert whole.links is None and any(not torch.equal(before[k], v) for k, v in whole.state_dict().items())
    with pytest.raises(StateError, match="pretrained links part are missing or of another shape, the first graph"):
        whole.load_pretrained(build(Spec("tgn", d_model=16, options={"links": "alone"}), 2, 1).state_dict())
