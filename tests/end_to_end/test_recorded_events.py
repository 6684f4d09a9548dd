"""A night on recorded events in one command: the trades become one-second bars, and the networks also read them.

A night is the run for one as-of date; a tape is a folder of recorded market data.
"""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from flows.settings import Profile, load_settings
from flows.train import recipe_of
from models.graphs.context import SideInputs
from models.scoring.folds import walk_forward
from models.training.fit import predict_fold
from models.zoo import Spec
from tasks.graphs import build_graphs, write_features
from tasks.ingest import ingest_bars
from tasks.night import Night
from tasks.train import load_training_data, train_model, trial_id
from tasks.validate import validate_night
from tests.end_to_end.command_line import ReadContents, RunCommand
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.universes import load_universe

pytestmark = pytest.mark.slow
AS_OF = date(2024, 8, 8)
UNIVERSE = "binance_seconds"
MIDNIGHT = datetime(2024, 8, 9, tzinfo=UTC)  # the clock of the night
EVENT_NETWORKS = ("tgn", "tgat", "jodie", "dyrep")
NETWORKS = (*EVENT_NETWORKS, "ssm", "gnn")
MODELS = (*NETWORKS, "buy_and_hold")
CUT = datetime(2024, 8, 8, 23, 59, 20, tzinfo=UTC)  # the clock of an earlier run of the night
# the recorder's clock is 1.27 s behind the exchange's, so the rows received by this time include all events before CUT
RECEIVED_BY = CUT
# by relation: the column with the time of a row
TS_COLUMNS = {"features": "ts", "graph_snapshots": "as_of", "graph_edges": "as_of", "predictions": "ts"}


@pytest.fixture(scope="module")
def tape(shared_data: Path) -> Path:
    """The folder with the recorded events."""
    return shared_data / "events"


@pytest.fixture(scope="module")
def arguments(tape: Path) -> list[str]:
    """The command line of the night."""
    models = [word for model in MODELS for word in ("--model", model)]
    return [
        "night",
        "--source",
        "recorded",
        "--tape",
        str(tape),
        "--as-of",
        str(AS_OF),
        "--universe",
        UNIVERSE,
        *models,
    ]


@pytest.fixture(scope="module")
def recorded_file(nightgraph: RunCommand, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The warehouse file after the night."""
    path = tmp_path_factory.mktemp("recorded") / "warehouse.duckdb"
    code, printed = nightgraph(*arguments, "--warehouse", str(path))
    assert code == 0, printed[-5000:]
    return path


@pytest.fixture
def profile(fast_settings: None) -> Profile:
    """The universe's profile with the settings of the night."""
    return load_settings().profile(UNIVERSE)


def make_night(path: Path, tape: Path, clock: datetime = MIDNIGHT) -> Night:
    """The night in the warehouse file ``path``."""
    warehouse = Warehouse.from_url(path)
    return Night(AS_OF, "recorded", load_universe(warehouse, UNIVERSE), warehouse, clock, tape)


def query_rows(path: Path, query: str, **parameters: object) -> list[tuple]:
    """Result rows of a query on the warehouse file ``path``."""
    with duckdb.connect(str(path), read_only=True) as con:
        con.execute("SET TimeZone='UTC'")
        return con.execute(query, parameters).fetchall()


def test_the_night_is_published_with_every_model_and_a_passed_audit(recorded_file: Path) -> None:
    published = recorded_file.with_name("warehouse.published.duckdb")
    assert query_rows(published, "SELECT state, for_session FROM nights") == [("published", AS_OF + timedelta(days=1))]
    board = query_rows(published, "SELECT model, sessions, total_return IS NOT NULL, annual_return FROM leaderboard")
    # networks forecast the last 119 seconds; the first second has a decision but no return
    assert sorted(board) == [(model, 118, True, None) for model in sorted(MODELS)]
    assert query_rows(published, "SELECT bool_and(passed), count(DISTINCT cut) FROM leak_audit") == [(True, 2)]
    assert query_rows(published, "SELECT count(DISTINCT model) FROM signals") == [(len(NETWORKS),)]


def test_every_event_up_to_the_nights_clock_is_stored_as_received_by_then(recorded_file: Path, tape: Path) -> None:
    trades = pq.read_table(tape / "trades_2024-08-08.parquet")
    expected = trades.filter(pc.less_equal(trades["ts_ms"], int(MIDNIGHT.timestamp() * 1000)))
    stored = query_rows(
        recorded_file,
        "SELECT count(*) FILTER (kind = 'trade'), count(*) FILTER (kind = 'book') > 16000, max(ts) <= $clock, "
        "min(fetched_at), max(fetched_at), list_sort(list(DISTINCT source || ' ' || venue)) FROM events",
        clock=MIDNIGHT,
    )
    assert stored == [(expected.num_rows, True, True, MIDNIGHT, MIDNIGHT, ["recorded binance"])]
    bars = query_rows(recorded_file, "SELECT count(*), min(ts), max(ts) FROM bars WHERE interval = '1s'")
    assert bars == [(2057, datetime(2024, 8, 8, 23, 54, 16, tzinfo=UTC), MIDNIGHT - timedelta(seconds=1))]


def test_only_networks_that_read_events_forecast_differently_without_them(
    recorded_file: Path, tape: Path, profile: Profile
) -> None:
    night = make_night(recorded_file, tape)
    recipe = recipe_of(profile)
    data = load_training_data.fn(night, recipe, NETWORKS)
    fold = walk_forward(data.features.ts, data.labels.end, **recipe.folds)[0]
    for model in NETWORKS:
        side_inputs = data.side_inputs_of(Spec(model))
        ((artifact_name,),) = query_rows(
            recorded_file,
            "SELECT artifact FROM folds WHERE trial_id = $id AND fold = 0",
            id=trial_id(night, model, 0, recipe),
        )
        artifact = night.warehouse.artifacts / artifact_name
        with_events = predict_fold(artifact, data.features, side_inputs, fold).returns
        without_events = predict_fold(artifact, data.features, SideInputs(side_inputs.snapshots), fold).returns
        assert np.isfinite(with_events[1:]).any()
        assert np.array_equal(with_events, without_events, equal_nan=True) == (model not in EVENT_NETWORKS), model


def test_forecasts_before_a_cut_do_not_depend_on_later_events(
    recorded_file: Path, tape: Path, profile: Profile, tmp_path: Path
) -> None:
    """A night with its clock at CUT is run on the rows that the recorder had received by RECEIVED_BY."""
    cut_tape = tmp_path / "cut"
    cut_tape.mkdir()
    for path in tape.glob("*.parquet"):
        table = pq.read_table(path)
        was_received = pc.less_equal(table["received_ns"], int(RECEIVED_BY.timestamp() * 1e9))
        pq.write_table(table.filter(was_received), cut_tape / path.name)
    warehouse = Warehouse.from_url(tmp_path / "warehouse.duckdb")
    migrate(warehouse)
    night = make_night(warehouse.path, cut_tape, CUT)
    recipe = recipe_of(profile)
    ingest_bars.fn(night, overlap_bars=5, max_bad_fraction=0.0, threads=2)
    validate_night.fn(night)
    write_features.fn(night)
    build_graphs.fn(night, **profile.graph.model_dump())
    data = load_training_data.fn(night, recipe, EVENT_NETWORKS)
    for model in EVENT_NETWORKS:
        assert train_model.fn(night, data, model, 0, recipe).fitted == 2
    trials = [trial_id(night, model, 0, recipe) for model in EVENT_NETWORKS]
    for relation, ts in TS_COLUMNS.items():
        condition = f"{ts} < $cut" + (" AND list_contains($trials, trial_id)" if relation == "predictions" else "")
        query = f"SELECT * EXCLUDE (run_id) FROM {relation} WHERE {condition} AND $trials IS NOT NULL ORDER BY ALL"
        expected = query_rows(recorded_file, query, cut=CUT, trials=trials)
        actual = query_rows(warehouse.path, query, cut=CUT, trials=trials)
        assert len(actual) > 10 and actual == expected, relation


def test_running_the_night_again_does_nothing(
    recorded_file: Path, nightgraph: RunCommand, contents: ReadContents, arguments: list[str]
) -> None:
    before = contents(recorded_file)
    code, printed = nightgraph(*arguments, "--warehouse", str(recorded_file))
    assert code == 0, printed
    assert "was published before: nothing to do" in printed
    after = contents(recorded_file)
    assert [name for name in before if not before[name].equals(after[name])] == []


def test_ingesting_again_writes_only_the_pull_status(
    recorded_file: Path, tape: Path, tmp_path: Path, contents: ReadContents
) -> None:
    path = Path(shutil.copy(recorded_file, tmp_path))
    night = make_night(path, tape)
    with night.warehouse.write("forget the pull status") as con:
        con.execute("DELETE FROM raw.fetches")
    before = contents(path)
    ingest_bars.fn(night, overlap_bars=5, max_bad_fraction=0.0, threads=2)
    after = contents(path)
    assert [name for name in before if not before[name].equals(after[name])] == ["raw.fetches"]


def test_the_doctor_reports_the_night(recorded_file: Path, nightgraph: RunCommand) -> None:
    code, printed = nightgraph("doctor", "--warehouse", str(recorded_file))
    assert f"recorded {UNIVERSE}: night {AS_OF} published" in printed, printed
    assert code == 0, printed


def test_a_live_night_of_a_recorded_market_is_refused(nightgraph: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "warehouse.duckdb"
    code, printed = nightgraph("night", "--source", "live", "--universe", UNIVERSE, "--warehouse", str(path))
    assert code == 1
    assert "there is no live market of binance" in printed
    assert "Traceback" not in printed
