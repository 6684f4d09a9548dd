"""Forecasts that a network makes on a live stream: each key is stored once, and the first forecast is kept."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest

from warehouse.connect import Warehouse
from warehouse.errors import RowsRefusedError
from warehouse.forecasts import append_forecasts
from warehouse.publish import PublishedCopy, publish_copy
from warehouse.tables import append

BAR_OPEN = datetime(2026, 9, 13, 12, tzinfo=UTC)
KEYS = {"source": "live", "universe": "crypto", "model": "tgn"}


def forecast(symbol: str = "BTCUSDT", hours: int = 0, horizon: int = 1, **changes: object) -> dict:
    """A row for the hourly bar that opens ``hours`` after BAR_OPEN; ``changes`` replace values."""
    ts = BAR_OPEN + timedelta(hours=hours)
    row = {"symbol": symbol, "ts": ts, "closes_at": ts + timedelta(hours=1), "horizon_bars": horizon}
    row |= {"trial_id": "t", "fold": 3, "artifact_sha256": "a", "expected_return": 0.01, "expected_volatility": 0.02}
    row |= {"p_strong_sell": 0.1, "p_sell": 0.1, "p_hold": 0.2, "p_buy": 0.25, "p_strong_buy": 0.35}
    row |= {"label_3": "BUY", "confidence": 0.6, "freshness": 0.75, "stale": False, "made_at": ts, **changes}
    return row


def write_forecasts(warehouse: Warehouse, *rows: dict, **changes: str) -> int:
    """Writes the rows; returns how many were new. ``changes`` replace values of KEYS."""
    with warehouse.write("forecasts") as con:
        return append_forecasts(con, pa.Table.from_pylist(list(rows)), **(KEYS | changes), run_id="r")


def select(warehouse: Warehouse, statement: str) -> list[tuple]:
    with warehouse.read() as con:
        return con.execute(statement).fetchall()


def test_a_forecast_that_is_made_again_changes_nothing(warehouse: Warehouse) -> None:
    assert write_forecasts(warehouse, forecast(), forecast("ETHUSDT")) == 2
    assert write_forecasts(warehouse, forecast(expected_return=-1.0), forecast(hours=1), forecast(horizon=4)) == 2
    returns = select(warehouse, "SELECT expected_return FROM stream_forecasts WHERE symbol = 'BTCUSDT'")
    assert returns == [(0.01,)] * 3
    assert write_forecasts(warehouse, forecast(), model="dyrep") == 1
    assert write_forecasts(warehouse, forecast(), source="recorded") == 1


def test_the_table_itself_refuses_a_repeated_key(warehouse: Warehouse) -> None:
    write_forecasts(warehouse, forecast())
    with pytest.raises(RowsRefusedError, match="do not fit"), warehouse.write("twice") as con:
        append(con, "store.stream_forecasts", pa.Table.from_pylist([forecast()]), **KEYS, run_id="r")


def test_signals_now_are_the_newest_of_each_symbol_and_model(warehouse: Warehouse) -> None:
    write_forecasts(warehouse, forecast(), forecast(hours=1), forecast(hours=1, horizon=4), forecast("ETHUSDT"))
    write_forecasts(warehouse, forecast(), model="dyrep")
    signals = select(
        warehouse, "SELECT model, symbol, hour(ts), horizon_bars, p_up, p_down FROM signals_now ORDER BY ALL"
    )
    assert [(model, symbol, hour, horizon) for model, symbol, hour, horizon, _, _ in signals] == [
        ("dyrep", "BTCUSDT", 12, 1),
        ("tgn", "BTCUSDT", 13, 1),
        ("tgn", "BTCUSDT", 13, 4),
        ("tgn", "ETHUSDT", 12, 1),
    ]
    for *_, p_up, p_down in signals:
        assert p_up == pytest.approx(0.25 + 0.35)  # p_buy + p_strong_buy of ``forecast``
        assert p_down == pytest.approx(0.1 + 0.1)  # p_sell + p_strong_sell


def test_forecasts_are_published_with_every_night_and_again_with_the_next(
    warehouse: Warehouse, add_night: Callable[..., None]
) -> None:
    for night, symbol in ((date(2024, 6, 28), "BTCUSDT"), (date(2024, 7, 1), "ETHUSDT")):
        add_night(night, universe="crypto")
        write_forecasts(warehouse, forecast(symbol), source="recorded")
        publish_copy(warehouse, "recorded", "crypto")
    with PublishedCopy(warehouse.path).read() as con:
        forecasts = con.execute("SELECT symbol FROM stream_forecasts ORDER BY symbol").fetchall()
        signals = con.execute("SELECT symbol FROM signals_now ORDER BY symbol").fetchall()
    assert forecasts == signals == [("BTCUSDT",), ("ETHUSDT",)]
