"""Sessions with canned answers, recorded wire bodies, and a small tape in the recorded layout."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from requests.adapters import BaseAdapter

from models.sessions import bar_opens, session_dates


class CannedAdapter(BaseAdapter):
    """A transport that answers each path with one status and body; ``requested_paths`` records the requests."""

    def __init__(self, answers: dict[str, tuple[int, Any]]) -> None:
        super().__init__()
        self._answers = answers
        self.requested_paths: list[str] = []

    def send(self, request, **_):
        path = request.url.split("?")[0].split("/", 3)[3]
        self.requested_paths.append(path)
        status, body = self._answers.get(path, (404, "<html></html>"))
        response = requests.Response()
        response.status_code = status
        response.request = request
        response.url = request.url
        response.encoding = "utf-8"
        response.raw = io.BytesIO((body if isinstance(body, str) else json.dumps(body)).encode())
        return response

    def close(self) -> None:
        pass


@pytest.fixture
def canned() -> Callable[[dict[str, tuple[int, Any]]], tuple[requests.Session, CannedAdapter]]:
    """canned({path: (status, body)}): a session that gets these answers, and its transport."""

    def build(answers: dict[str, tuple[int, Any]]) -> tuple[requests.Session, CannedAdapter]:
        session = requests.Session()
        adapter = CannedAdapter(answers)
        session.mount("https://", adapter)
        return session, adapter

    return build


@pytest.fixture
def wire(shared_data: Path) -> Callable[[str], Any]:
    """wire(name): a recorded body under wire/; Yahoo's without the recorder's envelope."""

    def load(name: str) -> Any:
        text = (shared_data / "wire" / name).read_text()
        body = json.loads(text[text.index("{") :])
        return body["response"]["bodyJson"] if "response" in body else body

    return load


@pytest.fixture
def small_tape(tmp_path: Path) -> Path:
    """A tape of two stocks (2024-01-02 to 2024-03-28) and two perpetuals (2024-01-01 to 2024-03-31)."""
    folder = tmp_path / "tape"
    rng = np.random.default_rng(1)
    start = date(2024, 1, 1)
    stop = date(2024, 4, 1)
    days = session_dates("XNYS", start, stop).astype("datetime64[D]")
    hours = bar_opens("24/7", "1h", start, stop)
    settlements = hours[8::8]
    tables = {
        "yahoo/bars_1d": [make_bars(rng, symbol, "date", days, adj_close=True) for symbol in ("AAA", "BBB")],
        "bybit/klines_60": [make_bars(rng, symbol, "ts", hours) for symbol in ("XUSDT", "YUSDT")],
        "bybit/funding": [
            pa.table(
                {
                    "symbol": ["XUSDT"] * len(settlements),
                    "ts": pa.array(settlements).cast(pa.timestamp("us", "UTC")),
                    "funding_rate": np.round(1e-4 * rng.standard_normal(len(settlements)), 8),
                }
            )
        ],
    }
    for name, parts in tables.items():
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(parts), path)
    return folder


def make_bars(
    rng: np.random.Generator, symbol: str, time_column: str, ts: np.ndarray, adj_close: bool = False
) -> pa.Table:
    close = np.round(100 * np.exp(0.01 * np.cumsum(rng.standard_normal(len(ts)))), 2)
    open_ = np.append(100.0, close[:-1])
    stamps = pa.array(ts) if time_column == "date" else pa.array(ts).cast(pa.timestamp("us", "UTC"))
    columns = {
        "symbol": [symbol] * len(ts),
        time_column: stamps,
        "open": open_,
        "high": np.maximum(open_, close) + 0.5,
        "low": np.minimum(open_, close) - 0.5,
        "close": close,
        "volume": np.round(rng.uniform(1e5, 2e5, len(ts))),
    }
    return pa.table(columns | ({"adj_close": close} if adj_close else {}))
