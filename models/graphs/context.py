"""What the bars of a market stand among: graphs of its assets, and what happened from one close to the next.

Glossary: t bars · e events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.graphs.events import Events
from models.graphs.snapshot import GraphError, Snapshot
from models.sessions import microseconds


@dataclass(frozen=True, eq=False)
class BarEvents:
    """Events by the bar at whose close they are known, the first close that they do not come after.

    ``opens`` (t,) names the bars, ``closes`` (t + 1,) are theirs with that of the bar before, datetime64[us] both: bar
    i has the events with closes[i] < t ≤ closes[i + 1]. What lies outside belongs to none.
    """

    events: Events
    opens: np.ndarray
    closes: np.ndarray

    @classmethod
    def of(cls, events: Events, opens: np.ndarray, closes: np.ndarray) -> BarEvents:
        """The events of bars with these opens and closes, (t,) each; the first has those since its own open."""
        return cls(events, opens, np.concatenate([opens[:1], closes]))

    def of_bars(self, ts: np.ndarray) -> BarEvents:
        """Those of the bars that opened at ``ts``, any number of successive ones. Raises GraphError for others."""
        first = int(np.searchsorted(self.opens, ts[0]))
        bars, ends = slice(first, first + len(ts)), self.closes[first : first + len(ts) + 1]
        if not np.array_equal(self.opens[bars], ts):
            raise GraphError(
                f"the bars from {ts[0]} to {ts[-1]} are not successive ones of the events' {len(self.opens)} bars; "
                "give both the same grid"
            )
        return BarEvents(self.events.between(*microseconds(ends[[0, -1]])), self.opens[bars], ends)

    @property
    def spans(self) -> np.ndarray:
        """(t, 2): from which event to which each bar's own reach."""
        ends = np.searchsorted(self.events.t, microseconds(self.closes), side="right")
        return np.stack([ends[:-1], ends[1:]], axis=1)

    def age(self, bar_us: int) -> np.ndarray:
        """How many bars of ``bar_us`` (e,) each event comes before its bar's close. None may lie outside the bars."""
        closes = microseconds(self.closes)
        return (closes[np.searchsorted(closes, self.events.t)] - self.events.t) / bar_us


@dataclass(frozen=True, eq=False)
class SideInputs:
    """What a network may read beside the bars of a panel: ``snapshots`` of graphs between its assets, None for one that
    reads no graph, and ``events`` of its market."""

    snapshots: Sequence[Snapshot] | None = None
    events: BarEvents | None = None
