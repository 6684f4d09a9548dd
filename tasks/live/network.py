"""A temporal graph network fed by a stream: it processes every bar at its close, as a night does, and forecasts.

As in a night, its state starts empty ``context_bars`` before the segment of the bar to forecast, and again with each
new segment (see models/training/fit.py). It is not trained here.
Glossary: e rows · n assets · t bars. Times are microseconds UTC.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models import zoo
from models.features.indicators import compute_features
from models.graphs.context import BarEvents, SideInputs
from models.graphs.events import EVENT_KINDS
from models.graphs.market_stream import MARKET_ROW, MarketEvents
from models.nets.forecast import Forecast
from models.panel import Panel
from models.scoring.memory_risk import freshness
from models.sessions import FAR_FUTURE, microseconds
from models.training.artifact import Artifact, file_hash, load_artifact
from models.training.errors import DamagedArtifactError
from models.training.fit import make_deterministic, predictions_of, segment_bars
from models.training.incremental_inference import step_forecasts
from tasks.errors import NoModelError
from tasks.forecasts import stream_rows
from tasks.live.event_feed import CloseResult, DueBars
from tasks.live.market import LiveMarket, MarketData
from tasks.night import Night
from tasks.panels import LARGE_VALUE, event_rows_for_bars, instants, merge_by_time
from warehouse.publish import read_published
from warehouse.tables import read_query

logger = logging.getLogger(__name__)

MAX_STALENESS_US = 3_600_000_000  # TGN-38
NO_INSTANT = 0


@dataclass(frozen=True, eq=False)
class PublishedFold:
    """A model's newest published fold; its test window has ``test_bars`` bars from ``test_start`` on."""

    model: str
    trial_id: str
    fold: int
    sha256: str
    artifact: Artifact
    test_start: np.datetime64
    test_bars: int

    @property
    def provenance(self) -> dict[str, object]:
        """The columns of store.stream_forecasts that name the fold."""
        return {"trial_id": self.trial_id, "fold": self.fold, "artifact_sha256": self.sha256}


def published_fold(market: LiveMarket, model: str) -> PublishedFold:
    """The newest published fold of ``model``.

    Raises NoModelError for a model that has none or reads no events, NotPublishedError, ArtifactError.
    """
    try:
        zoo.network(model)
    except zoo.UnknownModelError as exc:
        raise NoModelError(f"{exc}; only networks can be fed") from exc
    folds = _newest_fold(market, model)
    if not folds.num_rows:
        raise NoModelError(
            f"no published {market.source} night of {market.universe.name} has a fold of {model}; run one with this "
            "model first"
        )
    row = folds.to_pylist()[0]
    path = market.warehouse.artifacts / row["artifact"]
    if file_hash(path) != row["artifact_sha256"]:
        raise DamagedArtifactError(f"{path}: not the file that the fold wrote; delete it and run the night again")
    artifact = load_artifact(path)
    if not zoo.network(model).events:
        raise NoModelError(f"{model} reads no events between bars: stream with a temporal graph network, such as tgn")
    start, end = (instants(folds[name])[0] for name in ("test_start", "test_end"))
    bars = int((end - start).astype(np.int64) // artifact.header.bar_us)
    return PublishedFold(model, row["trial_id"], row["fold"], row["artifact_sha256"], artifact, start, bars)


def _newest_fold(market: LiveMarket, model: str) -> pa.Table:
    with read_published(market.warehouse) as con:
        return read_query(con, "newest_fold", source=market.source, universe=market.universe.name, model=model)


@dataclass(frozen=True, eq=False)
class NetworkState:
    """The state of a network after the bar that closed at ``close``.

    ``segment``: open of the first bar of the current segment; ``state``: the network's tensors; ``events``: the event
    builder with the past events that features look back to; ``last_event_us`` (n,): each asset's last event.
    """

    close: int
    segment: int
    state: Any
    events: MarketEvents
    last_event_us: np.ndarray


class LiveNetwork:
    """A published fold after the newest closed bar of its market, fed with rows of ``symbols``, a subset of the
    market's.

    Rows wait until their bar has closed; the network then reads those that a night reads too. ``due`` returns the bars
    that have closed by the newest row; ``close`` works on copies, so that ``consume`` may be called meanwhile.
    """

    def __init__(self, fold: PublishedFold, market: LiveMarket, symbols: Sequence[str]) -> None:
        make_deterministic()
        self.fold = fold
        self.market = market
        self.bar_us = fold.artifact.header.bar_us
        self.names = market.universe.symbols
        self.name_index = np.array([self.names.index(symbol) for symbol in symbols])  # position of each fed symbol
        self.current: NetworkState | None = None
        self.waiting = [np.empty(0, MARKET_ROW)]
        self.newest_event_us = NO_INSTANT
        self.last_failed_close_us = NO_INSTANT

    def begin(self) -> np.ndarray:
        """Sets the state to the newest published bar; returns the stored rows after it. Raises NoBarsError."""
        data = self.market.published_data(datetime.now(UTC))
        rows = self._stored_rows(data)
        close = int(microseconds(data.closes)[-1])
        self.current = self._initial_state(data, _features(data), rows, len(data.bars))
        self.newest_event_us = close
        self.last_failed_close_us = NO_INSTANT
        self.waiting = [rows[:0]]
        later = rows[rows["t"] > close]
        fed_index = np.full(len(self.names), -1)
        fed_index[self.name_index] = np.arange(len(self.name_index))
        later["symbol"] = fed_index[later["symbol"]]
        return later[later["symbol"] >= 0]

    def consume(self, rows: np.ndarray) -> None:
        """Keeps the next rows until their bar closes; ignores rows of bars that are processed already."""
        assert self.current is not None
        self.newest_event_us = max(self.newest_event_us, int(rows["t"][-1]))
        small = (rows["kind"] == EVENT_KINDS.index("trade")) & (rows["price"] * rows["size"] < LARGE_VALUE)
        rows = rows[(rows["t"] > self.current.close) & (rows["kind"] != EVENT_KINDS.index("book")) & ~small]
        rows["symbol"] = self.name_index[rows["symbol"]]
        self.waiting.append(rows)

    def due(self) -> DueBars | None:
        """The bars that closed before the newest row: no event of them can still arrive."""
        until = (self.newest_event_us - 1) // self.bar_us * self.bar_us
        if self.current is None or until <= max(self.current.close, self.last_failed_close_us):
            return None
        rows = np.concatenate(self.waiting)
        return DueBars(np.datetime64(until, "us"), rows[rows["t"] <= until])

    def close(self, due: DueBars) -> CloseResult:
        """The forecasts at each of the due closes, except those that failed before. Raises what
        LiveMarket.data_at_close does."""
        state = self.current
        data = self.market.data_at_close(due.close)
        forecasts: list[Forecast] = []
        assert state is not None
        features = _features(data)
        closes = microseconds(data.closes)
        new = slice(int(np.searchsorted(closes, state.close, side="right")), len(closes))
        fresh = [
            freshness(_last_event_us(state.last_event_us, due.rows, t), t, MAX_STALENESS_US)
            for t in closes[new].tolist()
        ]
        for bars in self._by_segment(features.ts, range(new.start, new.stop)):
            if state.segment != self._segment_start(features.ts, bars.start):
                state = self._initial_state(data, features, self._stored_rows(data), bars.start)
            state, segment_forecasts = self._advance(state, data, features, due.rows, bars)
            forecasts += segment_forecasts
        predictions = predictions_of(forecasts, self.fold.artifact.header.horizons, features.rows(new.start, new.stop))
        if self.fold.sha256 not in _newest_fold(self.market, self.fold.model)["artifact_sha256"].to_pylist():
            logger.warning("a newer fold of %s is published; start the stream again to use it", self.fold.model)
        is_reported = closes[new] > self.last_failed_close_us
        rows = stream_rows(predictions, data.closes[new], np.stack(fresh), is_reported, self.fold.provenance)
        return CloseResult(state, rows)

    def commit(self, result: CloseResult) -> None:
        """Makes the result's state the current one and drops the rows up to its close."""
        self.current = result.state
        rows = np.concatenate(self.waiting)
        self.waiting = [rows[rows["t"] > result.state.close]]

    def give_up(self, due: DueBars) -> int:
        """How many bars get no forecast because this close failed."""
        assert self.current is not None
        before = max(self.current.close, self.last_failed_close_us)
        self.last_failed_close_us = int(due.close.astype(np.int64))
        return (self.last_failed_close_us - before) // self.bar_us

    def _empty_tensors(self) -> Any:
        """The network's tensors before the first bar."""
        return self.fold.artifact.network.initial_state(1, len(self.names))  # type: ignore[operator]

    def _segment_start(self, ts: np.ndarray, bar: int) -> int:
        """Open of the first bar of the segment that position ``bar`` of the grid ``ts`` is in; ``bar`` may be one past
        the grid's end."""
        length = segment_bars(self.fold.test_bars, len(self.names))
        start = int(np.searchsorted(ts, self.fold.test_start))
        return int(microseconds(ts)[0]) + (start + max(0, bar - start) // length * length) * self.bar_us

    def _by_segment(self, ts: np.ndarray, bars: range) -> list[range]:
        """``bars`` split into ranges that each lie in one segment."""
        cuts = [bar for bar in bars[1:] if self._segment_start(ts, bar) != self._segment_start(ts, bar - 1)]
        return [range(*ends) for ends in pairwise([bars.start, *cuts, bars.stop])]

    def _stored_rows(self, data: MarketData) -> np.ndarray:
        """The event rows that a night at this instant would read."""
        now = datetime.now(UTC)
        market = self.market
        night = Night(now.date(), market.source, market.universe, market.warehouse, now)
        return event_rows_for_bars(night, data.bars.ts[0], FAR_FUTURE)

    def _initial_state(self, data: MarketData, features: Panel, rows: np.ndarray, bar: int) -> NetworkState:
        """The state from which a night forecasts ``bar``: after the context bars and the segment's bars before it."""
        segment = self._segment_start(features.ts, bar)
        ts = microseconds(features.ts)
        first = (segment - int(ts[0])) // self.bar_us - self.fold.artifact.header.config.context_bars
        no_event = np.full(len(self.names), NO_INSTANT)
        empty = NetworkState(NO_INSTANT, segment, self._empty_tensors(), MarketEvents(self.names), no_event)
        return self._advance(empty, data, features, rows, range(min(first, bar), bar))[0]

    def _advance(
        self, before: NetworkState, data: MarketData, features: Panel, rows: np.ndarray, bars: range
    ) -> tuple[NetworkState, list[Forecast]]:
        """The state after ``bars`` and the forecasts at them; reads those of the ``rows`` (e,) that are later than the
        state ``before``."""
        close = int(microseconds(data.closes)[bars.stop - 1])
        events = MarketEvents(self.names)
        events.restore(before.events.state())
        new_rows, funding_rows = (
            part[(part["t"] > before.close) & (part["t"] <= close)] for part in (rows, data.funding_rows)
        )
        bar_events = BarEvents.from_events(events(merge_by_time(new_rows, funding_rows)), features.ts, data.closes)
        graph = zoo.graph_of(self.fold.artifact.header.spec)
        snapshots = self.market.snapshots(graph, features.ts[max(0, bars.start - 1) : bars.stop])
        side_inputs = SideInputs(snapshots, bar_events)
        begins = before.close == NO_INSTANT
        forecasts, state = step_forecasts(self.fold.artifact, features, side_inputs, bars, before.state, begins)
        last_event_us = _last_event_us(before.last_event_us, new_rows, close)
        return NetworkState(close, before.segment, state, events, last_event_us), forecasts

    def state(self) -> dict[str, np.ndarray]:
        """The network's tensors by their position in its state, the waiting rows, and the fold's hash.

        The names of these arrays are part of the state files' format.
        """
        current = self.current
        assert current is not None
        self.waiting = [np.concatenate(self.waiting)]
        numbers = np.array([current.close, current.segment, self.newest_event_us, self.last_failed_close_us])
        fold = np.array(self.fold.sha256)
        arrays = {"fold": fold, "numbers": numbers, "heard": current.last_event_us, "waiting": self.waiting[0]}
        arrays |= {f"events.{name}": array for name, array in current.events.state().items()}
        tensors = _tensors_by_position(current.state)
        return arrays | {f"state.{position}": tensor.numpy().copy() for position, tensor in tensors.items()}

    def reason_to_restart(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Why this network cannot continue from these arrays; empty if it can."""
        if str(arrays.get("fold")) != self.fold.sha256:
            return "the network has been fitted anew"
        if arrays["events.symbols"].tolist() != list(self.names):
            saved = ", ".join(arrays["events.symbols"].tolist())
            return f"it was saved for {saved}, the universe has {', '.join(self.names)}"
        empty = _tensors_by_position(self._empty_tensors())
        shapes = {f"state.{position}": tensor.shape for position, tensor in empty.items()}
        if {name: array.shape for name, array in arrays.items() if name.startswith("state.")} != shapes:
            return "it was saved for another network"
        return ""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restores the state that ``state`` returned."""
        events = MarketEvents(self.names)
        events.restore({name: arrays[f"events.{name}"] for name in events.state()})
        close, segment, self.newest_event_us, self.last_failed_close_us = arrays["numbers"].tolist()
        state = _restored_tensors(self._empty_tensors(), arrays, "state")
        self.current = NetworkState(close, segment, state, events, arrays["heard"])
        self.waiting = [arrays["waiting"]]


def _features(data: MarketData) -> Panel:
    return compute_features(data.bars, data.closes)


def _last_event_us(before: np.ndarray, rows: np.ndarray, until: int) -> np.ndarray:
    """Each asset's last event time (n,) up to ``until``; ``before`` (n,) is the one before these rows (e,)."""
    last = before.copy()
    rows = rows[rows["t"] <= until]
    np.maximum.at(last, rows["symbol"], rows["t"])
    return last


def _tensors_by_position(state: Any, position: str = "") -> dict[str, Tensor]:
    """The tensors of nested tuples by position: "0.1" is the second element of the first."""
    if isinstance(state, Tensor):
        return {position: state}
    parts = (_tensors_by_position(part, f"{position}.{i}".lstrip(".")) for i, part in enumerate(state))
    return {name: tensor for part in parts for name, tensor in part.items()}


def _restored_tensors(template: Any, arrays: Mapping[str, np.ndarray], position: str) -> Any:
    """Nested tuples shaped like ``template``, with the tensors of ``arrays``."""
    if isinstance(template, Tensor):
        return torch.from_numpy(arrays[position].copy())
    parts = [_restored_tensors(part, arrays, f"{position}.{i}") for i, part in enumerate(template)]
    return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
