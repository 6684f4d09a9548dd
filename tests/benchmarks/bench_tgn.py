"""Our temporal graph network, compared with torch_geometric's and with the budgets of the source articles (TGN-41, 42).

``pytest tests/benchmarks/bench_tgn.py -m benchmark -s``. Both networks have 1,000 nodes, 8 features, 100 numbers of
memory, of embedding and of time encoding, 10 neighbours, a GRU, the newest message of a node, two heads and one thread.
Half of the events are inserted before the measurements. Times vary, so the assertions are loose. The goals are 2.5
times the speed of torch_geometric in training and streaming, 0.4 ms for a single event, and a tenth of each stage's
budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.nets.event_batch import EventBatch
from models.training.allocator import tune_allocator
from tests.benchmarks.contest import Contest, contest
from tests.benchmarks.tgn_peers import BATCH, N_EVENTS, N_FEATURES, N_NODES, Geometric, Ours, random_events

pytestmark = pytest.mark.benchmark
ROUNDS = 15
HALF = N_EVENTS // 2
# the latency that the source articles allow each stage of a batch
BUDGET_MS = {"message": 20.0, "memory": 10.0, "embedding": 50.0, "signal": 15.0}
MAX_BYTES_PER_NODE = 800
MAX_TOTAL_BYTES = 50e6
SINGLE_EVENT_ROUNDS = 400


@pytest.fixture(scope="module")
def contenders() -> Iterator[dict[str, Ours | Geometric]]:
    """Both networks, by name, after the first half of the events."""
    n_threads = torch.get_num_threads()
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
    torch.set_num_threads(n_threads)


def time_batches(works: dict[str, Callable[[int], object]], case: str, size: int, rounds: int) -> Contest:
    """The times of each contender on successive batches of ``size`` events from the second half of the events.

    A work of ``works`` receives the position at which its batch starts. Prints microseconds per event.
    """
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
    negatives = torch.randint(N_NODES // 2, N_NODES, (BATCH,), generator=torch.Generator().manual_seed(1))
    works = {name: lambda start, c=c: c.learn(start, start + BATCH, negatives) for name, c in contenders.items()}
    assert ratio_to_ours(time_batches(works, f"training, batch {BATCH}", BATCH, ROUNDS)) > 2


@pytest.mark.parametrize("size", [BATCH, 1])
def test_streaming_is_faster(contenders: dict[str, Ours | Geometric], size: int) -> None:
    works = {name: lambda start, c=c: c.stream(start, start + size) for name, c in contenders.items()}
    rounds = ROUNDS if size > 1 else SINGLE_EVENT_ROUNDS
    assert ratio_to_ours(time_batches(works, f"streaming, batch {size}", size, rounds)) > 2


@pytest.mark.parametrize("n_threads", [1, 2])
def test_each_stage_is_within_its_latency_budget_at_the_99th_percentile(
    contenders: dict[str, Ours | Geometric], n_threads: int
) -> None:
    """A batch of 200 events between 1,000 assets has four stages, see ``run_stages``; 200 batches are measured.

    The assertion uses the calling thread's processor time, because wall time also depends on other load on the cores.
    Two threads wait for each other if a core is not free, so their times are only printed.
    """
    ours = contenders["ours"]
    assert isinstance(ours, Ours)
    stage_seconds: dict[str, list[tuple[float, float]]] = {stage: [] for stage in BUDGET_MS}
    torch.set_num_threads(n_threads)
    ours.net.eval()
    with torch.inference_mode():
        for start in range(HALF, HALF + 200 * BATCH, BATCH):
            for stage, seconds in run_stages(ours, ours.events.part(start, start + BATCH)):
                stage_seconds[stage].append(seconds)
    torch.set_num_threads(1)
    for stage, seconds in stage_seconds.items():
        processor_ms, wall_ms = 1e3 * np.array(seconds).T
        processor_p99 = np.percentile(processor_ms, 99)
        print(f"\n{stage}, threads {n_threads}: median {np.median(processor_ms):.2f} ms, ", end="")
        print(f"wall time {np.median(wall_ms):.2f} ms; 99th percentile {processor_p99:.2f} ms, ", end="")
        print(f"wall time {np.percentile(wall_ms, 99):.2f} ms, of {BUDGET_MS[stage]:.0f} ms", end="")
        assert n_threads > 1 or processor_p99 < BUDGET_MS[stage] / 4


def run_stages(ours: Ours, batch: EventBatch) -> Iterator[tuple[str, tuple[float, float]]]:
    """Runs the stages of BUDGET_MS on a batch. Yields each stage's name and its (processor, wall) seconds.

    The stages are: the messages of the events; the insertion of the events into the memory, which also computes their
    messages; the embeddings of all nodes; and a signal from each embedding.
    """
    graph = ours.net.graph
    nodes = torch.cat([batch.src, batch.dst])

    def message() -> Tensor:
        s, elapsed = graph._faded(ours.state[0], nodes, torch.cat([batch.t, batch.t]))
        return torch.cat([s, s, graph.encoding(elapsed), torch.cat([batch.features, batch.features])], dim=1)

    def memory() -> None:
        ours.state = graph.insert(ours.state, batch, in_place=True)

    def embedding() -> Tensor:
        return graph.embed(ours.state, torch.arange(N_NODES), batch.t[-1:].expand(N_NODES))

    _, message_seconds = measure(message)
    yield "message", message_seconds
    _, memory_seconds = measure(memory)
    yield "memory", memory_seconds
    z, embedding_seconds = measure(embedding)
    yield "embedding", embedding_seconds
    _, signal_seconds = measure(lambda: ours.net.decode(torch.cat([z, z], dim=1)))
    yield "signal", signal_seconds


def measure(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """The result of ``work``, and its (processor, wall) seconds."""
    wall_start = time.perf_counter()
    processor_start = time.thread_time()
    result = work()
    return result, (time.thread_time() - processor_start, time.perf_counter() - wall_start)


def test_memory_stays_within_the_budget(contenders: dict[str, Ours | Geometric]) -> None:
    """TGN-42 allows 800 bytes per node: a memory of 128 numbers and an embedding of 64 numbers.

    Our network stores a buffer of neighbours per node instead of an embedding.
    """
    ours = contenders["ours"]
    assert isinstance(ours, Ours)
    memory, neighbours = ours.state
    memory_bytes = count_bytes(memory)
    neighbour_bytes = count_bytes(neighbours)
    weight_bytes = count_bytes(ours.net.parameters())
    total_bytes = memory_bytes + neighbour_bytes + weight_bytes
    print(
        f"\nbytes per node: {memory_bytes / N_NODES:.0f} of memory, {neighbour_bytes / N_NODES:.0f} of neighbours with "
        f"{N_FEATURES + 1} features"
    )
    print(f"{total_bytes / 1e6:.2f} MB in all, with {weight_bytes / 1e6:.2f} MB of weights", end="")
    assert memory_bytes / N_NODES <= MAX_BYTES_PER_NODE
    assert total_bytes < MAX_TOTAL_BYTES


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of all elements of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
