"""The temporal graph network against torch_geometric's, and against the sources' budgets (inventory TGN-41, TGN-42).

1,000 nodes, 8 features, memory, embedding and time of 100, 10 neighbours, GRU, newest message, two heads, one thread;
half of the stream is taken in before the clock starts. ``pytest tests/benchmarks/bench_tgn.py -m benchmark -s``. The
assertions are loose, as a clock is; the goals are 2.5 times in training and streaming, 0.4 ms for a single event, and a
tenth of each stage's budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.nets.event_batch import EventBatch
from models.training.allocator import tune_allocator
from tests.benchmarks.contest import Contest, contest
from tests.benchmarks.tgn_peers import EVENTS, FEATURES, NODES, Geometric, Ours, stream

pytestmark = pytest.mark.benchmark
BATCH, ROUNDS = 200, 15
HALF = EVENTS // 2
BUDGET_MS = {"message": 20.0, "memory": 10.0, "embedding": 50.0, "signal": 15.0}
BYTES_A_NODE, BYTES_IN_ALL = 800, 50e6


@pytest.fixture(scope="module")
def contenders() -> Iterator[dict[str, Ours | Geometric]]:
    """Both after the first half of the stream."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tune_allocator()
    contacts = stream()
    made: dict[str, Ours | Geometric] = {"ours": Ours(contacts)}
    try:
        made["torch_geometric"] = Geometric(contacts)
    except ImportError:
        print("\ntorch_geometric is not installed: pip install '.[bench]'", end="")
    for contender in made.values():
        contender.fill(HALF)
    yield made
    torch.set_num_threads(threads)


def timed(works: dict[str, Callable[[int], object]], case: str, size: int, rounds: int) -> Contest:
    """Each contender's microseconds an event, printed, on its own walk through the stream's second half."""
    walks = {name: count(HALF, size) for name in works}
    for name, work in works.items():
        work(next(walks[name]))  # compiles, and fills caches
    result = contest({name: lambda name=name: works[name](next(walks[name])) for name in works}, rounds)
    for name in works:
        print(f"\n{case}: {name}: {1e6 * result.median(name) / size:.0f} us an event", end="")
        if name != "ours":
            print(f", {result.ratio(name, 'ours'):.2f} times ours", end="")
    return result


def lead(result: Contest) -> float:
    if "torch_geometric" not in result.seconds:
        pytest.skip("torch_geometric is not installed")
    return result.ratio("torch_geometric", "ours")


def test_training_is_faster(contenders: dict[str, Ours | Geometric]) -> None:
    against = torch.randint(NODES // 2, NODES, (BATCH,), generator=torch.Generator().manual_seed(1))
    works = {name: lambda at, c=c: c.learn(at, at + BATCH, against) for name, c in contenders.items()}
    assert lead(timed(works, "training, batch 200", BATCH, ROUNDS)) > 2


@pytest.mark.parametrize("size", [BATCH, 1])
def test_streaming_is_faster(contenders: dict[str, Ours | Geometric], size: int) -> None:
    works = {name: lambda at, c=c: c.stream(at, at + size) for name, c in contenders.items()}
    assert lead(timed(works, f"streaming, batch {size}", size, ROUNDS if size > 1 else 400)) > 2


@pytest.mark.parametrize("threads", [1, 2])
def test_the_latency_budget_is_beaten_at_the_99th_percentile(
    contenders: dict[str, Ours | Geometric], threads: int
) -> None:
    """200 events between 1,000 assets: messages, memories, embeddings of all assets, and a signal of each.

    The caller's processor time is what the work takes; the wall's also counts who else wants the cores. Two threads
    wait for each other wherever a core is not free, so theirs is printed only.
    """
    ours = contenders["ours"]
    assert isinstance(ours, Ours)
    spent: dict[str, list[tuple[float, float]]] = {stage: [] for stage in BUDGET_MS}
    torch.set_num_threads(threads)
    ours.net.eval()
    with torch.inference_mode():
        for start in range(HALF, HALF + 200 * BATCH, BATCH):
            for stage, seconds in stages(ours, ours.contacts.part(start, start + BATCH)):
                spent[stage].append(seconds)
    torch.set_num_threads(1)
    for stage, seconds in spent.items():
        middle, worst = (1e3 * np.percentile(seconds, at, axis=0) for at in (50, 99))
        print(f"\n{stage}, threads {threads}: {middle[0]:.2f} ms, {middle[1]:.2f} by the wall; 99th percentile", end="")
        print(f" {worst[0]:.2f} ms, {worst[1]:.2f} by the wall, of {BUDGET_MS[stage]:.0f} ms", end="")
        assert threads > 1 or worst[0] < BUDGET_MS[stage] / 4


def stages(ours: Ours, batch: EventBatch) -> Iterator[tuple[str, tuple[float, float]]]:
    """Seconds of each stage of the sources' budget, of the processor and by the wall. Memory is taking events in, their
    messages included."""
    graph, nodes = ours.net.graph, torch.cat([batch.src, batch.dst])

    def message() -> Tensor:
        s, elapsed = graph._faded(ours.state[0], nodes, torch.cat([batch.t, batch.t]))
        return torch.cat([s, s, graph.encoding(elapsed), torch.cat([batch.features, batch.features])], dim=1)

    def memory() -> None:
        ours.state = graph.insert(ours.state, batch, in_place=True)

    def embedding() -> Tensor:
        return graph.embed(ours.state, torch.arange(NODES), batch.t[-1:].expand(NODES))

    yield "message", clocked(message)[1]
    yield "memory", clocked(memory)[1]
    z, seconds = clocked(embedding)
    yield "embedding", seconds
    yield "signal", clocked(lambda: ours.net.decode(torch.cat([z, z], dim=1)))[1]


def clocked(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    wall, processor = time.perf_counter(), time.thread_time()
    done = work()
    return done, (time.thread_time() - processor, time.perf_counter() - wall)


def test_memory_stays_within_the_budget(contenders: dict[str, Ours | Geometric]) -> None:
    """TGN-42 counts a memory of 128 numbers and an embedding of 64, 800 bytes a node; ours keeps a ring instead of the
    latter."""
    ours = contenders["ours"]
    assert isinstance(ours, Ours)
    parts = {"memory": ours.state[0], "ring": ours.state[1]}
    sizes = {name: sum(t.numel() * t.element_size() for t in part) / NODES for name, part in parts.items()}
    weights = sum(p.numel() * p.element_size() for p in ours.net.parameters())
    print(
        f"\nbytes a node: {sizes['memory']:.0f} of memory, {sizes['ring']:.0f} of the ring of {FEATURES + 1} features"
    )
    print(
        f"in all {(sum(sizes.values()) * NODES + weights) / 1e6:.2f} MB with {weights / 1e6:.2f} MB of weights", end=""
    )
    assert sizes["memory"] <= BYTES_A_NODE
    assert sum(sizes.values()) * NODES + weights < BYTES_IN_ALL
