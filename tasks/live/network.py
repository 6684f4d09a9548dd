"""A temporal graph network that a stream feeds: it takes in every bar at its close, as a night does, and forecasts.

It begins, as a night does, ``context_bars`` before the segment of the bar that is forecast, and anew with each segment,
see models/training/fit.py. It learns nothing here.
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
from tasks.panels import LARGE_VALUE, by_time, heard_rows, instants
from warehouse.publish import read_published
from warehouse.tables import read_query

logger = logging.getLogger(__name__)

MAX_STALENESS_US = 3_600_000_000  # TGN-38
NO_INSTANT = 0


@dataclass(frozen=True, eq=False)
class PublishedFold:
    """A model's newest published fold, whose test window is ``test_bars`` from ``test_start`` on."""

    model: str
    trial_id: str
    fold: int
    sha256: str
    artifact: Artifact
    test_start: np.datetime64
    test_bars: int

    @property
    def said(self) -> dict[str, object]:
        """What its forecasts say of it."""
        return {"trial_id": self.trial_id, "fold": self.fold, "artifact_sha256": self.sha256}


def published_fold(market: LiveMarket, model: str) -> PublishedFold:
    """Raises NoModelError for a model without one or that reads no events, NotPublishedError, ArtifactError."""
    try:
        zoo.network(model)
    except zoo.UnknownModelError as exc:
        raise NoModelError(f"{exc}; only networks can be fed") from exc
    found = _newest_fold(market, model)
    if not found.num_rows:
        raise NoModelError(
            f"no published {market.source} night of {market.universe.name} has a fold of {model}; run one with this "
            "model first"
        )
    row, path = found.to_pylist()[0], market.warehouse.artifacts / found["artifact"][0].as_py()
    if file_hash(path) != row["artifact_sha256"]:
        raise DamagedArtifactError(f"{path}: not the file that the fold wrote; delete it and run the night again")
    artifact = load_artifact(path)
    if not zoo.network(model).events:
        raise NoModelError(f"{model} reads no events between bars: stream with a temporal graph network, such as tgn")
    start, end = (instants(found[name])[0] for name in ("test_start", "test_end"))
    bars = int((end - start).astype(np.int64) // artifact.header.bar_us)
    return PublishedFold(model, row["trial_id"], row["fold"], row["artifact_sha256"], artifact, start, bars)


def _newest_fold(market: LiveMarket, model: str) -> pa.Table:
    with read_published(market.warehouse) as con:
        return read_query(con, "newest_fold", source=market.source, universe=market.universe.name, model=model)


@dataclass(frozen=True, eq=False)
class NetworkState:
    """Where a network is: its ``state`` after the bar that closed at ``close``, in the segment whose first bar opened
    at ``segment``; what the features of its ``events`` look back to; each asset's last event, ``heard`` (n,)."""

    close: int
    segment: int
    state: Any
    events: MarketEvents
    heard: np.ndarray


class LiveNetwork:
    """A published fold at the newest closed bar of its market, fed with rows of ``symbols``, some of the market's.

    Rows wait until their bar has closed: it hears them then, and those alone that a night reads. ``due`` asks for the
    bars whose close the rows have passed; ``close`` works on copies, so that rows may come in meanwhile.
    """

    def __init__(self, fold: PublishedFold, market: LiveMarket, symbols: Sequence[str]) -> None:
        make_deterministic()
        self.fold, self.market, self.bar_us = fold, market, fold.artifact.header.bar_us
        self.names = market.universe.symbols
        self.place = np.array([self.names.index(symbol) for symbol in symbols])  # of a feed's symbol among the names
        self.at: NetworkState | None = None
        self.waiting = [np.empty(0, MARKET_ROW)]
        self.told = self.given_up = NO_INSTANT  # the newest row's time, and the last close that failed

    def begin(self) -> np.ndarray:
        """The stored rows after the newest stored bar, up to which the memory then is. Raises NoBarsError."""
        known = self.market.stored(datetime.now(UTC))
        rows, close = self._stored_rows(known), int(microseconds(known.closes)[-1])
        self.at = self._begun(known, _features(known), rows, len(known.bars))
        self.told, self.given_up, self.waiting = close, NO_INSTANT, [rows[:0]]
        since, own = rows[rows["t"] > close], np.full(len(self.names), -1)
        own[self.place] = np.arange(len(self.place))
        since["symbol"] = own[since["symbol"]]
        return since[since["symbol"] >= 0]

    def consume(self, rows: np.ndarray) -> None:
        """Keeps the next rows until their bar closes; those of a bar that it has taken in already are not heard."""
        assert self.at is not None
        self.told = max(self.told, int(rows["t"][-1]))
        small = (rows["kind"] == EVENT_KINDS.index("trade")) & (rows["price"] * rows["size"] < LARGE_VALUE)
        heard = rows[(rows["t"] > self.at.close) & (rows["kind"] != EVENT_KINDS.index("book")) & ~small]
        heard["symbol"] = self.place[heard["symbol"]]
        self.waiting.append(heard)

    def due(self) -> DueBars | None:
        """The bars whose close came before the newest row: none of their events can still come."""
        until = (self.told - 1) // self.bar_us * self.bar_us
        if self.at is None or until <= max(self.at.close, self.given_up):
            return None
        rows = np.concatenate(self.waiting)
        return DueBars(np.datetime64(until, "us"), rows[rows["t"] <= until])

    def close(self, due: DueBars) -> CloseResult:
        """The forecasts at each of the closes that did not fail before. Raises what LiveMarket.at does."""
        at, known, made = self.at, self.market.at(due.close), []
        assert at is not None
        features, ends = _features(known), microseconds(known.closes)
        new = slice(int(np.searchsorted(ends, at.close, side="right")), len(ends))
        fresh = [freshness(_heard(at.heard, due.rows, t), t, MAX_STALENESS_US) for t in ends[new].tolist()]
        for bars in self._by_segment(features.ts, range(new.start, new.stop)):
            if at.segment != self._segment(features.ts, bars.start):
                at = self._begun(known, features, self._stored_rows(known), bars.start)
            at, forecasts = self._taken_in(at, known, features, due.rows, bars)
            made += forecasts
        predictions = predictions_of(made, self.fold.artifact.header.horizons, features.rows(new.start, new.stop))
        if self.fold.sha256 not in _newest_fold(self.market, self.fold.model)["artifact_sha256"].to_pylist():
            logger.warning("a newer fold of %s is published; start the stream again to use it", self.fold.model)
        spoken = ends[new] > self.given_up
        return CloseResult(at, stream_rows(predictions, known.closes[new], np.stack(fresh), spoken, self.fold.said))

    def commit(self, closed: CloseResult) -> None:
        """Goes on from there."""
        self.at = closed.memory
        rows = np.concatenate(self.waiting)
        self.waiting = [rows[rows["t"] > closed.memory.close]]

    def give_up(self, due: DueBars) -> int:
        """How many bars will have no forecast."""
        assert self.at is not None
        before, self.given_up = max(self.at.close, self.given_up), int(due.close.astype(np.int64))
        return (self.given_up - before) // self.bar_us

    def _nothing(self) -> Any:
        """The network's state before the first bar."""
        return self.fold.artifact.network.initial_state(1, len(self.names))  # type: ignore[operator]

    def _segment(self, ts: np.ndarray, bar: int) -> int:
        """When the first bar opens of the segment with the ``bar`` of the grid ``ts``, or the one after it."""
        length = segment_bars(self.fold.test_bars, len(self.names))
        start = int(np.searchsorted(ts, self.fold.test_start))
        return int(microseconds(ts)[0]) + (start + max(0, bar - start) // length * length) * self.bar_us

    def _by_segment(self, ts: np.ndarray, bars: range) -> list[range]:
        """``bars`` in parts that each lie in one segment."""
        cuts = [bar for bar in bars[1:] if self._segment(ts, bar) != self._segment(ts, bar - 1)]
        return [range(*ends) for ends in pairwise([bars.start, *cuts, bars.stop])]

    def _stored_rows(self, known: MarketData) -> np.ndarray:
        """All that a night at this instant would read of the events."""
        now, market = datetime.now(UTC), self.market
        night = Night(now.date(), market.source, market.universe, market.warehouse, now)
        return heard_rows(night, known.bars.ts[0], FAR_FUTURE)

    def _begun(self, known: MarketData, features: Panel, rows: np.ndarray, bar: int) -> NetworkState:
        """Where a night is that is to forecast ``bar``, having run up to it from before its segment."""
        segment, ts = self._segment(features.ts, bar), microseconds(features.ts)
        first = (segment - int(ts[0])) // self.bar_us - self.fold.artifact.header.config.context_bars
        nothing = np.full(len(self.names), NO_INSTANT)
        before = NetworkState(NO_INSTANT, segment, self._nothing(), MarketEvents(self.names), nothing)
        return self._taken_in(before, known, features, rows, range(min(first, bar), bar))[0]

    def _taken_in(
        self, at: NetworkState, known: MarketData, features: Panel, rows: np.ndarray, bars: range
    ) -> tuple[NetworkState, list[Forecast]]:
        """Where the network is after ``bars``, told of those of the ``rows`` (e,) that came since ``at``, and what it
        forecasts at them."""
        close, events = int(microseconds(known.closes)[bars.stop - 1]), MarketEvents(self.names)
        events.restore(at.events.state())
        own, settled = (part[(part["t"] > at.close) & (part["t"] <= close)] for part in (rows, known.settled))
        told = BarEvents.of(events(by_time(own, settled)), features.ts, known.closes)
        graph = zoo.graph_of(self.fold.artifact.header.spec)
        snapshots = self.market.snapshots(graph, features.ts[max(0, bars.start - 1) : bars.stop])
        around, begins = SideInputs(snapshots, told), at.close == NO_INSTANT
        made, state = step_forecasts(self.fold.artifact, features, around, bars, at.state, begins)
        return NetworkState(close, at.segment, state, events, _heard(at.heard, own, close)), made

    def state(self) -> dict[str, np.ndarray]:
        """Every tensor of the network's state by its place in it, what waits, and which fold it is of."""
        at = self.at
        assert at is not None
        self.waiting = [np.concatenate(self.waiting)]
        numbers = np.array([at.close, at.segment, self.told, self.given_up])
        said = {"fold": np.array(self.fold.sha256), "numbers": numbers, "heard": at.heard, "waiting": self.waiting[0]}
        said |= {f"events.{name}": array for name, array in at.events.state().items()}
        return said | {f"state.{place}": value.numpy().copy() for place, value in _tensors(at.state).items()}

    def unfit(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Why this network cannot go on from these arrays; empty if it can."""
        if str(arrays.get("fold")) != self.fold.sha256:
            return "the network has been fitted anew"
        if arrays["events.symbols"].tolist() != list(self.names):
            return f"it is of {', '.join(arrays['events.symbols'].tolist())}, the universe of {', '.join(self.names)}"
        shapes = {f"state.{place}": value.shape for place, value in _tensors(self._nothing()).items()}
        if {name: array.shape for name, array in arrays.items() if name.startswith("state.")} != shapes:
            return "it is of another network"
        return ""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from where ``state`` was taken."""
        events = MarketEvents(self.names)
        events.restore({name: arrays[f"events.{name}"] for name in events.state()})
        close, segment, self.told, self.given_up = arrays["numbers"].tolist()
        self.at = NetworkState(close, segment, _with(self._nothing(), arrays, "state"), events, arrays["heard"])
        self.waiting = [arrays["waiting"]]


def _features(known: MarketData) -> Panel:
    return compute_features(known.bars, known.closes)


def _heard(before: np.ndarray, rows: np.ndarray, until: int) -> np.ndarray:
    """When each asset's last event up to ``until`` came (n,), by that ``before`` these rows (e,)."""
    heard, own = before.copy(), rows[rows["t"] <= until]
    np.maximum.at(heard, own["symbol"], own["t"])
    return heard


def _tensors(state: Any, place: str = "") -> dict[str, Tensor]:
    """The tensors of nested tuples by their place: 0.1 is the second of the first."""
    if isinstance(state, Tensor):
        return {place: state}
    parts = (_tensors(part, f"{place}.{i}".lstrip(".")) for i, part in enumerate(state))
    return {name: tensor for part in parts for name, tensor in part.items()}


def _with(state: Any, arrays: Mapping[str, np.ndarray], place: str) -> Any:
    """Nested tuples of the same shape with the tensors of ``arrays``."""
    if isinstance(state, Tensor):
        return torch.from_numpy(arrays[place].copy())
    parts = [_with(part, arrays, f"{place}.{i}") for i, part in enumerate(state)]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
