"""Predictions as rows to store, and stored predictions as panels, averaged over the seeds of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from models.panel import TS_TYPE, Panel
from models.scoring.signals import LABELS_3, views
from tasks.errors import NoForecastsError
from tasks.night import Night
from warehouse.tables import read_query

if TYPE_CHECKING:  # reading forecasts does not import torch
    from models.training.fit import Predictions

PROBABILITIES = ("p_strong_sell", "p_sell", "p_hold", "p_buy", "p_strong_buy")
FORECAST_COLUMNS = (*PROBABILITIES, "expected_return", "expected_volatility")
RULE = "rule"


class Contender(NamedTuple):
    """A model on the leaderboard: a network with one trial per seed, or a rule (``kind`` "rule") with none."""

    model: str
    kind: str
    trial_ids: tuple[str, ...] = ()


def networks(contenders: Sequence[Contender]) -> list[Contender]:
    """The contenders that forecast."""
    return [c for c in (Contender(*c) for c in contenders) if c.kind != RULE]


def load_forecasts(night: Night, contender: Contender, horizon_bars: int, opens: np.ndarray) -> Panel:
    """FORECAST_COLUMNS of the members on the grid ``opens`` (t,): the mean over the contender's trials.

    Masked where any of the trials has no prediction. Raises NoForecastsError when every row is masked.
    """
    symbols = night.universe.symbols
    keys = {**night.slice, "horizon_bars": horizon_bars, "symbols": list(symbols)}
    span = {"start": utc_datetime(opens[0]), "end": utc_datetime(opens[-1]) + timedelta(microseconds=1)}
    with night.warehouse.read() as con:
        tables = [read_query(con, "predictions_between", **keys, **span, trial_id=t) for t in contender.trial_ids]
    trials = [Panel.from_table(table, FORECAST_COLUMNS, symbols, opens) for table in tables]
    mask = np.logical_and.reduce([t.mask for t in trials]) if trials else np.zeros(len(opens), dtype=bool)
    if not mask.any():
        raise NoForecastsError(
            f"{contender.model} ({len(trials)} trials) has no {night.source} predictions {horizon_bars} bars ahead for "
            f"{night.universe.name} up to {opens[-1]}; train the night first, or choose a later one: the first fold "
            "needs its warm-up and training bars"
        )
    mean = np.mean([t.values for t in trials], axis=0)
    return Panel(opens, symbols, FORECAST_COLUMNS, np.where(mask[:, :, None], mean, np.nan), mask)


def prediction_rows(predictions: Predictions) -> pa.Table:
    """Rows of store.predictions without their keys: one per valid (bar, asset) and horizon."""
    i, j = np.nonzero(predictions.valid)
    count = len(predictions.horizons)
    ts = pa.array(predictions.ts[i].repeat(count), pa.timestamp("us")).cast(TS_TYPE)
    columns: dict[str, Any] = {
        "symbol": np.asarray(predictions.symbols, dtype=object)[j].repeat(count),
        "ts": ts,
        "horizon_bars": np.tile(np.asarray(predictions.horizons, dtype=np.int32), len(i)),
        "expected_return": predictions.returns[i, j].ravel(),
        "expected_volatility": predictions.volatility[i, j].repeat(count),
    }
    for k, name in enumerate(PROBABILITIES):
        columns[name] = predictions.probabilities[i, j, k].repeat(count)
    return pa.table(columns)


def stream_rows(
    predictions: Predictions,
    closes: np.ndarray,
    freshness: np.ndarray,
    is_written: np.ndarray,
    origin: Mapping[str, object],
) -> pa.Table:
    """Rows of store.stream_forecasts without its keys: the ``prediction_rows`` of the bars where ``is_written`` (t,).

    ``closes`` (t,) of the bars; ``freshness`` (t, n) of each memory at them, NaN for a memory without an event;
    ``origin``: columns that are the same in every row.
    """
    written = replace(predictions, valid=predictions.valid & is_written[:, None])
    i, j = np.nonzero(written.valid)
    count = len(predictions.horizons)
    view = views(predictions.probabilities)
    columns: dict[str, Any] = {
        "closes_at": pa.array(closes[i].repeat(count), pa.timestamp("us")).cast(TS_TYPE),
        "label_3": np.array(LABELS_3, dtype=object)[view.label_3[i, j]].repeat(count),
        "confidence": view.confidence[i, j].repeat(count),
        "freshness": pa.array(freshness[i, j].repeat(count), from_pandas=True),
        "stale": ~(freshness[i, j] >= 0.5).repeat(count),  # 0.5: the memory has reached its greatest allowed age
        "made_at": pa.repeat(pa.scalar(datetime.now(UTC), TS_TYPE), len(i) * count),
    }
    columns |= {name: pa.repeat(value, len(i) * count) for name, value in origin.items()}
    rows = prediction_rows(written)
    return pa.table({**{name: rows[name] for name in rows.column_names}, **columns})


def utc_datetime(ts: np.datetime64) -> datetime:
    """The instant as an aware datetime, UTC."""
    return ts.astype("datetime64[us]").astype(datetime).replace(tzinfo=UTC)
