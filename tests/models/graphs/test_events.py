"""Events that temporal networks read (TGN-01, see .github/sources.md): validation, slicing and joining."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.graphs.events import EVENT_KINDS, Events, concatenate, events_from_edges
from models.graphs.snapshot import GraphError

NODES = ("asset:A", "asset:B", "trade:A")


def make_events(src: list[int], dst: list[int], t: list[int], features: list[float] | None = None) -> Events:
    """Events of the first kind between NODES, with one feature, 0 by default."""
    return Events(
        src=np.array(src, dtype=np.int64),
        dst=np.array(dst, dtype=np.int64),
        t=np.array(t, dtype=np.int64),
        kind=np.zeros(len(src), dtype=np.int8),
        features=np.array(features or [0.0] * len(src), dtype=np.float32)[:, None],
        nodes=NODES,
    )


def test_a_slice_keeps_the_nodes() -> None:
    sliced = make_events([2, 0, 2], [0, 1, 0], [1, 2, 2], [1.0, 2.0, 3.0])[1:]
    assert (len(sliced), sliced.nodes) == (2, NODES)
    assert sliced.features[:, 0].tolist() == [2.0, 3.0]


def test_between_excludes_its_start_and_includes_its_end() -> None:
    selected = make_events([2] * 5, [0] * 5, [1, 2, 2, 3, 4]).between(1, 3)
    assert selected.t.tolist() == [2, 2, 3]
    assert len(selected.between(9, 5)) == 0


@pytest.mark.parametrize(
    ("src", "dst", "t", "message"),
    [
        ([2, 3], [0, 0], [1, 2], r"event 1 .*src is no position in the 3 nodes"),
        ([2, -1], [0, 0], [1, 2], r"event 1 .*src is no position"),
        ([2, 2], [0, 7], [1, 2], r"event 1 .*dst is no position"),
        ([2, 1], [0, 1], [1, 2], r"event 1 \(1 → 1 at 2 us\): it runs from a node to itself"),
        ([2, 2], [0, 0], [-5, 2], r"event 0 .*time is negative"),
        ([2, 2, 2], [0, 0, 0], [1, 3, 2], r"event 2 .*before the event ahead of it; sort"),
    ],
)
def test_the_error_for_an_invalid_event_states_its_position(
    src: list[int], dst: list[int], t: list[int], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        make_events(src, dst, t)


def test_nan_features_unknown_kinds_and_wrong_types_are_refused() -> None:
    valid = make_events([2, 2], [0, 1], [1, 2])
    with pytest.raises(GraphError, match=r"event 1 .*NaN or infinite"):
        replace(valid, features=np.array([[0.0], [np.nan]], dtype=np.float32))
    with pytest.raises(GraphError, match=r"event 0 .*kind is not in"):
        replace(valid, kind=np.array([len(EVENT_KINDS), 0], dtype=np.int8))
    with pytest.raises(GraphError, match=r"t is float64 .*give int64"):
        replace(valid, t=valid.t / 2)
    with pytest.raises(GraphError, match="dst is int64"):
        replace(valid, dst=valid.dst[:1])


def test_parts_are_joined_by_time_and_simultaneous_events_keep_the_order_of_the_parts() -> None:
    one = make_events([2, 2], [0, 0], [1, 5], [1.0, 2.0])
    other = make_events([0, 0, 0], [1, 1, 1], [0, 5, 6], [3.0, 4.0, 5.0])
    joined = concatenate([one, other])
    assert joined.t.tolist() == [0, 1, 5, 5, 6]
    assert joined.features[:, 0].tolist() == [3.0, 1.0, 2.0, 4.0, 5.0]
    assert joined.src.tolist() == [0, 2, 2, 0, 0]


def test_parts_between_other_nodes_are_refused() -> None:
    one = make_events([2], [0], [1])
    with pytest.raises(GraphError, match="part 1 has 3 nodes"):
        concatenate([one, replace(one, nodes=("asset:A", "asset:C", "trade:A"))])
    with pytest.raises(GraphError, match="no events to join"):
        concatenate([])


def test_edges_become_events_between_their_ids_in_ascending_order() -> None:
    events = events_from_edges(np.array([30, 10]), np.array([10, 20]), np.array([100, 101]))
    assert events.nodes == ("10", "20", "30")
    assert (events.src.tolist(), events.dst.tolist()) == ([2, 0], [0, 1])
    assert events.t.tolist() == [100_000_000, 101_000_000]
    assert events.features.shape == (2, 0)


def test_all_recorded_messages_of_a_college_become_events(shared_data: Path) -> None:
    src, dst, seconds = np.loadtxt(shared_data / "temporal_graphs/CollegeMsg.txt.gz", dtype=np.int64).T
    events = events_from_edges(src, dst, seconds)
    assert (len(events), len(events.nodes)) == (59_835, 1_899)  # as SNAP states
