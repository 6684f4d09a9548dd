"""A temporal graph network fed by a stream: it processes every bar at its close and forecasts, without training.

Its forecasts equal those of a night (the run for one date) with the same bars and events. As in a night, the network's
state is empty ``context_bars`` before the first bar of each segment of the test window (see models/training/fit.py).

Glossary: e event rows (arrays of dtype MARKET_ROW, sorted by time) · n assets of the universe · t bars. Integer times
are microseconds since 1970, UTC.
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
from models.sessions import FAR_FUTURE, to_epoch_us
from models.training.artifact import Artifact, file_hash, load_artifact
from models.training.errors import DamagedArtifactError
from models.training.fit import make_deterministic, predictions_from_forecasts, segment_bars
from models.training.incremental_inference import step_forecasts
from tasks.errors import NoModelError
from tasks.forecasts import stream_rows
from tasks.live.event_feed import CloseResult, DueBars
from tasks.live.market import LiveMarket, MarketData
from tasks.night import Night
from tasks.panels import LARGE_TRADE_VALUE, column_to_datetime64, event_rows_for_bars, merge_by_time
from warehouse.publish import read_published
from warehouse.tables import read_query

logger = logging.getLogger(__name__)

MAX_STALENESS_US = 3_600_000_000  # TGN-38: an asset without an event for longer is stale
NO_INSTANT_US = 0  # stands for "no event" and "no close"


@dataclass(frozen=True, eq=False)
class PublishedFold:
    """A model's newest published fold of walk-forward training, with the network that was fitted in it.

    Its test window has ``test_bars`` bars; the first opens at ``test_start`` (UTC).
    """

    model: str
    trial_id: str
    fold: int
    sha256: str
    artifact: Artifact
    test_start: np.datetime64
    test_bars: int

    @property
    def provenance(self) -> dict[str, object]:
        """The columns of store.stream_forecasts that identify the fold, with their values."""
        return {"trial_id": self.trial_id, "fold": self.fold, "artifact_sha256": self.sha256}


def published_fold(market: LiveMarket, model: str) -> PublishedFold:
    """The newest published fold of ``model``.

    Raises NoModelError if the model is no network, has no published fold or reads no events; NotPublishedError;
    ArtifactError for a damaged file.
    """
    try:
        zoo.find_network(model)
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
    if not zoo.find_network(model).reads_events:
        raise NoModelError(f"{model} reads no events between bars: stream with a temporal graph network, such as tgn")
    test_start = column_to_datetime64(folds["test_start"])[0]
    test_end = column_to_datetime64(folds["test_end"])[0]
    return PublishedFold(
        model=model,
        trial_id=row["trial_id"],
        fold=row["fold"],
        sha256=row["artifact_sha256"],
        artifact=artifact,
        test_start=test_start,
        test_bars=int((test_end - test_start).astype(np.int64) // artifact.header.bar_us),
    )


def _newest_fold(market: LiveMarket, model: str) -> pa.Table:
    """The row of the model's newest published fold; no row if there is none."""
    with read_published(market.warehouse) as con:
        return read_query(con, "newest_fold", source=market.source, universe=market.universe.name, model=model)


@dataclass(frozen=True, eq=False)
class NetworkState:
    """The state of a live network after the bar that closed at ``close_us``.

    ``segment_start_us``: open time of the first bar of the current segment; ``state``: the network's tensors, as nested
    tuples; ``events``: the builder of market events, which keeps the past events that event features need;
    ``last_event_us`` (n,): time of each asset's last event, NO_INSTANT_US without one.
    """

    close_us: int
    segment_start_us: int
    state: Any
    events: MarketEvents
    last_event_us: np.ndarray


class LiveNetwork:
    """A Forecaster: the network of a published fold, with its state after the last processed bar.

    It is fed with events of ``symbols``, a subset of the market's symbols; an event's ``symbol`` is a position in
    ``symbols``. Events wait until their bar has closed. ``close`` works on copies, so that ``consume`` can be called at
    the same time.
    """

    def __init__(self, fold: PublishedFold, market: LiveMarket, symbols: Sequence[str]) -> None:
        make_deterministic()
        self.fold = fold
        self.market = market
        self.bar_us = fold.artifact.header.bar_us
        self.universe_symbols = market.universe.symbols
        # each fed symbol's position in the universe
        self.universe_positions = np.array([self.universe_symbols.index(symbol) for symbol in symbols])
        self.current: NetworkState | None = None
        self.waiting_rows = [np.empty(0, MARKET_ROW)]
        self.newest_event_us = NO_INSTANT_US
        self.last_failed_close_us = NO_INSTANT_US

    def begin(self) -> np.ndarray:
        """Sets the state to that after the newest published bar; returns the stored events (e,) after it.

        Events of symbols that are not fed are left out. Raises NoBarsError, NotPublishedError.
        """
        data = self.market.published_data(datetime.now(UTC))
        rows = self._stored_rows(data)
        close_us = int(to_epoch_us(data.close_times)[-1])
        self.current = self._initial_state(data, _features(data), rows, len(data.bars))
        self.newest_event_us = close_us
        self.last_failed_close_us = NO_INSTANT_US
        self.waiting_rows = [rows[:0]]
        later = rows[rows["t"] > close_us]
        fed_positions = np.full(len(self.universe_symbols), -1)  # −1: not fed
        fed_positions[self.universe_positions] = np.arange(len(self.universe_positions))
        later["symbol"] = fed_positions[later["symbol"]]
        return later[later["symbol"] >= 0]

    def consume(self, rows: np.ndarray) -> None:
        """Keeps the next events (e,) until their bar closes.

        Ignores events of bars that are already processed, and books and small trades, which a night does not read.
        """
        assert self.current is not None
        self.newest_event_us = max(self.newest_event_us, int(rows["t"][-1]))
        is_trade = rows["kind"] == EVENT_KINDS.index("trade")
        is_small_trade = is_trade & (rows["price"] * rows["size"] < LARGE_TRADE_VALUE)
        is_book = rows["kind"] == EVENT_KINDS.index("book")
        rows = rows[(rows["t"] > self.current.close_us) & ~is_book & ~is_small_trade]
        rows["symbol"] = self.universe_positions[rows["symbol"]]
        self.waiting_rows.append(rows)

    def due(self) -> DueBars | None:
        """The unprocessed bars that closed before the newest event; None if there is no such bar.

        A bar that closes exactly at the newest event is not due, because further events at its close can arrive. Bars
        whose close failed are due again only with a newer bar.
        """
        close_us = (self.newest_event_us - 1) // self.bar_us * self.bar_us
        if self.current is None or close_us <= max(self.current.close_us, self.last_failed_close_us):
            return None
        rows = np.concatenate(self.waiting_rows)
        return DueBars(np.datetime64(close_us, "us"), rows[rows["t"] <= close_us])

    def close(self, due: DueBars) -> CloseResult:
        """Processes the due bars and returns the new state with the forecasts at their closes.

        Bars whose close failed before are processed but get no forecast. Raises the errors of
        LiveMarket.data_at_close.
        """
        state = self.current
        data = self.market.data_at_close(due.close)
        forecasts: list[Forecast] = []
        assert state is not None
        features = _features(data)
        closes_us = to_epoch_us(data.close_times)
        new = slice(int(np.searchsorted(closes_us, state.close_us, side="right")), len(closes_us))
        event_freshness = [
            freshness(_last_event_us(state.last_event_us, due.rows, close_us), close_us, MAX_STALENESS_US)
            for close_us in closes_us[new].tolist()
        ]
        for bars in self._by_segment(features.ts, range(new.start, new.stop)):
            if state.segment_start_us != self._segment_start(features.ts, bars.start):
                state = self._initial_state(data, features, self._stored_rows(data), bars.start)
            state, segment_forecasts = self._advance(state, data, features, due.rows, bars)
            forecasts += segment_forecasts
        predictions = predictions_from_forecasts(
            forecasts, self.fold.artifact.header.horizons, features.slice_bars(new.start, new.stop)
        )
        if self.fold.sha256 not in _newest_fold(self.market, self.fold.model)["artifact_sha256"].to_pylist():
            logger.warning("a newer fold of %s is published; start the stream again to use it", self.fold.model)
        is_reported = closes_us[new] > self.last_failed_close_us
        rows = stream_rows(
            predictions, data.close_times[new], np.stack(event_freshness), is_reported, self.fold.provenance
        )
        return CloseResult(state, rows)

    def commit(self, result: CloseResult) -> None:
        """Makes the result's state the current one and drops the waiting events up to its close."""
        self.current = result.state
        rows = np.concatenate(self.waiting_rows)
        self.waiting_rows = [rows[rows["t"] > result.state.close_us]]

    def give_up(self, due: DueBars) -> int:
        """Records that this close failed and returns how many bars get no forecast because of it."""
        assert self.current is not None
        previous_close_us = max(self.current.close_us, self.last_failed_close_us)
        self.last_failed_close_us = int(due.close.astype(np.int64))
        return (self.last_failed_close_us - previous_close_us) // self.bar_us

    def _empty_tensors(self) -> Any:
        """The network's tensors before the first bar."""
        return self.fold.artifact.network.initial_state(1, len(self.universe_symbols))  # type: ignore[operator]

    def _segment_start(self, ts: np.ndarray, bar: int) -> int:
        """Open time (microseconds) of the first bar of the segment that contains the bar at position ``bar``.

        ``ts`` (t,) are the open times of the grid; ``bar`` can be t, one past the last position. Bars before the test
        window belong to its first segment.
        """
        n_bars = segment_bars(self.fold.test_bars, len(self.universe_symbols))
        test_start = int(np.searchsorted(ts, self.fold.test_start))
        first_bar = test_start + max(0, bar - test_start) // n_bars * n_bars
        return int(to_epoch_us(ts)[0]) + first_bar * self.bar_us

    def _by_segment(self, ts: np.ndarray, bars: range) -> list[range]:
        """The positions ``bars`` split into ranges that each lie in one segment, in order."""
        cuts = [bar for bar in bars[1:] if self._segment_start(ts, bar) != self._segment_start(ts, bar - 1)]
        return [range(start, stop) for start, stop in pairwise([bars.start, *cuts, bars.stop])]

    def _stored_rows(self, data: MarketData) -> np.ndarray:
        """The stored events (e,) of these bars and after them, as a night at this instant reads them."""
        now = datetime.now(UTC)
        market = self.market
        night = Night(now.date(), market.source, market.universe, market.warehouse, now)
        return event_rows_for_bars(night, data.bars.ts[0], FAR_FUTURE)

    def _initial_state(self, data: MarketData, features: Panel, rows: np.ndarray, bar: int) -> NetworkState:
        """The state with which a night forecasts at position ``bar``.

        The network has then processed the context bars, and the bars of the segment before ``bar``.
        """
        segment_start_us = self._segment_start(features.ts, bar)
        opens_us = to_epoch_us(features.ts)
        segment_start = (segment_start_us - int(opens_us[0])) // self.bar_us
        first_bar = segment_start - self.fold.artifact.header.config.context_bars
        empty_state = NetworkState(
            close_us=NO_INSTANT_US,
            segment_start_us=segment_start_us,
            state=self._empty_tensors(),
            events=MarketEvents(self.universe_symbols),
            last_event_us=np.full(len(self.universe_symbols), NO_INSTANT_US),
        )
        state, _ = self._advance(empty_state, data, features, rows, range(min(first_bar, bar), bar))
        return state

    def _advance(
        self, before: NetworkState, data: MarketData, features: Panel, rows: np.ndarray, bars: range
    ) -> tuple[NetworkState, list[Forecast]]:
        """The state after the bars at positions ``bars``, and the forecasts at these bars.

        ``before`` is the state before these bars; events in ``rows`` (e,) up to its close are ignored.
        """
        close_us = int(to_epoch_us(data.close_times)[bars.stop - 1])
        events = MarketEvents(self.universe_symbols)
        events.restore(before.events.state())
        new_rows = _rows_between(rows, before.close_us, close_us)
        funding_rows = _rows_between(data.funding_rows, before.close_us, close_us)
        bar_events = BarEvents.from_events(events(merge_by_time(new_rows, funding_rows)), features.ts, data.close_times)
        graph = zoo.graph_of(self.fold.artifact.header.spec)
        snapshots = self.market.snapshots(graph, features.ts[max(0, bars.start - 1) : bars.stop])
        side_inputs = SideInputs(snapshots, bar_events)
        is_first = before.close_us == NO_INSTANT_US
        forecasts, state = step_forecasts(self.fold.artifact, features, side_inputs, bars, before.state, is_first)
        last_event_us = _last_event_us(before.last_event_us, new_rows, close_us)
        return NetworkState(close_us, before.segment_start_us, state, events, last_event_us), forecasts

    def state(self) -> dict[str, np.ndarray]:
        """The state as arrays: the network's tensors by position, past and waiting events, the fold's hash.

        The names of these arrays, and the order of the four times in "numbers", are the format of the state files.
        """
        current = self.current
        assert current is not None
        self.waiting_rows = [np.concatenate(self.waiting_rows)]
        numbers = np.array(
            [current.close_us, current.segment_start_us, self.newest_event_us, self.last_failed_close_us]
        )
        fold = np.array(self.fold.sha256)
        arrays = {"fold": fold, "numbers": numbers, "heard": current.last_event_us, "waiting": self.waiting_rows[0]}
        arrays |= {f"events.{name}": array for name, array in current.events.state().items()}
        tensors = _tensors_by_position(current.state)
        return arrays | {f"state.{position}": tensor.numpy().copy() for position, tensor in tensors.items()}

    def reason_to_restart(self, arrays: Mapping[str, np.ndarray]) -> str:
        """The reason why this network cannot continue from these arrays; empty if it can."""
        if str(arrays.get("fold")) != self.fold.sha256:
            return "the network has been fitted anew"
        if arrays["events.symbols"].tolist() != list(self.universe_symbols):
            saved = ", ".join(arrays["events.symbols"].tolist())
            return f"it was saved for {saved}, the universe has {', '.join(self.universe_symbols)}"
        empty = _tensors_by_position(self._empty_tensors())
        shapes = {f"state.{position}": tensor.shape for position, tensor in empty.items()}
        if {name: array.shape for name, array in arrays.items() if name.startswith("state.")} != shapes:
            return "it was saved for another network"
        return ""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Sets the state to one that ``state`` returned earlier."""
        events = MarketEvents(self.universe_symbols)
        events.restore({name: arrays[f"events.{name}"] for name in events.state()})
        close_us, segment_start_us, self.newest_event_us, self.last_failed_close_us = arrays["numbers"].tolist()
        state = _restored_tensors(self._empty_tensors(), arrays, "state")
        self.current = NetworkState(close_us, segment_start_us, state, events, arrays["heard"])
        self.waiting_rows = [arrays["waiting"]]


def _features(data: MarketData) -> Panel:
    """The feature panel of the market's bars."""
    return compute_features(data.bars, data.close_times)


def _rows_between(rows: np.ndarray, after_us: int, until_us: int) -> np.ndarray:
    """The events with after_us < t ≤ until_us."""
    return rows[(rows["t"] > after_us) & (rows["t"] <= until_us)]


def _last_event_us(before: np.ndarray, rows: np.ndarray, until_us: int) -> np.ndarray:
    """Time (n,) of each asset's last event with t ≤ ``until_us``.

    ``before`` (n,) are the times of the last events before ``rows`` (e,).
    """
    last_event_us = before.copy()
    rows = rows[rows["t"] <= until_us]
    np.maximum.at(last_event_us, rows["symbol"], rows["t"])
    return last_event_us


def _tensors_by_position(state: Any, position: str = "") -> dict[str, Tensor]:
    """The tensors of nested tuples by position: "0.1" is the second element of the first element."""
    if isinstance(state, Tensor):
        return {position: state}
    parts = (_tensors_by_position(part, f"{position}.{i}".lstrip(".")) for i, part in enumerate(state))
    return {name: tensor for part in parts for name, tensor in part.items()}


def _restored_tensors(template: Any, arrays: Mapping[str, np.ndarray], position: str) -> Any:
    """Nested tuples with the structure of ``template`` and the tensors stored in ``arrays``.

    ``position`` is the name of the whole structure in ``arrays``; see _tensors_by_position.
    """
    if isinstance(template, Tensor):
        return torch.from_numpy(arrays[position].copy())
    parts = [_restored_tensors(part, arrays, f"{position}.{i}") for i, part in enumerate(template)]
    return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
