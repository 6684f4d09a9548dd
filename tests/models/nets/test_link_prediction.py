"""Links inside a market network: which pairs are asked about, from what is known, and that they can be learned."""

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

HOUR, BARS, SYMBOLS = 3_600_000_000, 30, ("A", "B", "C", "D", "E")
N, STEPS = len(SYMBOLS), 20
OPEN_INTEREST = 6 * N + 1
NODES = 6 * N + 2
Ends = list[tuple[int, int]]


def contacts(*pairs: tuple[int, int]) -> EventBatch:
    src, dst = (torch.tensor([pair[end] for pair in pairs], dtype=torch.int64) for end in (0, 1))
    return EventBatch(src, dst, torch.zeros(len(pairs)), torch.zeros(len(pairs), 1))


def own(kind: int, asset: int) -> tuple[int, int]:
    return kind * N + asset, asset


def links_of_nobody() -> MarketLinks:
    return MarketLinks(build(Spec("tgn", d_model=4), 2, 1).graph.sizes)


def asked(bars: list[Ends], now: Ends, there: tuple[bool, ...] = (True,) * N) -> list[Pairs]:
    """Two hundred draws of what is asked of one chunk after ``bars``."""
    past, links, draw = PairHistory.empty(1, N, torch.zeros(1)), links_of_nobody(), torch.Generator().manual_seed(0)
    for ends in bars:
        past = past.after(positive_pairs(contacts(*ends), 1, N))
    meets = positive_pairs(contacts(*now), 1, N)
    return [links.drawn(meets, past, torch.tensor([there]), draw) for _ in range(200)]


def told_from(found: list[Pairs], strategy: str) -> set[tuple[int, int]]:
    at = 1 + STRATEGIES.index(strategy)
    return {pair for one in found for pair in zip(one.src[at].tolist(), one.dst[at].tolist(), strict=True)}


def test_each_strategy_draws_from_the_pairs_of_its_rule() -> None:
    """A and B were traded first, C lately and last, D is traded now, E never was."""
    bars = [[own(TRADE, 0), own(TRADE, 1)], [own(TRADE, 0)], [own(TRADE, 2)], [own(FUNDING, 4), own(TRADE, 2)]]
    found = asked(bars, [own(TRADE, 3)])
    assert {(*one.src[0].tolist(), *one.dst[0].tolist()) for one in found} == {own(TRADE, 3)}
    assert told_from(found, "random") == {own(TRADE, asset) for asset in (0, 1, 2, 4)}
    assert told_from(found, "historical") == {own(TRADE, asset) for asset in (0, 1, 2)}
    assert told_from(found, "inductive") == {own(TRADE, 2)}
    assert told_from(found, "temporal") == {own(TRADE, asset) for asset in (2, 4)}


def test_the_past_of_a_long_chunk_is_counted_in_mixed_precision_too() -> None:
    """Two that met first in bars 299 and 300, of which half precision makes one."""
    past = PairHistory.empty(1, N, torch.zeros(1, dtype=torch.bfloat16))
    for bar in range(301):
        past = past.after(positive_pairs(contacts(*([own(TRADE, bar - 299)] if bar >= 299 else [])), 1, N))
    assert past.first[0, TRADE, :2].tolist() == [299, 300]


def test_where_no_pair_fits_a_strategy_any_of_the_row_is_drawn() -> None:
    found = asked([[own(FUNDING, 0)]], [own(TRADE, 3)])
    for strategy in ("random", "historical", "inductive"):
        assert told_from(found, strategy) == {own(TRADE, asset) for asset in (0, 1, 2, 4)}


@pytest.mark.parametrize("source", [0, LIQUIDATION * N], ids=["edge", "liquidation"])
def test_who_speaks_to_others_is_told_from_itself_speaking_to_someone_else_but_its_own(source: int) -> None:
    found = asked([[(source, 2)]], [(source, 1)])
    assert told_from(found, "random") == {(source, asset) for asset in (2, 3, 4)}
    assert told_from(found, "historical") == {(source, 2)}


def test_one_from_outside_is_told_from_the_same_speaking_to_another() -> None:
    found = asked([[]], [(OPEN_INTEREST, 1)])
    assert told_from(found, "random") == {(OPEN_INTEREST, asset) for asset in (0, 2, 3, 4)}


def test_nothing_is_asked_of_a_row_that_meets_as_a_whole_or_of_assets_without_a_bar() -> None:
    everybody = [own(FUNDING, asset) for asset in range(N)]
    assert all(not len(one.chunk) for one in asked([everybody], everybody))
    found = asked([[]], [own(TRADE, 0)], (True, True, True, False, False))
    assert told_from(found, "random") == {own(TRADE, 1), own(TRADE, 2)}
    assert all(not len(one.chunk) for one in asked([[]], [own(TRADE, 0)], (True, False, False, False, False)))


def test_chunks_are_asked_each_for_itself() -> None:
    draw = torch.Generator().manual_seed(0)
    pairs = contacts(own(TRADE, 1), (NODES + own(TRADE, 2)[0], NODES + 2), (NODES + ASSET, NODES + 4))
    there = torch.tensor([[True, True, False, False, False], [True] * N])
    found = links_of_nobody().drawn(positive_pairs(pairs, 2, N), PairHistory.empty(2, N, torch.zeros(1)), there, draw)
    ends = zip(found.chunk.tolist(), found.src[0].tolist(), found.dst[0].tolist(), strict=True)
    assert set(ends) == {(0, *own(TRADE, 1)), (1, *own(TRADE, 2)), (1, 0, 4)}
    assert set(found.dst[1:, found.chunk == 0].flatten().tolist()) == {0}


def test_an_unknown_way_to_learn_links_is_refused() -> None:
    with pytest.raises(SizeError, match="links is 'later'"):
        network("later")


def traded(turns: bool, seed: int = 1) -> Events:
    """Two trades an hour: of the next in turn, or of anybody."""
    draw, start = np.random.default_rng(seed), int(np.datetime64("2024-01-01", "us").astype(np.int64))
    count = 2 * BARS
    t = start + np.sort(draw.integers(1, HOUR, count)) % (HOUR // 2) + np.arange(count) * (HOUR // 2) + 1
    symbol = np.arange(count) // 2 % N if turns else draw.integers(0, N, count)
    rows = {"t": np.sort(t), "symbol": np.array(SYMBOLS)[symbol], "price": draw.uniform(90, 110, count)}
    return trade_events(SYMBOLS, rows | {"size": draw.uniform(0, 5, count), "side": draw.choice([-1.0, 1.0], count)})


def batch_of(events: Events | None, seed: int = 0) -> Batch:
    draw = np.random.default_rng(seed)
    ts = np.datetime64("2024-01-01", "us") + np.arange(BARS) * np.timedelta64(1, "h")
    values, mask = draw.normal(size=(BARS, N, 2)), np.ones((BARS, N), dtype=bool)
    panel = Panel(ts, SYMBOLS, ("a", "b"), values, mask)
    around = None if events is None else BarEvents.of(events, ts, ts + np.timedelta64(1, "h"))
    scaler = Scaler(("a", "b"), (0.0, 0.0), (1.0, 1.0))
    return Inputs.of(panel, scaler, HOUR, SideInputs(events=around)).batch(torch.arange(BARS)[None])


def network(links: str = "alone", name: str = "tgn", seed: int = 0) -> Tgn:
    return build(Spec(name, d_model=8, dropout=0.0, options={"links": links}), 2, 1, seed)


@pytest.mark.parametrize("name", ["tgn", "tgat", "jodie", "dyrep"])
def test_an_answer_knows_nothing_of_the_bar_it_is_asked_before(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked, and whatever happens from that bar on: who meets, how, the bars themselves, and a graph."""
    bar, given = 12, traded(turns=False)
    late = given.t > int(given.t[0]) // HOUR * HOUR + bar * HOUR
    dst = np.where(late, (given.dst + 1) % N, given.dst)
    others = replace(given, dst=dst, src=TRADE * N + dst, features=given.features + late[:, None])
    batch, changed = batch_of(given), batch_of(others)
    changed = replace(changed, x=changed.x + (torch.arange(BARS) >= bar)[:, None, None])
    step = torch.where(torch.arange(BARS) >= bar, 0, -1)[None]
    changed = replace(changed, graph=GraphSteps(torch.ones(1, N, N), step))

    def fixed(*_: object) -> Pairs:
        assets = torch.arange(N)
        return Pairs(
            torch.zeros(N, dtype=torch.int64), torch.stack([TRADE * N + assets] * 2), torch.stack([assets] * 2)
        )

    monkeypatch.setattr(MarketLinks, "drawn", fixed)
    made = network(name=name).eval()
    with torch.no_grad():
        before, after = made(batch).links, made(changed).links
    assert before is not None and after is not None and torch.equal(before.bar, after.bar)
    assert set(before.bar.tolist()) == set(range(1, BARS))
    known = before.bar <= bar
    assert torch.equal(before.logits[:, known], after.logits[:, known])
    first = before.bar == bar + 1
    assert not torch.equal(before.logits[:, first], after.logits[:, first])


def test_events_of_one_bar_in_another_order_change_neither_questions_nor_answers() -> None:
    given = traded(turns=False)
    same = replace(given, t=given.t // HOUR * HOUR + HOUR)
    order = np.lexsort([np.random.default_rng(3).random(len(same)), same.t])
    shuffled = replace(same, **{k: getattr(same, k)[order] for k in ("src", "dst", "t", "kind", "features")})
    assert not np.array_equal(shuffled.src, same.src)
    made = network().eval()
    one, other = made(batch_of(same)).links, made(batch_of(shuffled)).links
    assert one is not None and other is not None
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-5)


def unseen_loss(made: Tgn, turns: bool) -> float:
    """On a market that nobody learned from, once its first ten hours have shown what it is like."""
    with torch.no_grad():
        links = made.eval()(batch_of(traded(turns, seed=9), seed=9)).links
    return float(link_loss(links.logits[:, links.bar >= 10]))


def learned(turns: bool) -> Tgn:
    made = network().train()
    optimiser = torch.optim.Adam(made.parameters(), lr=0.02)
    for step in range(STEPS):
        reseed(made, step)
        loss = link_loss(made(batch_of(traded(turns, seed=step % 4), seed=step % 4)).links.logits)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return made


@pytest.mark.slow
def test_who_is_traded_in_turn_is_learned_and_who_is_traded_at_random_is_not() -> None:
    assert abs(unseen_loss(network(), turns=True) - np.log(2)) < 0.1
    assert unseen_loss(learned(turns=True), turns=True) < 0.35
    assert unseen_loss(learned(turns=False), turns=False) > 0.6


def test_negatives_follow_from_the_seed_and_are_always_the_same_in_evaluation() -> None:
    made, batch = network(), batch_of(traded(turns=False))
    with torch.no_grad():
        seen = []
        for seed in (1, 1, 2):
            reseed(made.train(), seed)
            seen.append(made(batch).links.logits)
        assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
        torch.manual_seed(7)
        assert torch.equal(made.eval()(batch).links.logits, made(batch).links.logits)


def test_links_are_learned_in_training_and_cost_nothing_afterwards() -> None:
    made, batch = network("jointly"), batch_of(traded(turns=False))
    assert made.train()(batch).links is not None
    assert made.eval()(batch).links is None
    plain = build(Spec("tgn", d_model=8, dropout=0.0), 2, 1).eval()
    plain.load_state_dict({k: v for k, v in made.state_dict().items() if not k.startswith("links.")})
    assert torch.equal(made(batch).returns, plain(batch).returns)


def test_a_market_in_which_nothing_happens_has_no_links_and_cannot_be_learned_from_first() -> None:
    quiet = batch_of(None)
    assert network("jointly").train()(quiet).links is None
    with pytest.raises(ShapeError, match="no links to learn: the batch has neither events nor a graph"):
        network("alone")(quiet)


def test_edges_are_events_where_there_are_no_others() -> None:
    step = (torch.arange(BARS) // 10)[None]
    adjacency = (torch.rand(3, N, N, generator=torch.Generator().manual_seed(0)) < 0.4) | torch.eye(N, dtype=torch.bool)
    batch = replace(batch_of(None), graph=GraphSteps(adjacency.float(), step))
    found = network("alone").train()(batch).links
    assert found is not None
    assert set(found.bar.tolist()) == {10, 20}


def test_what_was_learned_first_is_taken_over_to_the_bit_and_nothing_else() -> None:
    alone, whole = network("alone", seed=1), network("first", seed=2)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    whole.load_pretrained(alone.state_dict())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name] if name.startswith("graph.") else before[name])
    assert whole.links is None and any(not torch.equal(before[k], v) for k, v in whole.state_dict().items())
    with pytest.raises(StateError, match="pretrained links part are missing or of another shape, the first graph"):
        whole.load_pretrained(build(Spec("tgn", d_model=16, options={"links": "alone"}), 2, 1).state_dict())
