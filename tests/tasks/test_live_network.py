"""A real temporal graph network behind a stream: its memory depends on the events alone, and survives a restart."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from models import zoo
from models.features.scaling import Scaler
from models.graphs.market_events import market_nodes
from models.training.artifact import Header, Outcome, save_artifact
from models.training.config import TrainConfig
from models.training.errors import DamagedArtifactError
from tasks.errors import NoModelError
from tasks.feed import Feed
from tasks.live_network import LiveNetwork, published_network
from tasks.markets.event_rows import event_rows
from warehouse.publish import publish_copy
from warehouse.tables import append

pytest.importorskip("models.nets.tgn", reason="no temporal graph network in the zoo")
SYMBOLS, HOUR = ("AAA", "BBB"), 3_600_000_000
BEGAN = 1_789_299_660_000_000


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return zoo.build(zoo.Spec("tgn", d_model=16, n_layers=1), n_features=5, n_horizons=2)


def rows(events: int = 120, seed: int = 0) -> list[dict]:
    draw = np.random.default_rng(seed)
    return [
        {"kind": "trade", "symbol": SYMBOLS[draw.integers(2)], "ts": BEGAN + 90_000 * i, "event_id": str(i)}
        | {"side": "buy" if draw.random() < 0.5 else "sell", "price": 100 + draw.normal(), "size": 1 + draw.random()}
        for i in range(events)
    ]


def fed(parts: list[list[dict]], memory: LiveNetwork) -> Feed:
    feed = Feed(SYMBOLS, memory, bound_us=1_000_000)
    for part in parts:
        feed.receive(event_rows(part))
    feed.buffer.finish()
    return feed


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_the_memory_follows_from_the_events_and_not_from_their_arrival() -> None:
    told = rows()
    clean, faulty = LiveNetwork(network(), 2, HOUR), LiveNetwork(network(), 2, HOUR)
    fed([told], clean)
    late = [told[i] for i in np.argsort(np.arange(120) + np.random.default_rng(1).integers(0, 9, 120))]
    fed([late[i : i + 7] + late[max(0, i - 3) : i] for i in range(0, 120, 7)], faulty)
    same(clean.state(), faulty.state())
    assert clean.state()["close_us"] == BEGAN // HOUR * HOUR


def test_a_restored_memory_goes_on_as_one_that_was_never_put_down() -> None:
    told = rows()
    whole, first, second = (LiveNetwork(network(), 2, HOUR) for _ in range(3))
    fed([told], whole)
    feed = Feed(SYMBOLS, first, bound_us=1_000_000)
    feed.receive(event_rows(told[:70]))
    kept = {name: array.copy() for name, array in feed.state().items()}
    feed.receive(event_rows(told[70:]))  # alters nothing of what was kept
    after = Feed(SYMBOLS, second, bound_us=1_000_000)
    for name, part in (("buffer", after.buffer), ("rows", after.rows), ("memory", second)):
        part.restore({key.removeprefix(f"{name}."): kept[key] for key in kept if key.startswith(f"{name}.")})
    after.receive(event_rows(told[65:]))  # some again
    after.buffer.finish()
    same(whole.state(), second.state())


def test_the_memory_is_what_the_network_itself_keeps_of_the_events_and_can_be_embedded() -> None:
    memory, seen = LiveNetwork(network(), 2, HOUR), []
    feed = Feed(SYMBOLS, memory, bound_us=0)
    feed.buffer._consume = lambda events: (seen.append(events), memory.consume(events))
    feed.receive(event_rows(rows()))
    assert len(seen) > 50
    state = memory.network.initial_state(1, 2)
    empty = memory.network.initial_state(1, 2)
    with torch.no_grad():
        for events in seen:
            state = memory.network.insert(state, events, memory.close_us, HOUR)
        at = torch.arange(2), torch.full((2,), 0.5, dtype=torch.float64)
        z, expected, before = (memory.network.embed(one, *at) for one in (memory.state_now, state, empty))
    assert torch.equal(z, expected)
    assert z.shape == (2, 16)
    assert not torch.allclose(z, before)
    assert len(market_nodes(SYMBOLS)) == len(memory.state()["0.1"])


def test_a_state_that_was_taken_is_not_altered_by_later_events() -> None:
    memory, told = LiveNetwork(network(), 2, HOUR), rows()
    feed = Feed(SYMBOLS, memory, bound_us=0)
    feed.receive(event_rows(told[:60]))
    taken = memory.state()
    kept = {name: array.copy() for name, array in taken.items()}
    feed.receive(event_rows(told[60:]))
    same(taken, kept)
    assert not np.array_equal(memory.state()["0.0"], kept["0.0"])


def test_the_memory_of_another_network_is_refused() -> None:
    with pytest.raises(NoModelError, match="the saved memory is of another network"):
        LiveNetwork(network(), 3, HOUR).restore(LiveNetwork(network(), 2, HOUR).state())


def test_a_network_that_was_fitted_anew_begins_empty() -> None:
    before = LiveNetwork(network(), 2, HOUR, fold="before")
    fed([rows()], before)
    after, empty = (LiveNetwork(network(1), 2, HOUR, fold="after") for _ in range(2))
    after.restore(before.state())
    same(after.state(), empty.state())


@pytest.fixture
def put_night(desk):
    """put_night(model): a published night with one fold of it, whose file is returned."""

    def put(model: str) -> Path:
        warehouse, keys, instant = (
            desk.warehouse,
            {"source": "recorded", "universe": "perpetuals"},
            datetime(2024, 6, 20),
        )
        spec, scaler = zoo.Spec(model, d_model=8, n_layers=1, d_state=4), Scaler(("a",), (0.0,), (1.0,))
        header = Header(spec, TrainConfig(), scaler, (1, 5), HOUR, Outcome(1, 0.5, 10, 5, 1, "d", "c"))
        path = warehouse.artifacts / "fold.safetensors"
        digest = save_artifact(path, header, zoo.build(spec, 1, 2, 0).state_dict())
        times = dict.fromkeys(("train_start", "train_end", "last_label_end", "test_start"), instant.replace(tzinfo=UTC))
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


def test_a_published_fold_can_be_fed(desk, put_night) -> None:
    put_night("tgn")
    memory = published_network(desk.warehouse, "perpetuals", "tgn", 2)
    assert memory.bar_us == HOUR
    fed([rows()], memory)
    assert memory.state()["close_us"] > 0


def test_a_fold_that_is_not_there_or_reads_no_events_is_refused(desk, put_night) -> None:
    path = put_night("gru")
    with pytest.raises(NoModelError, match="only networks can be fed"):
        published_network(desk.warehouse, "perpetuals", "momentum", 2)
    with pytest.raises(NoModelError, match="no published night of perpetuals has a fold of tgn"):
        published_network(desk.warehouse, "perpetuals", "tgn", 2)
    with pytest.raises(NoModelError, match="gru reads no events between bars"):
        published_network(desk.warehouse, "perpetuals", "gru", 2)
    path.write_bytes(b"damaged")
    with pytest.raises(DamagedArtifactError, match=r"fold\.safetensors: not the file that the fold wrote"):
        published_network(desk.warehouse, "perpetuals", "gru", 2)
