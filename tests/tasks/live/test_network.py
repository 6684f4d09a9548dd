"""A real temporal graph network behind a stream: where it is depends on the events alone, and survives a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models import zoo
from models.features.scaling import Scaler
from models.training.artifact import Header, Outcome, save_artifact
from models.training.config import TrainConfig
from models.training.errors import DamagedArtifactError
from tasks.errors import NoBarsError, NoModelError, OutageError
from tasks.live.bar_closer import BarCloser
from tasks.live.event_feed import EventFeed, Forecaster
from tasks.live.market import LiveMarket
from tasks.live.network import LiveNetwork, published_fold
from tasks.markets.bybit_frames import Frames
from tasks.markets.event_rows import event_rows
from tests.exchange import Exchange
from tests.market_place import SYMBOLS, Place, at, hours
from warehouse.publish import publish_copy
from warehouse.tables import append

HOUR_US = 3_600_000_000


@pytest.fixture
def exchange(place: Place) -> Iterator[Exchange]:
    with Exchange([], ()) as exchange:
        place.tells(exchange)
        yield exchange


def told(until: float) -> list[dict]:
    frames = Frames(SYMBOLS, book_every_us=100_000)
    return sorted((row for text in hours(0, until) for row in frames.read(text)), key=lambda row: row["ts"])


def begun(network: LiveNetwork, bound_us: int = 1_000_000) -> EventFeed:
    feed = EventFeed(SYMBOLS, network, bound_us)
    feed.buffer.push(network.begin())
    return feed


def passed(rows: list[dict], hour: float) -> int:
    """How many of the rows came up to that hour."""
    return sum(row["ts"] <= 1000 * at(hour) for row in rows)


def closed(network: LiveNetwork) -> pa.Table:
    """What is due, taken in."""
    due = network.due()
    assert due is not None
    made = network.close(due)
    network.commit(made)
    return made.rows


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_it_is_a_forecaster(place: Place) -> None:
    assert isinstance(place.network(), Forecaster)


def test_where_it_is_follows_from_the_events_and_not_from_their_arrival(place: Place, exchange: Exchange) -> None:
    rows = told(2.5)
    clean, faulty = (begun(place.network(exchange.rest_url), bound_us=HOUR_US) for _ in range(2))
    clean.receive(event_rows(rows))
    for k in range(0, len(rows), 4):  # in fours, each backwards and with some of those before again
        faulty.receive(event_rows(rows[max(0, k - 2) : k + 4][::-1]))
    assert faulty.buffer.counts["duplicates"] > 0 == faulty.buffer.counts["late"]
    closed(clean.memory), closed(faulty.memory)
    same(clean.memory.state(), faulty.memory.state())


def test_a_restored_network_goes_on_as_one_that_was_never_put_down(place: Place, exchange: Exchange) -> None:
    rows, (whole, first, second) = told(2.5), (place.network(exchange.rest_url) for _ in range(3))
    cut = passed(rows, 1.4)
    feed = begun(whole)
    feed.receive(event_rows(rows))
    closed(whole)
    feed = begun(first)
    feed.receive(event_rows(rows[:cut]))
    closed(first)
    kept = {name: array.copy() for name, array in feed.state().items()}
    taken = first.state()
    feed.receive(event_rows(rows[cut:]))
    closed(first)  # alters nothing of what was taken
    after = EventFeed(SYMBOLS, second, bound_us=1_000_000)
    for name, part in (("buffer", after.buffer), ("memory", second)):
        part.restore({key.removeprefix(f"{name}."): kept[key] for key in kept if key.startswith(f"{name}.")})
    same(taken, second.state())
    after.receive(event_rows(rows[cut - 4 :]))  # some again
    closed(second)
    same(whole.state(), second.state())


def test_rows_that_come_while_a_bar_is_taken_in_are_kept_for_the_next(place: Place, exchange: Exchange) -> None:
    rows, (quick, slow) = told(2.5), (place.network(exchange.rest_url) for _ in range(2))
    cut = passed(rows, 1.4)
    for network, before_adoption in ((quick, cut), (slow, len(rows))):
        feed = begun(network)
        feed.receive(event_rows(rows[:cut]))
        due = network.due()
        made = network.close(due)
        feed.receive(event_rows(rows[cut:before_adoption]))
        network.commit(made)
        feed.receive(event_rows(rows[before_adoption:]))
        closed(network)
    same(quick.state(), slow.state())


def test_books_and_small_trades_are_not_heard_as_in_a_night(place: Place, exchange: Exchange) -> None:
    network = place.network(exchange.rest_url)
    feed = begun(network)
    feed.receive(event_rows(told(0.9)))
    waiting = np.concatenate(network.waiting)
    assert len(waiting) > 0 and network.told > waiting["t"].max() - HOUR_US
    assert not ((waiting["kind"] == 0) & (waiting["price"] * waiting["size"] < 100_000)).any()
    assert network.due() is None


def test_what_happened_in_a_bar_that_is_stored_is_not_heard_again(place: Place, exchange: Exchange) -> None:
    network = place.network(exchange.rest_url)
    feed, early = begun(network), [{**row, "ts": row["ts"] - HOUR_US} for row in told(0.9)]
    feed.receive(event_rows(early))
    feed.buffer.finish()
    assert feed.buffer.counts["handed_over"] == len(early)
    assert len(np.concatenate(network.waiting)) == 0
    assert network.due() is None


def test_stored_events_after_the_newest_bar_wait_for_its_close(place: Place, exchange: Exchange) -> None:
    fed, stored = place.network(exchange.rest_url), place.network(exchange.rest_url)
    feed = begun(fed)
    feed.receive(event_rows(told(0.9)))
    place.plays(hours(0, 0.9))
    again = begun(stored)
    for one in (feed, again):
        one.buffer.finish()
    np.testing.assert_array_equal(np.concatenate(fed.waiting), np.concatenate(stored.waiting))


def test_without_bars_of_its_source_it_cannot_begin(place: Place) -> None:
    place.desk.execute("DELETE FROM store.bars WHERE universe = 'perpetuals'")
    publish_copy(place.desk.warehouse, "recorded", "perpetuals")
    with pytest.raises(NoBarsError, match="no recorded bar of perpetuals"):
        place.network().begin()


def test_without_rest_the_bar_is_missing_and_said(place: Place) -> None:
    network = place.network()
    begun(network).receive(event_rows(told(1.5)))
    with pytest.raises(OutageError, match=r"nobody has a bar of 2024-06-29T00:00:00"):
        network.close(network.due())


def test_a_close_that_failed_is_due_with_the_next_and_then_said_no_more(place: Place, exchange: Exchange) -> None:
    network = place.network(exchange.rest_url)
    feed, rows = begun(network), told(2.5)
    cut = passed(rows, 1.4)
    feed.receive(event_rows(rows[:cut]))
    assert network.give_up(network.due()) == 1
    assert network.due() is None
    feed.receive(event_rows(rows[cut:]))
    assert {ts.hour for ts in closed(network)["ts"].to_pylist()} == {1}


def test_a_newer_fold_is_told_of(place: Place, exchange: Exchange, caplog) -> None:
    network = place.network(exchange.rest_url)
    feed, rows = begun(network), told(2.5)
    cut = passed(rows, 1.4)
    feed.receive(event_rows(rows[:cut]))
    closed(network)
    assert "newer fold" not in caplog.text
    place.desk.execute("UPDATE store.folds SET artifact_sha256 = 'newer'")
    publish_copy(place.desk.warehouse, "recorded", "perpetuals")
    feed.receive(event_rows(rows[cut:]))
    closed(network)
    assert "a newer fold of tgn is published; start the stream again" in caplog.text


def test_an_error_of_the_program_ends_the_stream(place: Place) -> None:
    import asyncio

    class Broken:
        def due(self) -> object:
            return object()

        def close(self, due: object) -> None:
            raise ZeroDivisionError

    async def go() -> None:
        closes = BarCloser("perpetuals", Broken())  # type: ignore[arg-type]
        closes.begin_due(asyncio.Event())
        await closes.end()
        closes.begin_due(asyncio.Event())

    with pytest.raises(ZeroDivisionError):
        asyncio.run(go())


@pytest.fixture
def put_night(desk) -> Callable[[str], Path]:
    """put_night(model): a published night with one fold of it, whose file is returned."""

    def put(model: str) -> Path:
        warehouse, keys, instant = (
            desk.warehouse,
            {"source": "recorded", "universe": "perpetuals"},
            datetime(2024, 6, 20),
        )
        spec, scaler = zoo.Spec(model, d_model=8, n_layers=1, d_state=4), Scaler(("a",), (0.0,), (1.0,))
        header = Header(spec, TrainConfig(), scaler, (1, 5), HOUR_US, Outcome(1, 0.5, 10, 5, 1, "d", "c"))
        path = warehouse.artifacts / "fold.safetensors"
        digest = save_artifact(path, header, zoo.build(spec, 1, 2, 0).state_dict())
        times = dict.fromkeys(("train_start", "train_end", "last_label_end", "test_start"), instant.replace(tzinfo=UTC))
        times["test_end"] = datetime(2024, 6, 22, tzinfo=UTC)
        sizes = dict.fromkeys(("purge_bars", "embargo_bars", "train_rows", "validation_rows", "epochs", "fold"), 0)
        texts = {
            "fold_key": "k",
            "data_hash": "d",
            "code_version": "c",
            "artifact": path.name,
            "artifact_sha256": digest,
        }
        night = {"clock": times["train_start"], "settings": "{}", "settings_hash": "", "state": "published"}
        champion = {"role": "champion", "model": model, "trial_ids": ["t"], "reason": "best"}
        with warehouse.write("night") as con:
            append(con, "store.folds", pa.Table.from_pylist([times | sizes | texts]), **keys, trial_id="t", run_id="r")
            dated = {"night": instant.date(), **keys, "run_id": "r"}
            append(con, "store.nights", pa.Table.from_pylist([night | {"published_at": night["clock"]}]), **dated)
            append(con, "store.model_registry", pa.Table.from_pylist([champion]), **dated)
        publish_copy(warehouse, "recorded", "perpetuals")
        return path

    return put


def test_a_fold_knows_its_test_window(desk, put_night) -> None:
    put_night("tgn")
    fold = published_fold(market(desk), "tgn")
    assert (str(fold.test_start), fold.test_bars) == ("2024-06-20T00:00:00.000000", 48)
    assert json.dumps(fold.said)


def test_a_fold_that_is_not_there_or_reads_no_events_is_refused(desk, put_night) -> None:
    path = put_night("gru")
    with pytest.raises(NoModelError, match="only networks can be fed"):
        published_fold(market(desk), "momentum")
    with pytest.raises(NoModelError, match="no published recorded night of perpetuals has a fold of tgn"):
        published_fold(market(desk), "tgn")
    with pytest.raises(NoModelError, match="no published live night of perpetuals has a fold of gru"):
        published_fold(market(desk, "live"), "gru")
    with pytest.raises(NoModelError, match="gru reads no events between bars"):
        published_fold(market(desk), "gru")
    path.write_bytes(b"damaged")
    with pytest.raises(DamagedArtifactError, match=r"fold\.safetensors: not the file that the fold wrote"):
        published_fold(market(desk), "gru")


def market(desk, source: str = "recorded") -> LiveMarket:
    return LiveMarket(desk.warehouse, desk.night(datetime(2024, 6, 20).date(), "perpetuals").universe, source)
