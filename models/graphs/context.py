"""What a network can read beside the bars of a panel: graphs of the assets, and the market's events by bar.

Glossary: t bars · e events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.graphs.events import Events
from models.graphs.snapshot import GraphError, Snapshot
from models.sessions import to_epoch_us


@dataclass(frozen=True, eq=False)
class BarEvents:
    """Events assigned to successive bars: an event belongs to the first bar that closes at or after the event's time.

    ``open_times`` (t,) are the bars' opens, ascending datetime64[us] in UTC. ``close_times`` (t + 1,), of the same
    type, contain the lower bound of the first bar's events, then each bar's close. Bar i has the events with times in
    (close_times[i], close_times[i + 1]]. Events outside (close_times[0], close_times[-1]] belong to no bar.
    """

    events: Events
    open_times: np.ndarray
    close_times: np.ndarray

    @classmethod
    def from_events(cls, events: Events, open_times: np.ndarray, close_times: np.ndarray) -> BarEvents:
        """``events`` assigned to the bars with these times, (t,) each. The panel has no bar before the first one, so
        the first bar has only the events after its own open."""
        return cls(events, open_times, np.concatenate([open_times[:1], close_times]))

    def for_bars(self, ts: np.ndarray) -> BarEvents:
        """The events of the bars that opened at ``ts`` (t,) datetime64, t ≥ 1. Raises GraphError unless these bars
        follow each other without a gap in ``open_times``."""
        first_bar = int(np.searchsorted(self.open_times, ts[0]))
        open_times = self.open_times[first_bar : first_bar + len(ts)]
        close_times = self.close_times[first_bar : first_bar + len(ts) + 1]
        if not np.array_equal(open_times, ts):
            raise GraphError(
                f"the bars from {ts[0]} to {ts[-1]} are not successive bars of the {len(self.open_times)} bars of the "
                "events; give the panel and the events the same grid"
            )
        start_us, end_us = to_epoch_us(close_times[[0, -1]])
        return BarEvents(self.events.between(start_us, end_us), open_times, close_times)

    @property
    def event_ranges(self) -> np.ndarray:
        """(start, stop) of each bar, (t, 2) int64: its events are at the positions [start, stop) of ``events``."""
        event_stops = np.searchsorted(self.events.t, to_epoch_us(self.close_times), side="right")
        return np.stack([event_stops[:-1], event_stops[1:]], axis=1)

    def age_in_bars(self, bar_us: int) -> np.ndarray:
        """Time (e,) float64 from each event to the close of its bar, in bars of ``bar_us`` microseconds.

        Every event must belong to a bar, as in the result of ``for_bars``. This is not checked: an event before the
        first bar counts to the first entry of ``close_times``, and an event after the last bar raises IndexError.
        """
        close_us = to_epoch_us(self.close_times)
        return (close_us[np.searchsorted(close_us, self.events.t)] - self.events.t) / bar_us


@dataclass(frozen=True, eq=False)
class SideInputs:
    """What a network can read beside the bars of a panel.

    ``snapshots``: graphs of the panel's assets, ascending in ``as_of``; None for a network that reads no graph.
    ``events``: the market's events by bar; None for a network that reads no events.
    """

    snapshots: Sequence[Snapshot] | None = None
    events: BarEvents | None = None
