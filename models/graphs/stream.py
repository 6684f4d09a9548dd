"""A buffer that puts events in order: they arrive one by one, late, out of order or twice, and leave as sorted batches.

The exchange's time is divided into windows of ``window_us``. A window is handed over once no further event of it can
arrive in time: sorted, and in several batches where it has many events. Which events are handed over, and where batches
are cut, depends on the events alone and not on how they arrived. So a network behind a faulty stream ends in the same
state as one behind a faultless stream.
Glossary: e events · t microseconds UTC by the exchange · key 64 bits that identify an event.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from models.graphs.snapshot import GraphError

T = TypeVar("T")
NO_TIME = -(1 << 62)
COUNTS = ("received", "late", "duplicates", "handed_over")
EVENT_ID = np.dtype([("t", np.int64), ("key", np.uint64)])
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class EventStream(Generic[T]):
    """A buffer in front of a network. Rows are structured arrays (e,) with the fields ``t``, ``key`` and any others.

    An event is late, and dropped, if an event more than ``bound_us`` newer arrived before it. It is a duplicate, and
    dropped, if its key arrived before. ``consume`` receives batches of rows sorted by time. The buffer reads no clock.
    It holds no more than the events of the last ``bound_us`` + ``window_us`` and their keys.
    """

    def __init__(
        self,
        consume: Callable[[np.ndarray], T],
        *,
        window_us: int = 100_000,
        bound_us: int = 1_000_000,
        max_events: int = 1_000,
    ) -> None:
        if window_us < 1 or bound_us < 0 or max_events < 1:
            raise GraphError(
                f"window_us {window_us}, bound_us {bound_us}, max_events {max_events}: the bound may be 0, the others "
                "must be positive"
            )
        self._consume = consume
        self.window_us = window_us
        self.bound_us = bound_us
        self.max_events = max_events
        self.counts = dict.fromkeys(COUNTS, 0)
        self._newest = NO_TIME
        self._received = np.empty(0, EVENT_ID)  # events that a duplicate could still repeat in time
        self._waiting: list[np.ndarray] = []
        self._end = NO_TIME  # all events before this time have been handed over

    def push(self, rows: np.ndarray) -> list[T]:
        """Adds rows, in the order of arrival. Returns what ``consume`` returned for each batch that they complete."""
        newest = np.maximum.accumulate(np.concatenate([[self._newest], rows["t"]]))
        timely = rows[rows["t"] >= newest[:-1] - self.bound_us]
        fresh = timely[self._is_new(timely["key"])]
        self._newest = int(newest[-1])
        self.counts["received"] += len(rows)
        self.counts["late"] += len(rows) - len(timely)
        self.counts["duplicates"] += len(timely) - len(fresh)
        event_ids = np.empty(len(fresh), EVENT_ID)
        event_ids["t"] = fresh["t"]
        event_ids["key"] = fresh["key"]
        received = np.concatenate([self._received, event_ids])
        self._received = received[received["t"] >= self._newest - self.bound_us]  # an older duplicate is late anyway
        self._waiting.append(fresh)
        return self._hand_over((self._newest - self.bound_us) // self.window_us * self.window_us)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that ``restore`` needs, as plain arrays that later calls do not change."""
        waiting = {"waiting": np.concatenate(self._waiting)} if self._waiting else {}
        counts = np.array([self.counts[name] for name in COUNTS], dtype=np.int64)
        shape = np.array([self.window_us, self.bound_us, self.max_events], dtype=np.int64)
        return {"newest": np.array(self._newest), "seen": self._received, "counts": counts, "shape": shape} | waiting

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continues from the arrays of an earlier ``state``. Raises GraphError if that stream had another window, bound
        or batch size."""
        shape = [self.window_us, self.bound_us, self.max_events]
        if arrays["shape"].tolist() != shape:
            raise GraphError(
                f"the state was left by a stream with window, bound and batch {arrays['shape'].tolist()}, this one has "
                f"{shape}; give it the same, or begin without the state"
            )
        self._newest = int(arrays["newest"])
        self._received = arrays["seen"]
        self._end = NO_TIME
        self._waiting = [arrays["waiting"]] if "waiting" in arrays else []
        self.counts = dict(zip(COUNTS, arrays["counts"].tolist(), strict=True))

    def _is_new(self, keys: np.ndarray) -> np.ndarray:
        """True (e,) at the first arrival of each key; False for keys that were received before."""
        ascending, first = np.unique(keys, return_index=True)
        is_new = np.zeros(len(keys), dtype=bool)
        is_new[first] = True
        if len(keys):  # the received keys are searched for among these few, so the many need no sorting
            position = np.minimum(np.searchsorted(ascending, self._received["key"]), len(ascending) - 1)
            is_new[first[position[ascending[position] == self._received["key"]]]] = False
        return is_new

    def _hand_over(self, end: int) -> list[T]:
        """Consumes all waiting events before time ``end``, batch by batch. Returns what ``consume`` returned."""
        if end <= self._end or not self._waiting:
            return []
        rows = np.concatenate(self._waiting)
        self._end = end
        is_due = rows["t"] < end
        self._waiting = [rows[~is_due]]
        rows = rows[is_due]
        results = []
        for batch in self._batches(rows[np.lexsort((rows["key"], rows["t"]))]):
            self.counts["handed_over"] += len(batch)
            results.append(self._consume(batch))
        return results

    def _batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The sorted rows in batches, cut after each window and, within it, after ``max_events``; simultaneous events
        stay together."""
        if not len(rows):
            return
        window = rows["t"] // self.window_us
        position = np.searchsorted(rows["t"], rows["t"]) - np.searchsorted(window, window)
        part = position // self.max_events
        cuts = np.flatnonzero((np.diff(window) != 0) | (np.diff(part) != 0)) + 1
        yield from np.split(rows, cuts)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes all arrays into one file. After a crash, the file has either its old or its new contents, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes every name for allow_pickle
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file. Raises GraphError for a file that is damaged or was not written by ``save_arrays``."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except UNREADABLE as exc:
        raise GraphError(f"{path}: no state of a stream, or a damaged one; move it away to begin anew ({exc})") from exc
