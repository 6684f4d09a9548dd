"""A real temporal graph network fed by a stream: its state depends only on the events, and survives a restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models import zoo
from models.features.scaling import Scaler
from models.graphs.events import EVENT_KINDS
from models.graphs.market_stream import MARKET_ROW
from models.training.artifact import FitResult, Header, save_artifact
from models.training.config import TrainConfig
from models.training.errors import DamagedArtifactError
from tasks.errors import NoBarsError, NoModelError, OutageError
from tasks.live.bar_closer import BarCloser
from tasks.live.event_feed import EventFeed, Forecaster
from tasks.live.market import LiveMarket
from tasks.live.network import LiveNetwork, published_fold
from tasks.markets.bybit_frames import FrameReader
from tasks.markets.event_rows import event_rows
from tasks.panels import LARGE_TRADE_VALUE
from tests.desk import Desk
from tests.exchange import FakeExchange
from tests.market_place import SYMBOLS, LiveDesk, market_frames, ms_after_midnight
from warehouse.publish import publish_copy
from warehouse.tables import append

HOUR_US = 3_600_000_000


@pytest.fixture
def exchange(live_desk: LiveDesk) -> Iterator[FakeExchange]:
    with FakeExchange([], ()) as exchange:
        live_desk.serve_rest_data(exchange)
        yield exchange


def parsed_events_until(hour: float) -> list[dict]:
    """The events of ``market_frames`` up to ``hour`` hours after midnight, as dicts sorted by time."""
    frames = FrameReader(SYMBOLS, book_every_us=100_000)
    return sorted((row for text in market_frames(0, hour) for row in frames.read(text)), key=lambda row: row["ts"])


def feed_from_start(network: LiveNetwork, bound_us: int = 1_000_000) -> EventFeed:
    """A feed of a network that starts from the stored events."""
    feed = EventFeed(SYMBOLS, network, bound_us)
    feed.buffer.push(network.begin())
    return feed


def push_later_event(feed: EventFeed) -> None:
    """Pushes one event that is so late in time that the buffer passes all events before it to the consumer."""
    later = np.zeros(1, MARKET_ROW)
    later["t"] = feed.buffer.state()["newest"] + feed.buffer.window_us + feed.buffer.bound_us
    feed.buffer.push(later)


def count_until(rows: list[dict], hour: float) -> int:
    """How many of the rows are at most ``hour`` hours after midnight."""
    return sum(row["ts"] <= 1000 * ms_after_midnight(hour) for row in rows)


def close_due_bars(network: LiveNetwork) -> pa.Table:
    """Processes the bars that are due and returns their forecasts."""
    due = network.due()
    assert due is not None
    result = network.close(due)
    network.commit(result)
    return result.rows


def assert_same_state(state: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert state.keys() == expected.keys()
    for name in state:
        np.testing.assert_array_equal(state[name], expected[name], err_msg=name)


def test_a_live_network_is_a_forecaster(live_desk: LiveDesk) -> None:
    assert isinstance(live_desk.network(), Forecaster)


def test_the_state_depends_on_the_events_and_not_on_the_order_of_their_arrival(
    live_desk: LiveDesk, exchange: FakeExchange
) -> None:
    rows = parsed_events_until(2.5)
    in_order, shuffled = (feed_from_start(live_desk.network(exchange.rest_url), bound_us=HOUR_US) for _ in range(2))
    in_order.receive(event_rows(rows))
    for k in range(0, len(rows), 4):  # four events per table, in reverse order, after two repeated events
        shuffled.receive(event_rows(rows[max(0, k - 2) : k + 4][::-1]))
    assert shuffled.buffer.counts["duplicates"] > 0 == shuffled.buffer.counts["late"]
    close_due_bars(in_order.consumer)
    close_due_bars(shuffled.consumer)
    assert_same_state(in_order.consumer.state(), shuffled.consumer.state())


def test_a_restored_network_continues_like_one_that_was_never_interrupted(
    live_desk: LiveDesk, exchange: FakeExchange
) -> None:
    rows = parsed_events_until(2.5)
    uninterrupted, saved, restored = (live_desk.network(exchange.rest_url) for _ in range(3))
    cut = count_until(rows, 1.4)
    feed = feed_from_start(uninterrupted)
    feed.receive(event_rows(rows))
    close_due_bars(uninterrupted)
    feed = feed_from_start(saved)
    feed.receive(event_rows(rows[:cut]))
    close_due_bars(saved)
    arrays = {name: array.copy() for name, array in feed.state().items()}
    saved_state = saved.state()
    feed.receive(event_rows(rows[cut:]))
    close_due_bars(saved)  # must not alter the saved state
    restored_feed = EventFeed(SYMBOLS, restored, bound_us=1_000_000)
    for name, part in (("buffer", restored_feed.buffer), ("memory", restored)):
        part.restore({key.removeprefix(f"{name}."): arrays[key] for key in arrays if key.startswith(f"{name}.")})
    assert_same_state(saved_state, restored.state())
    restored_feed.receive(event_rows(rows[cut - 4 :]))  # the first four are repeats
    close_due_bars(restored)
    assert_same_state(uninterrupted.state(), restored.state())


def test_rows_that_arrive_during_a_close_are_used_at_the_next_close(
    live_desk: LiveDesk, exchange: FakeExchange
) -> None:
    rows = parsed_events_until(2.5)
    quick, slow = (live_desk.network(exchange.rest_url) for _ in range(2))
    cut = count_until(rows, 1.4)
    for network, n_before_commit in ((quick, cut), (slow, len(rows))):
        feed = feed_from_start(network)
        feed.receive(event_rows(rows[:cut]))
        due = network.due()
        result = network.close(due)
        feed.receive(event_rows(rows[cut:n_before_commit]))
        network.commit(result)
        feed.receive(event_rows(rows[n_before_commit:]))
        close_due_bars(network)
    assert_same_state(quick.state(), slow.state())


def test_books_and_small_trades_are_ignored_as_in_a_night(live_desk: LiveDesk, exchange: FakeExchange) -> None:
    network = live_desk.network(exchange.rest_url)
    feed = feed_from_start(network)
    feed.receive(event_rows(parsed_events_until(0.9)))
    waiting = np.concatenate(network.waiting_rows)
    assert len(waiting) > 0 and network.newest_event_us > waiting["t"].max() - HOUR_US
    is_trade = waiting["kind"] == EVENT_KINDS.index("trade")
    assert not (is_trade & (waiting["price"] * waiting["size"] < LARGE_TRADE_VALUE)).any()
    assert not (waiting["kind"] == EVENT_KINDS.index("book")).any()
    assert network.due() is None


def test_events_of_a_bar_that_is_already_stored_are_ignored(live_desk: LiveDesk, exchange: FakeExchange) -> None:
    network = live_desk.network(exchange.rest_url)
    feed = feed_from_start(network)
    early = [{**row, "ts": row["ts"] - HOUR_US} for row in parsed_events_until(0.9)]
    feed.receive(event_rows(early))
    push_later_event(feed)
    assert feed.buffer.counts["handed_over"] == len(early)
    assert len(np.concatenate(network.waiting_rows)) == 0
    assert network.due() is None


def test_stored_events_after_the_newest_bar_wait_for_its_close(live_desk: LiveDesk, exchange: FakeExchange) -> None:
    streamed, stored = (live_desk.network(exchange.rest_url) for _ in range(2))
    streamed_feed = feed_from_start(streamed)
    streamed_feed.receive(event_rows(parsed_events_until(0.9)))
    live_desk.run_stream(market_frames(0, 0.9))
    stored_feed = feed_from_start(stored)
    for feed in (streamed_feed, stored_feed):
        push_later_event(feed)
    np.testing.assert_array_equal(np.concatenate(streamed.waiting_rows), np.concatenate(stored.waiting_rows))


def test_begin_without_published_bars_of_the_source_raises(live_desk: LiveDesk) -> None:
    live_desk.desk.execute("DELETE FROM store.bars WHERE universe = 'perpetuals'")
    publish_copy(live_desk.desk.warehouse, "recorded", "perpetuals")
    with pytest.raises(NoBarsError, match="no recorded bar of perpetuals"):
        live_desk.network().begin()


def test_a_close_without_rest_raises_an_outage_that_names_the_missing_bar(live_desk: LiveDesk) -> None:
    network = live_desk.network()
    feed_from_start(network).receive(event_rows(parsed_events_until(1.5)))
    with pytest.raises(OutageError, match=r"no symbol has a bar of 2024-06-29T00:00:00"):
        network.close(network.due())


def test_a_close_that_failed_is_processed_with_the_next_and_gets_no_forecast_then(
    live_desk: LiveDesk, exchange: FakeExchange
) -> None:
    network = live_desk.network(exchange.rest_url)
    feed = feed_from_start(network)
    rows = parsed_events_until(2.5)
    cut = count_until(rows, 1.4)
    feed.receive(event_rows(rows[:cut]))
    assert network.give_up(network.due()) == 1
    assert network.due() is None
    feed.receive(event_rows(rows[cut:]))
    assert {ts.hour for ts in close_due_bars(network)["ts"].to_pylist()} == {1}


def test_a_newer_published_fold_is_logged(
    live_desk: LiveDesk, exchange: FakeExchange, caplog: pytest.LogCaptureFixture
) -> None:
    network = live_desk.network(exchange.rest_url)
    feed = feed_from_start(network)
    rows = parsed_events_until(2.5)
    cut = count_until(rows, 1.4)
    feed.receive(event_rows(rows[:cut]))
    close_due_bars(network)
    assert "newer fold" not in caplog.text
    live_desk.desk.execute("UPDATE store.folds SET artifact_sha256 = 'newer'")
    publish_copy(live_desk.desk.warehouse, "recorded", "perpetuals")
    feed.receive(event_rows(rows[cut:]))
    close_due_bars(network)
    assert "a newer fold of tgn is published; start the stream again" in caplog.text


def test_an_unexpected_error_at_a_close_ends_the_stream(live_desk: LiveDesk) -> None:
    class BrokenForecaster:
        def due(self) -> object:
            return object()

        def close(self, due: object) -> None:
            raise ZeroDivisionError

    async def close_twice() -> None:
        bar_closer = BarCloser("perpetuals", BrokenForecaster())  # type: ignore[arg-type]
        bar_closer.start_due_close(asyncio.Event())
        await bar_closer.wait()
        bar_closer.start_due_close(asyncio.Event())

    with pytest.raises(ZeroDivisionError):
        asyncio.run(close_twice())


@pytest.fixture
def publish_fold(desk: Desk) -> Callable[[str], Path]:
    """publish_fold(model): publishes a night with one fold of the model and returns the fold's file."""

    def publish(model: str) -> Path:
        warehouse = desk.warehouse
        keys = {"source": "recorded", "universe": "perpetuals"}
        test_start = datetime(2024, 6, 20)
        spec = zoo.Spec(model, d_model=8, n_layers=1, d_state=4)
        scaler = Scaler(("a",), (0.0,), (1.0,))
        header = Header(spec, TrainConfig(), scaler, (1, 5), HOUR_US, FitResult(1, 0.5, 10, 5, 1, "d", "c"))
        path = warehouse.artifacts / "fold.safetensors"
        sha256 = save_artifact(path, header, zoo.build(spec, 1, 2, 0).state_dict())
        times = dict.fromkeys(
            ("train_start", "train_end", "last_label_end", "test_start"), test_start.replace(tzinfo=UTC)
        )
        times["test_end"] = datetime(2024, 6, 22, tzinfo=UTC)
        sizes = dict.fromkeys(("purge_bars", "embargo_bars", "train_rows", "validation_rows", "epochs", "fold"), 0)
        texts = {
            "fold_key": "k",
            "data_hash": "d",
            "code_version": "c",
            "artifact": path.name,
            "artifact_sha256": sha256,
        }
        night = {"clock": times["train_start"], "settings": "{}", "settings_hash": "", "state": "published"}
        champion = {"role": "champion", "model": model, "trial_ids": ["t"], "reason": "best"}
        with warehouse.write("night") as con:
            append(con, "store.folds", pa.Table.from_pylist([times | sizes | texts]), **keys, trial_id="t", run_id="r")
            dated = {"night": test_start.date(), **keys, "run_id": "r"}
            append(con, "store.nights", pa.Table.from_pylist([night | {"published_at": night["clock"]}]), **dated)
            append(con, "store.model_registry", pa.Table.from_pylist([champion]), **dated)
        publish_copy(warehouse, "recorded", "perpetuals")
        return path

    return publish


def test_a_published_fold_has_its_test_window_and_provenance(desk: Desk, publish_fold: Callable[[str], Path]) -> None:
    publish_fold("tgn")
    fold = published_fold(live_market(desk), "tgn")
    assert (str(fold.test_start), fold.test_bars) == ("2024-06-20T00:00:00.000000", 2 * 24)
    assert json.dumps(fold.provenance)


def test_a_fold_that_is_missing_damaged_or_reads_no_events_is_refused(
    desk: Desk, publish_fold: Callable[[str], Path]
) -> None:
    path = publish_fold("gru")
    with pytest.raises(NoModelError, match="only networks can be fed"):
        published_fold(live_market(desk), "momentum")
    with pytest.raises(NoModelError, match="no published recorded night of perpetuals has a fold of tgn"):
        published_fold(live_market(desk), "tgn")
    with pytest.raises(NoModelError, match="no published live night of perpetuals has a fold of gru"):
        published_fold(live_market(desk, "live"), "gru")
    with pytest.raises(NoModelError, match="gru reads no events between bars"):
        published_fold(live_market(desk), "gru")
    path.write_bytes(b"damaged")
    with pytest.raises(DamagedArtifactError, match=r"fold\.safetensors: not the file that the fold wrote"):
        published_fold(live_market(desk), "gru")


def live_market(desk: Desk, source: str = "recorded") -> LiveMarket:
    return LiveMarket(desk.warehouse, desk.night(datetime(2024, 6, 20).date(), "perpetuals").universe, source)
