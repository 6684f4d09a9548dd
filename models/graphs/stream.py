"""A buffer that receives events late, out of order or twice, and passes them on as sorted batches.

Time is divided into windows of ``window_us``. Once no further event of a window can arrive in time, the window is
handed over: sorted by (t, key), in batches of about ``max_events``. As long as no event is late, the batches depend on
the events alone and not on how they arrived. So a network behind a faulty stream ends in the same state as a network
behind a faultless stream.
Glossary: e events · t the event's time by the exchange's clock, microseconds since 1970 in UTC · key 64 bits that
identify an event.
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
NO_TIME = -(1 << 62)  # earlier than every event
COUNT_NAMES = ("received", "late", "duplicates", "handed_over")
EVENT_ID = np.dtype([("t", np.int64), ("key", np.uint64)])
READ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class EventStream(Generic[T]):
    """A buffer in front of a consumer, such as a network. Its rows are structured arrays (e,) with ``t``, ``key`` and
    any other fields.

    An event is late if an event more than ``bound_us`` newer arrived before it. An event is a duplicate if its key
    arrived before. Late events and duplicates are dropped and counted. ``consume`` receives each batch, sorted by
    (t, key). The buffer reads no clock: only an event's ``t`` moves it forward. It holds at most the events, and their
    keys, of the last ``bound_us`` + ``window_us``.
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
        self.counts = dict.fromkeys(COUNT_NAMES, 0)
        self._newest_t = NO_TIME
        self._received = np.empty(0, EVENT_ID)  # ids of the events whose duplicates would not be late
        self._waiting: list[np.ndarray] = []  # rows that have not been handed over
        self._handed_over_until = NO_TIME  # all events before this time have been handed over

    def push(self, rows: np.ndarray) -> list[T]:
        """Adds ``rows`` in the order of arrival. Returns the results of ``consume`` for the batches now handed over."""
        newest_t = np.maximum.accumulate(np.concatenate([[self._newest_t], rows["t"]]))
        newest_t_before = newest_t[:-1]  # the newest time that arrived before each row
        timely = rows[rows["t"] >= newest_t_before - self.bound_us]
        fresh = timely[self._is_new(timely["key"])]
        self._newest_t = int(newest_t[-1])
        self.counts["received"] += len(rows)
        self.counts["late"] += len(rows) - len(timely)
        self.counts["duplicates"] += len(timely) - len(fresh)
        event_ids = np.empty(len(fresh), EVENT_ID)
        event_ids["t"] = fresh["t"]
        event_ids["key"] = fresh["key"]
        received = np.concatenate([self._received, event_ids])
        self._received = received[received["t"] >= self._newest_t - self.bound_us]  # an older duplicate is late anyway
        self._waiting.append(fresh)
        return self._hand_over((self._newest_t - self.bound_us) // self.window_us * self.window_us)

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that ``restore`` needs; later calls do not change them."""
        waiting = {"waiting": np.concatenate(self._waiting)} if self._waiting else {}
        counts = np.array([self.counts[name] for name in COUNT_NAMES], dtype=np.int64)
        options = np.array([self.window_us, self.bound_us, self.max_events], dtype=np.int64)
        newest_t = np.array(self._newest_t)
        return {"newest": newest_t, "seen": self._received, "counts": counts, "shape": options} | waiting

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continues from the arrays that ``state`` returned.

        Raises GraphError if that buffer had another ``window_us``, ``bound_us`` or ``max_events``.
        """
        options = [self.window_us, self.bound_us, self.max_events]
        if arrays["shape"].tolist() != options:
            raise GraphError(
                f"the state was left by a stream with window, bound and batch {arrays['shape'].tolist()}, this one has "
                f"{options}; give it the same, or begin without the state"
            )
        self._newest_t = int(arrays["newest"])
        self._received = arrays["seen"]
        self._handed_over_until = NO_TIME
        self._waiting = [arrays["waiting"]] if "waiting" in arrays else []
        self.counts = dict(zip(COUNT_NAMES, arrays["counts"].tolist(), strict=True))

    def _is_new(self, keys: np.ndarray) -> np.ndarray:
        """(e,) bool, True where a key of ``keys`` (e,) occurs for the first time and was not received before."""
        unique_keys, first_index = np.unique(keys, return_index=True)
        is_new = np.zeros(len(keys), dtype=bool)
        is_new[first_index] = True
        if len(keys):  # only the few new keys are sorted; the many received keys are searched for among them
            position = np.minimum(np.searchsorted(unique_keys, self._received["key"]), len(unique_keys) - 1)
            is_duplicate = unique_keys[position] == self._received["key"]
            is_new[first_index[position[is_duplicate]]] = False
        return is_new

    def _hand_over(self, end: int) -> list[T]:
        """Hands all waiting events before time ``end`` to ``consume``, batch by batch. Returns the results."""
        if end <= self._handed_over_until or not self._waiting:
            return []
        rows = np.concatenate(self._waiting)
        self._handed_over_until = end
        is_due = rows["t"] < end
        self._waiting = [rows[~is_due]]
        rows = rows[is_due]
        results = []
        for batch in self._split_into_batches(rows[np.lexsort((rows["key"], rows["t"]))]):
            self.counts["handed_over"] += len(batch)
            results.append(self._consume(batch))
        return results

    def _split_into_batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the sorted ``rows`` in batches. A batch ends with its window.

        Within a window, the first event at or after every ``max_events``-th position begins another batch. Simultaneous
        events stay together, so a batch can have more than ``max_events`` events.
        """
        if not len(rows):
            return
        window_index = rows["t"] // self.window_us
        # of simultaneous events, all have the position of the first one
        position_in_window = np.searchsorted(rows["t"], rows["t"]) - np.searchsorted(window_index, window_index)
        batch_index = position_in_window // self.max_events
        batch_starts = np.flatnonzero((np.diff(window_index) != 0) | (np.diff(batch_index) != 0)) + 1
        yield from np.split(rows, batch_starts)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes all arrays to one file, atomically: after a crash the file has its old or its new contents, no mixture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub of savez reads every keyword as allow_pickle
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by name. Raises GraphError if it is damaged or was not written by ``save_arrays``."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except READ_ERRORS as exc:
        raise GraphError(f"{path}: no state of a stream, or a damaged one; move it away to begin anew ({exc})") from exc
