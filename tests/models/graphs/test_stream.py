"""The buffer in front of a network: whatever the order of arrival, the same batches; its state, saved and restored."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.graphs.snapshot import GraphError
from models.graphs.stream import SEEN, EventStream, load_arrays, save_arrays

WINDOW, BOUND = 100, 250


def rows(*stamps: int) -> np.ndarray:
    """One event at each time; equal times are different events."""
    made = np.empty(len(stamps), SEEN)
    made["t"] = stamps
    made["key"] = [1_000 * t + stamps[:i].count(t) for i, t in enumerate(stamps)]
    return made


def stream(**options: int) -> EventStream[list[int]]:
    shape = {"window_us": WINDOW, "bound_us": BOUND, "max_events": 100} | options
    return EventStream(lambda batch: batch["t"].tolist(), **shape)


class Chain:
    """A consumer whose state depends on every event, their order and where the batches were cut."""

    def __init__(self) -> None:
        self.state = np.array([1.0, 0.0])

    def __call__(self, batch: np.ndarray) -> float:
        self.state = np.array([self.state[0] * 0.9 + float(batch["key"].sum()), self.state[1] + len(batch)])
        return float(self.state[0])


def through(arrivals: list[np.ndarray], chain: Chain) -> EventStream[float]:
    made = EventStream(chain, window_us=WINDOW, bound_us=BOUND, max_events=3)
    for arrived in arrivals:
        made.push(arrived)
    return made


def test_a_window_is_handed_over_once_nothing_of_it_can_still_be_in_time() -> None:
    buffer = stream()
    assert buffer.push(rows(10, 90, 110)) == []
    assert buffer.push(rows(349)) == []
    assert buffer.push(rows(350)) == [[10, 90]]  # an event of 99 would now be 251 behind
    assert buffer.push(rows(1000)) == [[110], [349, 350]]
    assert buffer.finish() == [[1000]]
    assert buffer.finish() == []


def test_a_long_window_comes_in_parts_and_simultaneous_events_stay_together() -> None:
    buffer = stream(max_events=2)
    buffer.push(rows(1, 2, 3, 3, 3, 4, 105))
    assert buffer.finish() == [[1, 2], [3, 3, 3], [4], [105]]


def test_a_late_event_is_dropped_and_counted_and_one_within_the_bound_is_not() -> None:
    buffer = stream()
    buffer.push(rows(1000, 750, 749))
    assert buffer.counts == {"received": 3, "late": 1, "duplicates": 0, "handed_over": 0}
    assert buffer.finish() == [[750], [1000]]


def test_an_event_that_comes_twice_counts_once() -> None:
    buffer = stream()
    buffer.push(rows(5, 7))
    buffer.push(np.concatenate([rows(5), rows(5), rows(8)]))
    assert buffer.counts["duplicates"] == 2
    assert buffer.finish() == [[5, 7, 8]]
    buffer.push(rows(7))
    assert (buffer.counts["late"], buffer.finish()) == (1, [])


def test_after_the_end_what_belongs_before_it_is_late() -> None:
    buffer = stream()
    buffer.push(rows(110))
    assert buffer.finish() == [[110]]
    buffer.push(rows(150, 200))
    assert (buffer.counts["late"], buffer.finish()) == (1, [[200]])


times = st.lists(st.integers(0, 3_000), min_size=1, max_size=60)


@given(times, st.randoms(use_true_random=False))
def test_any_order_within_the_bound_and_any_repetition_leave_the_same_state(stamps: list[int], chance) -> None:
    ordered = rows(*sorted(stamps))
    delays = np.array([chance.randint(0, BOUND) for _ in stamps])
    arrival = np.argsort(ordered["t"] + delays, kind="stable")
    repeated = [i for i in arrival for _ in range(chance.choice([1, 1, 2, 3]))]
    clean, faulty = Chain(), Chain()
    one, other = through([ordered], clean), through([ordered[i : i + 1] for i in repeated], faulty)
    one.finish(), other.finish()
    assert clean.state.tolist() == faulty.state.tolist()
    assert one.counts["handed_over"] == other.counts["handed_over"] == len(ordered)
    assert other.counts["late"] == 0


@given(times, st.integers(0, 60))
def test_how_arrivals_are_grouped_makes_no_difference_late_ones_included(stamps: list[int], cut: int) -> None:
    arrived = rows(*stamps)
    whole, parts = Chain(), Chain()
    one, other = through([arrived], whole), through([arrived[:cut], arrived[cut:]], parts)
    one.finish(), other.finish()
    assert (whole.state.tolist(), one.counts) == (parts.state.tolist(), other.counts)


@given(times, st.data())
def test_what_is_dropped_is_exactly_what_is_late(stamps: list[int], data) -> None:
    buffer = stream()
    buffer.push(rows(*stamps))
    late = [t for i, t in enumerate(stamps) if t < max(stamps[: i + 1]) - BOUND]
    assert buffer.counts["late"] == len(late)
    handed = [t for batch in buffer.finish() for t in batch]
    assert handed == sorted(handed)


@given(times, st.integers(0, 60), st.integers(0, 60))
def test_a_restored_stream_that_is_given_some_events_again_counts_none_twice(
    tmp_path_factory: pytest.TempPathFactory, stamps: list[int], saved: int, again: int
) -> None:
    path = tmp_path_factory.mktemp("state") / "state.npz"
    arrived, undisturbed = rows(*stamps), Chain()
    straight = through([arrived], undisturbed)
    straight.finish()

    first = Chain()
    before = through([arrived[:saved]], first)
    save_arrays(path, before.state() | {"network": first.state})
    before.push(arrived[saved:])  # lost in the crash
    second = Chain()
    after = through([], second)
    arrays = load_arrays(path)
    after.restore(arrays)
    second.state = arrays["network"]
    after.push(arrived[max(0, saved - again) :])
    after.finish()
    assert second.state.tolist() == undisturbed.state.tolist()
    assert after.counts["handed_over"] == straight.counts["handed_over"]


def test_a_state_is_not_altered_by_what_comes_after_it() -> None:
    buffer = stream()
    buffer.push(rows(1, 2, 3))
    state = buffer.state()
    before = {name: array.copy() for name, array in state.items()}
    buffer.push(rows(5_000, 6_000))
    assert all(np.array_equal(before[name], array) for name, array in state.items())


def test_a_state_of_other_windows_is_refused() -> None:
    with pytest.raises(GraphError, match=r"window, bound and batch \[100, 250, 100\], this one has \[100, 251, 100\]"):
        stream(bound_us=251).restore(stream().state())


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save_arrays(path, stream().state())
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no archive", whole[:60] + b"xx" + whole[62:]):
        path.write_bytes(damaged)
        with pytest.raises(GraphError, match=r"state\.npz: no state of a stream, or a damaged one; move it away"):
            load_arrays(path)


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save_arrays(path, {"a": np.arange(3)})
    with pytest.raises(TypeError):
        save_arrays(path, {"a": np.arange(4), 1: np.arange(3)})  # type: ignore[dict-item]
    assert load_arrays(path)["a"].tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


@pytest.mark.parametrize("options", [{"window_us": 0}, {"bound_us": -1}, {"max_events": 0}])
def test_windows_and_bounds_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(GraphError, match=f"{next(iter(options))} {next(iter(options.values()))}"):
        stream(**options)


def test_a_thousand_assets_fit_the_memory_that_the_sources_allow() -> None:
    """Inventory TGN-42: the whole system below 50 MB; here 20,000 events a second for three seconds."""
    draw = np.random.default_rng(0)
    buffer = EventStream(len)
    tracemalloc.start()
    for start in range(0, 3_000_000, 50_000):
        arrived = np.empty(1_000, SEEN)
        arrived["t"], arrived["key"] = start + draw.integers(0, 50_000, 1_000), draw.integers(0, 2**63, 1_000)
        buffer.push(arrived)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert buffer.counts["handed_over"] > 30_000
    assert peak < 50e6
