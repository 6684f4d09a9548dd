"""The temporal graph network against torch_geometric's and the budgets of the source articles (TGN-41, TGN-42).

1,000 nodes, 8 features, memory, embedding and time of 100, 10 neighbours, GRU, newest message, two heads, one thread.
Half of the events are inserted before the measurements. ``pytest tests/benchmarks/bench_tgn.py -m benchmark -s``. Times
vary, so the assertions are loose; the goals are 2.5 times in training and streaming, 0.4 ms for a single event, and a
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
from tests.benchmarks.tgn_peers import EVENTS, FEATURES, NODES, Geometric, Ours, random_events

pytestmark = pytest.mark.benchmark
BATCH = 200
ROUNDS = 15
HALF = EVENTS // 2
BUDGET_MS = {"message": 20.0, "memory": 10.0, "embedding": 50.0, "signal": 15.0}
BYTES_PER_NODE = 800
BYTES_IN_ALL = 50e6


@pytest.fixture(scope="module")
def contenders() -> Iterator[dict[str, Ours | Geometric]]:
    """Both networks after the first half of the events."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tune_allocator()
    events = random_events()
    networks: dict[str, Ours | Geometric] = {"ours": Ours(events)}
    try:
        networks["torch_geometric"] = Geometric(events)
    except ImportError:
        print("\ntorch_geometric is not installed: pip install '.[bench]'", end="")
    for network in networks.values():
        network.insert_up_to(HALF)
    yield networks
    torch.set_num_threads(threads)


def time_batches(works: dict[str, Callable[[int], object]], case: str, size: int, rounds: int) -> Contest:
    """The times of each contender on batches of ``size`` from the second half of the events; a work receives the start
    of its batch. Prints microseconds per event."""
    starts = {name: count(HALF, size) for name in works}
    for name, work in works.items():
        work(next(starts[name]))  # compiles, and fills caches
    result = contest({name: lambda name=name: works[name](next(starts[name])) for name in works}, rounds)
    for name in works:
        print(f"\n{case}: {name}: {1e6 * result.median(name) / size:.0f} us an event", end="")
        if name != "ours":
            print(f", {result.ratio(name, 'ours'):.2f} times ours", end="")
    return result


def ratio_to_ours(result: Contest) -> float:
    """torch_geometric's time divided by ours. Skips the test if it is not installed."""
    if "torch_geometric" not in result.seconds:
        pytest.skip("torch_geometric is not installed")
    return result.ratio("torch_geometric", "ours")


def test_training_is_faster(contenders: dict[str, Ours | Geometric]) -> None:
    negatives = torch.randint(NODES // 2, NODES, (BATCH,), generator=torch.Generator().manual_seed(1))
    works = {name: lambda start, c=c: c.learn(start, start + BATCH, negatives) for name, c in contenders.items()}
    assert ratio_to_ours(time_batches(works, "training, batch 200", BATCH, ROUNDS)) > 2


@pytest.mark.parametrize("size", [BATCH, 1])
def test_streaming_is_faster(contenders: dict[str, Ours | Geometric], size: int) -> None:
    works = {name: lambda start, c=c: c.stream(start, start + size) for name, c in contenders.items()}
    assert ratio_to_ours(time_batches(works, f"streaming, batch {size}", size, ROUNDS if size > 1 else 400)) > 2


@pytest.mark.parametrize("threads", [1, 2])
def test_each_stage_is_within_its_latency_budget_at_the_99th_percentile(
    contenders: dict[str, Ours | Geometric], threads: int
) -> None:
    """200 events between 1,000 assets: messages, memories, embeddings of all assets, and a signal of each.

    The assertion reads the caller's processor time, because wall time also depends on other load on the cores. Two
    threads wait for each other where a core is not free, so their times are printed only.
    """
    ours = contenders["ours"]
    assert isinstance(ours, Ours)
    stage_seconds: dict[str, list[tuple[float, float]]] = {stage: [] for stage in BUDGET_MS}
    torch.set_num_threads(threads)
    ours.net.eval()
    with torch.inference_mode():
        for start in range(HALF, HALF + 200 * BATCH, BATCH):
            for stage, seconds in run_stages(ours, ours.events.part(start, start + BATCH)):
                stage_seconds[stage].append(seconds)
    torch.set_num_threads(1)
    for stage, seconds in stage_seconds.items():
        median, high = (1e3 * np.percentile(seconds, percent, axis=0) for percent in (50, 99))
        print(f"\n{stage}, threads {threads}: {median[0]:.2f} ms, {median[1]:.2f} wall time; 99th percentile", end="")
        print(f" {high[0]:.2f} ms, {high[1]:.2f} wall time, of {BUDGET_MS[stage]:.0f} ms", end="")
        assert threads > 1 or high[0] < BUDGET_MS[stage] / 4


def run_stages(ours: Ours, batch: EventBatch) -> Iterator[tuple[str, tuple[float, float]]]:
    """Processor and wall seconds of each stage of the source articles' budget. The stage "memory" inserts the events,
    and includes their messages."""
    graph = ours.net.graph
    nodes = torch.cat([batch.src, batch.dst])

    def message() -> Tensor:
        s, elapsed = graph._faded(ours.state[0], nodes, torch.cat([batch.t, batch.t]))
        return torch.cat([s, s, graph.encoding(elapsed), torch.cat([batch.features, batch.features])], dim=1)

    def memory() -> None:
        ours.state = graph.insert(ours.state, batch, in_place=True)

    def embedding() -> Tensor:
        return graph.embed(ours.state, torch.arange(NODES), batch.t[-1:].expand(NODES))

    yield "message", measure(message)[1]
    yield "memory", measure(memory)[1]
    z, seconds = measure(embedding)
    yield "embedding", seconds
    yield "signal", measure(lambda: ours.net.decode(torch.cat([z, z], dim=1)))[1]


def measure(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """The result of ``work``, and its processor and wall seconds."""
    wall_start = time.perf_counter()
    processor_start = time.thread_time()
    result = work()
    return result, (time.thread_time() - processor_start, time.perf_counter() - wall_start)


def test_memory_stays_within_the_budget(contenders: dict[str, Ours | Geometric]) -> None:
    """TGN-42 allows 800 bytes a node: a memory of 128 numbers and an embedding of 64. Ours stores a buffer of
    neighbours instead of the embedding."""
    ours = contenders["ours"]
    assert isinstance(ours, Ours)
    parts = {"memory": ours.state[0], "neighbours": ours.state[1]}
    sizes = {name: sum(t.numel() * t.element_size() for t in part) / NODES for name, part in parts.items()}
    weights = sum(p.numel() * p.element_size() for p in ours.net.parameters())
    print(
        f"\nbytes a node: {sizes['memory']:.0f} of memory, {sizes['neighbours']:.0f} of neighbours with {FEATURES + 1} "
        "features"
    )
    print(
        f"in all {(sum(sizes.values()) * NODES + weights) / 1e6:.2f} MB with {weights / 1e6:.2f} MB of weights", end=""
    )
    assert sizes["memory"] <= BYTES_PER_NODE
    assert sum(sizes.values()) * NODES + weights < BYTES_IN_ALL
