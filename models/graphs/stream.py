"""Events that arrive one by one, out of order and more than once, as the batches that a network may be fed.

The exchange's time is cut into windows of ``window_us``. A window is handed over once no event of it can still be in
time, sorted, and in parts where it is long. What is handed over, and where it is cut, follows from the events alone and
not from how they arrived, so a stream that met with faults leaves a network in the state of one that met with none.
Glossary: e events · t microseconds UTC by the exchange · key 64 bits that tell one event from another.
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
SEEN = np.dtype([("t", np.int64), ("key", np.uint64)])
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class EventStream(Generic[T]):
    """A buffer in front of a network. Rows are structured arrays (e,) with the fields ``t`` and ``key`` and any others.

    An event is late, and dropped, when one more than ``bound_us`` newer has arrived before it; it is a duplicate, and
    dropped, when its key has. ``consume`` is given batches of rows by time. It keeps no clock, and holds no more than
    the events of the last ``bound_us`` + ``window_us`` and their keys.
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
        self.window_us, self.bound_us, self.max_events = window_us, bound_us, max_events
        self.counts = dict.fromkeys(COUNTS, 0)
        self._newest = NO_TIME
        self._seen = np.empty(0, SEEN)
        self._waiting: list[np.ndarray] = []
        self._end = NO_TIME  # up to which all has been handed over

    @property
    def newest(self) -> int | None:
        """The latest time of any event so far; None before the first."""
        return None if self._newest == NO_TIME else self._newest

    def push(self, rows: np.ndarray) -> list[T]:
        """What ``consume`` returned for each batch that these rows, in the order of arrival, have completed."""
        newest = np.maximum.accumulate(np.concatenate([[self._newest], rows["t"]]))
        timely = rows[rows["t"] >= newest[:-1] - self.bound_us]
        fresh = timely[self._is_new(timely["key"])]
        self._newest = int(newest[-1])
        self.counts["received"] += len(rows)
        self.counts["late"] += len(rows) - len(timely)
        self.counts["duplicates"] += len(timely) - len(fresh)
        seen = np.empty(len(fresh), SEEN)
        seen["t"], seen["key"] = fresh["t"], fresh["key"]
        self._seen = np.concatenate([self._seen, seen])
        self._seen = self._seen[self._seen["t"] >= self._newest - self.bound_us]  # an older repeat is late anyway
        self._waiting.append(fresh)
        return self._hand_over((self._newest - self.bound_us) // self.window_us * self.window_us)

    def finish(self) -> list[T]:
        """What ``consume`` returned for all that still waits; whatever belongs before its end is late from here on."""
        if self._newest == NO_TIME:
            return []
        end = (self._newest // self.window_us + 1) * self.window_us
        self._newest = end + self.bound_us
        return self._hand_over(end)

    def state(self) -> dict[str, np.ndarray]:
        """Everything ``restore`` needs, as plain arrays that later calls do not alter."""
        waiting = {"waiting": np.concatenate(self._waiting)} if self._waiting else {}
        counts = np.array([self.counts[name] for name in COUNTS], dtype=np.int64)
        shape = np.array([self.window_us, self.bound_us, self.max_events], dtype=np.int64)
        return {"newest": np.array(self._newest), "seen": self._seen, "counts": counts, "shape": shape} | waiting

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from where ``state`` was taken. Raises GraphError for a stream with other windows or bounds."""
        shape = [self.window_us, self.bound_us, self.max_events]
        if arrays["shape"].tolist() != shape:
            raise GraphError(
                f"the state was left by a stream with window, bound and batch {arrays['shape'].tolist()}, this one has "
                f"{shape}; give it the same, or begin without the state"
            )
        self._newest, self._seen, self._end = int(arrays["newest"]), arrays["seen"], NO_TIME
        self._waiting = [arrays["waiting"]] if "waiting" in arrays else []
        self.counts = dict(zip(COUNTS, arrays["counts"].tolist(), strict=True))

    def _is_new(self, keys: np.ndarray) -> np.ndarray:
        """True (e,) at the first arrival of a key that was not seen before."""
        ascending, first = np.unique(keys, return_index=True)
        new = np.zeros(len(keys), dtype=bool)
        new[first] = True
        if len(keys):  # the few are searched for among themselves by the many, which so need not be sorted
            place = np.minimum(np.searchsorted(ascending, self._seen["key"]), len(ascending) - 1)
            new[first[place[ascending[place] == self._seen["key"]]]] = False
        return new

    def _hand_over(self, end: int) -> list[T]:
        """Consumes what waits of before ``end``, batch by batch."""
        if end <= self._end or not self._waiting:
            return []
        rows, self._end = np.concatenate(self._waiting), end
        due = rows["t"] < end
        rows, self._waiting = rows[due], [rows[~due]]
        results = []
        for batch in self._batches(rows[np.lexsort((rows["key"], rows["t"]))]):
            self.counts["handed_over"] += len(batch)
            results.append(self._consume(batch))
        return results

    def _batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Sorted rows, cut at every window and, inside it, after ``max_events``; never between simultaneous ones."""
        if not len(rows):
            return
        window = rows["t"] // self.window_us
        place = np.searchsorted(rows["t"], rows["t"]) - np.searchsorted(window, window)
        part = place // self.max_events
        cuts = np.flatnonzero((np.diff(window) != 0) | (np.diff(part) != 0)) + 1
        yield from np.split(rows, cuts)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Puts all arrays into one file, which is afterwards whole: either as it was, or as it is to be."""
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
    """The arrays of a file. Raises GraphError for one that ``save_arrays`` did not write or that is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except UNREADABLE as exc:
        raise GraphError(f"{path}: no state of a stream, or a damaged one; move it away to begin anew ({exc})") from exc
