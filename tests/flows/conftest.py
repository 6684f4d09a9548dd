"""Fixtures: a warehouse with one published night of three symbols, a warehouse without nights, and a small HTTP server.

A night is the run for one as-of date. The published copy is the read-only database beside the warehouse.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.publish import publish_copy
from warehouse.tables import append

NIGHT = date(2024, 6, 28)
CLOCK = datetime(2024, 6, 29, tzinfo=UTC)
KEYS = {"source": "recorded", "universe": "us_stocks", "night": NIGHT, "run_id": "run"}
LEADERBOARD = [
    {
        "rank": rank,
        "model": model,
        "kind": "network",
        "backtest_id": model,
        "sharpe": -10.25,
        "sortino": -10.5,
        "annual_return": -0.1234,
        "excess_annual_return": 1.25,
        "max_drawdown": -0.5,
        "annual_turnover": 123.4,
        "sessions": 432,
        "first_session": NIGHT,
        "last_session": NIGHT,
        "fill": "next_open",
    }
    for rank, model in enumerate(("s4d", "buy_and_hold"), start=1)
]
NEXT_SESSION = date(2024, 7, 1)
WEIGHTS = {"AAA": 0.05, "BBB": -0.02, "CCC": 0.0}


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a migrated DuckDB file without nights, which other fixtures copy."""
    path = tmp_path_factory.mktemp("migrated") / "warehouse.duckdb"
    migrate(Warehouse.from_url(path))
    return path


@pytest.fixture(scope="session")
def published_template(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """A warehouse with the published night NIGHT, and its published copy.

    The fixture ``published_warehouse`` copies both files; no test writes to them.
    """
    warehouse = Warehouse.from_url(tmp_path_factory.mktemp("published") / "warehouse.duckdb")
    shutil.copyfile(migrated_file, warehouse.path)
    insert_night(warehouse)
    publish_copy(warehouse, "recorded", "us_stocks")
    return warehouse


@pytest.fixture
def empty_warehouse(migrated_file: Path, tmp_path: Path) -> Warehouse:
    """A migrated warehouse without any night."""
    shutil.copyfile(migrated_file, tmp_path / "warehouse.duckdb")
    return Warehouse.from_url(tmp_path / "warehouse.duckdb")


@pytest.fixture
def published_warehouse(published_template: Warehouse, tmp_path: Path) -> Warehouse:
    """The test's own warehouse with the published night NIGHT and its published copy."""
    warehouse = Warehouse.from_url(tmp_path / "warehouse.duckdb")
    shutil.copyfile(published_template.path, warehouse.path)
    shutil.copyfile(published_template.published, warehouse.published)
    return warehouse


def insert_night(warehouse: Warehouse, state: str = "published", **changes: object) -> None:
    """Writes the row of a night; if published, also a leaderboard and a champion with one signal per symbol.

    ``changes`` replace values of KEYS.
    """
    keys = KEYS | changes
    row = {
        "clock": CLOCK,
        "settings": "{}",
        "settings_hash": "0",
        "state": state,
        "champion": "s4d",
        "for_session": NEXT_SESSION,
    }
    row |= {"message": f"it {state}", "published_at": CLOCK if state == "published" else None}
    champion = {"role": "champion", "model": "s4d", "trial_ids": ["t"], "sharpe": 1.0, "reason": "best"}
    signals = [
        {
            "model": "s4d",
            "symbol": symbol,
            "as_of": CLOCK,
            "for_session": NEXT_SESSION,
            "side": "LONG" if weight > 0 else "SHORT" if weight < 0 else "FLAT",
            "label_3": "HOLD",
            "label_5": "HOLD",
            "confidence": 0.5,
            "expected_return": {1: 0.01, 5: -0.02},
            "expected_volatility": 0.1,
            "weight": weight,
            "close": 10.0,
            "stop_price": None,
        }
        for symbol, weight in WEIGHTS.items()
    ]
    with warehouse.write("write a night") as con:
        append(con, "store.nights", pa.Table.from_pylist([row]), **keys)
        if state == "published":
            append(con, "store.leaderboard", pa.Table.from_pylist(LEADERBOARD), **keys)
            append(con, "store.model_registry", pa.Table.from_pylist([champion]), **keys)
            append(con, "store.signals", pa.Table.from_pylist(signals, SIGNALS_SCHEMA), **keys)


SIGNALS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("model", "symbol", "label_3", "label_5", "side")),
        *((name, pa.float64()) for name in ("confidence", "expected_volatility", "weight", "close", "stop_price")),
        ("as_of", pa.timestamp("us", tz="UTC")),
        ("for_session", pa.date32()),
        ("expected_return", pa.map_(pa.int32(), pa.float64())),
    ]
)


@pytest.fixture
def write_night() -> Callable[..., None]:
    """write_night(warehouse, state, night=…): writes one more night, see ``insert_night``."""
    return insert_night


@pytest.fixture
def api() -> Iterator[Callable[..., str]]:
    """api({path: response}, status): starts an HTTP server that answers GET /api{path}, and returns its /api address.

    A response is sent as JSON, with the same ``status`` (default 200) for every path.
    """
    servers = []

    def start(responses: dict[str, object], status: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(responses.get(self.path.removeprefix("/api"))).encode())

            def log_message(self, *_: object) -> None:
                """Logs nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/api"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
