"""The buffer of a stream gives the same batches for every order of arrival in time, also after a restart.

TGN ids: .github/sources.md.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.graphs.snapshot import GraphError
from models.graphs.stream import EVENT_ID, EventStream, load_arrays, save_arrays

WINDOW_US = 100
BOUND_US = 250


def make_rows(*times_us: int) -> np.ndarray:
    """One event at each time, in the order of arrival; equal times are different events."""
    events = np.empty(len(times_us), EVENT_ID)
    events["t"] = times_us
    events["key"] = [1_000 * t + times_us[:i].count(t) for i, t in enumerate(times_us)]
    return events


def make_buffer(**options: int) -> EventStream[list[int]]:
    """A buffer whose ``push`` returns the times of each batch."""
    settings = {"window_us": WINDOW_US, "bound_us": BOUND_US, "max_events": 100} | options
    return EventStream(lambda batch: batch["t"].tolist(), **settings)


class Consumer:
    """A consumer whose state depends on every event, on the order of the events and on the limits of the batches."""

    def __init__(self) -> None:
        self.state = np.array([1.0, 0.0])

    def __call__(self, batch: np.ndarray) -> float:
        self.state = np.array([self.state[0] * 0.9 + float(batch["key"].sum()), self.state[1] + len(batch)])
        return float(self.state[0])


def push_all(arrivals: list[np.ndarray], consumer: Consumer) -> EventStream[float]:
    """A buffer in front of ``consumer`` that has received ``arrivals``."""
    buffer = EventStream(consumer, window_us=WINDOW_US, bound_us=BOUND_US, max_events=3)
    for arrival in arrivals:
        buffer.push(arrival)
    return buffer


def push_later_event(buffer: EventStream) -> list:
    """Pushes an event so much later that the buffer hands over all events before it. Returns the results."""
    return buffer.push(make_rows(int(buffer.state()["newest"]) + buffer.window_us + buffer.bound_us))


def test_a_window_is_handed_over_once_no_event_of_it_can_arrive_in_time() -> None:
    """TGN-26: here a window has 100 µs, by default 100 ms."""
    buffer = make_buffer()
    assert buffer.push(make_rows(10, 90, 110)) == []
    assert buffer.push(make_rows(349)) == []
    assert buffer.push(make_rows(350)) == [[10, 90]]  # an event at 99 would now be 251 µs late
    assert buffer.push(make_rows(1000)) == [[110], [349, 350]]
    assert push_later_event(buffer) == [[1000]]


def test_a_long_window_is_cut_into_batches_that_keep_simultaneous_events_together() -> None:
    buffer = make_buffer(max_events=2)
    buffer.push(make_rows(1, 2, 3, 3, 3, 4, 105))
    assert push_later_event(buffer) == [[1, 2], [3, 3, 3], [4], [105]]


def test_an_event_later_than_the_bound_is_dropped_and_counted_and_an_event_at_the_bound_is_kept() -> None:
    buffer = make_buffer()
    buffer.push(make_rows(1000, 750, 749))
    assert buffer.counts == {"received": 3, "late": 1, "duplicates": 0, "handed_over": 0}
    assert push_later_event(buffer) == [[750], [1000]]


def test_an_event_that_arrives_twice_is_handed_over_once() -> None:
    buffer = make_buffer()
    buffer.push(make_rows(5, 7))
    buffer.push(np.concatenate([make_rows(5), make_rows(5), make_rows(8)]))
    assert buffer.counts["duplicates"] == 2
    assert push_later_event(buffer) == [[5, 7, 8]]
    assert buffer.push(make_rows(7)) == []
    assert buffer.counts["late"] == 1


TIMES_US = st.lists(st.integers(0, 3_000), min_size=1, max_size=60)


@given(TIMES_US, st.randoms(use_true_random=False))
def test_delays_within_the_bound_and_duplicates_do_not_change_the_state(times_us: list[int], random) -> None:
    ordered = make_rows(*sorted(times_us))
    delays_us = np.array([random.randint(0, BOUND_US) for _ in times_us])
    arrival_order = np.argsort(ordered["t"] + delays_us, kind="stable")
    pushed_positions = [i for i in arrival_order for _ in range(random.choice([1, 1, 2, 3]))]
    clean_consumer = Consumer()
    faulty_consumer = Consumer()
    clean = push_all([ordered], clean_consumer)
    faulty = push_all([ordered[i : i + 1] for i in pushed_positions], faulty_consumer)
    push_later_event(clean)
    push_later_event(faulty)
    assert clean_consumer.state.tolist() == faulty_consumer.state.tolist()
    assert clean.counts["handed_over"] == faulty.counts["handed_over"] == len(ordered)
    assert faulty.counts["late"] == 0


@given(TIMES_US, st.integers(0, 60))
def test_the_grouping_of_arrivals_does_not_change_the_state_even_with_late_events(
    times_us: list[int], n_first: int
) -> None:
    """The arrivals include late events."""
    arrivals = make_rows(*times_us)
    whole_consumer = Consumer()
    parts_consumer = Consumer()
    whole = push_all([arrivals], whole_consumer)
    parts = push_all([arrivals[:n_first], arrivals[n_first:]], parts_consumer)
    push_later_event(whole)
    push_later_event(parts)
    assert (whole_consumer.state.tolist(), whole.counts) == (parts_consumer.state.tolist(), parts.counts)


@given(TIMES_US)
def test_exactly_the_late_events_are_dropped(times_us: list[int]) -> None:
    buffer = make_buffer()
    buffer.push(make_rows(*times_us))
    late = [t for i, t in enumerate(times_us) if t < max(times_us[: i + 1]) - BOUND_US]
    assert buffer.counts["late"] == len(late)
    handed_over = [t for batch in push_later_event(buffer) for t in batch]
    assert handed_over == sorted(handed_over)


@given(times_us=TIMES_US, n_before_save=st.integers(0, 60), n_repeated=st.integers(0, 60))
def test_a_restored_buffer_that_receives_some_events_again_hands_none_over_twice(
    tmp_path_factory: pytest.TempPathFactory, times_us: list[int], n_before_save: int, n_repeated: int
) -> None:
    path = tmp_path_factory.mktemp("state") / "state.npz"
    arrivals = make_rows(*times_us)
    undisturbed_consumer = Consumer()
    undisturbed = push_all([arrivals], undisturbed_consumer)
    push_later_event(undisturbed)

    first_consumer = Consumer()
    before = push_all([arrivals[:n_before_save]], first_consumer)
    save_arrays(path, before.state() | {"network": first_consumer.state})
    before.push(arrivals[n_before_save:])  # lost in the crash
    second_consumer = Consumer()
    after = push_all([], second_consumer)
    arrays = load_arrays(path)
    after.restore(arrays)
    second_consumer.state = arrays["network"]
    after.push(arrivals[max(0, n_before_save - n_repeated) :])
    push_later_event(after)
    assert second_consumer.state.tolist() == undisturbed_consumer.state.tolist()
    assert after.counts["handed_over"] == undisturbed.counts["handed_over"]


def test_later_events_do_not_change_an_earlier_state() -> None:
    buffer = make_buffer()
    buffer.push(make_rows(1, 2, 3))
    state = buffer.state()
    before = {name: array.copy() for name, array in state.items()}
    buffer.push(make_rows(5_000, 6_000))
    assert all(np.array_equal(before[name], array) for name, array in state.items())


def test_the_state_of_a_buffer_with_another_bound_is_refused() -> None:
    with pytest.raises(GraphError, match=r"window, bound and batch \[100, 250, 100\], this one has \[100, 251, 100\]"):
        make_buffer(bound_us=251).restore(make_buffer().state())


def test_the_error_for_a_damaged_file_states_its_name(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save_arrays(path, make_buffer().state())
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no archive", whole[:60] + b"xx" + whole[62:]):
        path.write_bytes(damaged)
        with pytest.raises(GraphError, match=r"state\.npz: no state of a stream, or a damaged one; move it away"):
            load_arrays(path)


def test_a_failed_save_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save_arrays(path, {"a": np.arange(3)})
    with pytest.raises(TypeError):
        save_arrays(path, {"a": np.arange(4), 1: np.arange(3)})  # type: ignore[dict-item]
    assert load_arrays(path)["a"].tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


@pytest.mark.parametrize("options", [{"window_us": 0}, {"bound_us": -1}, {"max_events": 0}])
def test_the_error_for_an_invalid_option_states_its_name(options: dict[str, int]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(GraphError, match=f"{name} {value}"):
        make_buffer(**options)


def test_a_thousand_assets_fit_the_memory_budget_of_the_source_articles() -> None:
    """TGN-42: the whole system stays below 50 MB. The buffer receives 20,000 events per second for three seconds."""
    rng = np.random.default_rng(0)
    buffer = EventStream(len)
    tracemalloc.start()
    for start_us in range(0, 3_000_000, 50_000):
        arrivals = np.empty(1_000, EVENT_ID)
        arrivals["t"] = start_us + rng.integers(0, 50_000, 1_000)
        arrivals["key"] = rng.integers(0, 2**63, 1_000)
        buffer.push(arrivals)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # the last 1.1 of three seconds are still in the buffer
    assert buffer.counts["handed_over"] > 30_000
    assert peak_bytes < 50e6
