"""What a network may read beside the bars of a panel: graphs of the assets, and the events of the market bar by bar.

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
    """Events assigned to bars: an event belongs to the first bar that closes at or after the event's time.

    ``opens`` (t,) are the opens of the bars. ``closes`` (t + 1,) are their closes, with the close of the bar before
    them in front. Both are datetime64[us]. Bar i has the events with closes[i] < t ≤ closes[i + 1]; events outside
    (closes[0], closes[-1]] belong to no bar.
    """

    events: Events
    opens: np.ndarray
    closes: np.ndarray

    @classmethod
    def from_events(cls, events: Events, opens: np.ndarray, closes: np.ndarray) -> BarEvents:
        """The events of the bars with these ``opens`` and ``closes``, (t,) each. The first bar has the events after its
        own open."""
        return cls(events, opens, np.concatenate([opens[:1], closes]))

    def for_bars(self, ts: np.ndarray) -> BarEvents:
        """The events of the bars that opened at ``ts``, one or more successive bars of these. Raises GraphError if they
        are not."""
        first = int(np.searchsorted(self.opens, ts[0]))
        opens = self.opens[first : first + len(ts)]
        closes = self.closes[first : first + len(ts) + 1]
        if not np.array_equal(opens, ts):
            raise GraphError(
                f"the bars from {ts[0]} to {ts[-1]} are not successive ones of the events' {len(self.opens)} bars; "
                "give both the same grid"
            )
        return BarEvents(self.events.between(*microseconds(closes[[0, -1]])), opens, closes)

    @property
    def spans(self) -> np.ndarray:
        """(t, 2): the position of each bar's first event, and the position after its last one."""
        ends = np.searchsorted(self.events.t, microseconds(self.closes), side="right")
        return np.stack([ends[:-1], ends[1:]], axis=1)

    def age(self, bar_us: int) -> np.ndarray:
        """Time (e,) from each event to its bar's close, in bars of ``bar_us``. Every event must belong to a bar."""
        closes = microseconds(self.closes)
        return (closes[np.searchsorted(closes, self.events.t)] - self.events.t) / bar_us


@dataclass(frozen=True, eq=False)
class SideInputs:
    """What a network may read beside the bars of a panel: ``snapshots`` of the graphs of its assets, None for a network
    that reads no graph; and ``events`` of its market, None for one that reads no events."""

    snapshots: Sequence[Snapshot] | None = None
    events: BarEvents | None = None
