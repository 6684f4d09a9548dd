"""Predictions as rows to store, and stored predictions as panels, averaged over the trials (one per seed) of a model.

A night is the run for one as-of date. Glossary: t bars, n assets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from models.panel import TS_TYPE, Panel
from models.scoring.signals import CLASS_NAMES_3, signals_from_probabilities
from tasks.errors import NoForecastsError
from tasks.night import Night
from warehouse.tables import read_query

if TYPE_CHECKING:  # reading forecasts does not import torch
    from models.training.fit import Predictions

PROBABILITIES = ("p_strong_sell", "p_sell", "p_hold", "p_buy", "p_strong_buy")
FORECAST_COLUMNS = (*PROBABILITIES, "expected_return", "expected_volatility")
RULE = "rule"
MIN_FRESHNESS = 0.5  # freshness of a memory at its greatest allowed age; a row with less freshness is stale


class Contender(NamedTuple):
    """A model on the leaderboard: a network (``kind`` "network", one trial per seed) or a rule ("rule", no trials)."""

    model: str
    kind: str
    trial_ids: tuple[str, ...] = ()


def networks(contenders: Sequence[Contender]) -> list[Contender]:
    """The contenders that are networks; a contender may also be given as a plain tuple."""
    return [c for c in (Contender(*c) for c in contenders) if c.kind != RULE]


def load_forecasts(night: Night, contender: Contender, horizon_bars: int, open_times: np.ndarray) -> Panel:
    """Panel of FORECAST_COLUMNS of the members at the bars ``open_times`` (t,): the mean over the contender's trials.

    Its mask is False, and its values NaN, where any trial has no prediction. Raises NoForecastsError when the mask is
    False everywhere.
    """
    symbols = night.universe.symbols
    keys = {**night.slice, "horizon_bars": horizon_bars, "symbols": list(symbols)}
    bounds = {"start": utc_datetime(open_times[0]), "end": utc_datetime(open_times[-1]) + timedelta(microseconds=1)}
    with night.warehouse.read() as con:
        tables = [read_query(con, "predictions_between", **keys, **bounds, trial_id=t) for t in contender.trial_ids]
    trials = [Panel.from_table(table, FORECAST_COLUMNS, symbols, open_times) for table in tables]
    mask = np.logical_and.reduce([t.mask for t in trials]) if trials else np.zeros(len(open_times), dtype=bool)
    if not mask.any():
        raise NoForecastsError(
            f"{contender.model} ({len(trials)} trials) has no {night.source} predictions {horizon_bars} bars ahead for "
            f"{night.universe.name} up to {open_times[-1]}; train the night first, or choose a later one: the first "
            "fold needs its warm-up and training bars"
        )
    mean = np.mean([t.values for t in trials], axis=0)
    return Panel(open_times, symbols, FORECAST_COLUMNS, np.where(mask[:, :, None], mean, np.nan), mask)


def prediction_rows(predictions: Predictions) -> pa.Table:
    """Rows of store.predictions without their keys: one per valid (bar, asset) and horizon, ordered by these three."""
    bar, asset = np.nonzero(predictions.valid)
    n_horizons = len(predictions.horizons)
    ts = pa.array(predictions.ts[bar].repeat(n_horizons), pa.timestamp("us")).cast(TS_TYPE)
    columns: dict[str, Any] = {
        "symbol": np.asarray(predictions.symbols, dtype=object)[asset].repeat(n_horizons),
        "ts": ts,
        "horizon_bars": np.tile(np.asarray(predictions.horizons, dtype=np.int32), len(bar)),
        "expected_return": predictions.returns[bar, asset].ravel(),
        "expected_volatility": predictions.volatility[bar, asset].repeat(n_horizons),
    }
    for k, name in enumerate(PROBABILITIES):
        columns[name] = predictions.probabilities[bar, asset, k].repeat(n_horizons)
    return pa.table(columns)


def stream_rows(
    predictions: Predictions,
    close_times: np.ndarray,
    freshness: np.ndarray,
    is_written: np.ndarray,
    origin: Mapping[str, object],
) -> pa.Table:
    """Rows of store.stream_forecasts without its keys, of the bars where ``is_written`` (t,) is True.

    They are the ``prediction_rows`` of these bars with further columns.

    ``close_times`` (t,) are the closes of the predicted bars. ``freshness`` (t, n) is that of each asset's memory at
    these closes, NaN for a memory without an event. A row is stale if its freshness is below MIN_FRESHNESS or NaN.
    ``origin`` holds columns with the same value in every row.
    """
    written = replace(predictions, valid=predictions.valid & is_written[:, None])
    bar, asset = np.nonzero(written.valid)
    n_horizons = len(predictions.horizons)
    n_rows = len(bar) * n_horizons
    signals = signals_from_probabilities(predictions.probabilities)
    columns: dict[str, Any] = {
        "closes_at": pa.array(close_times[bar].repeat(n_horizons), pa.timestamp("us")).cast(TS_TYPE),
        "label_3": np.array(CLASS_NAMES_3, dtype=object)[signals.class_3[bar, asset]].repeat(n_horizons),
        "confidence": signals.confidence[bar, asset].repeat(n_horizons),
        "freshness": pa.array(freshness[bar, asset].repeat(n_horizons), from_pandas=True),
        "stale": ~(freshness[bar, asset] >= MIN_FRESHNESS).repeat(n_horizons),
        "made_at": pa.repeat(pa.scalar(datetime.now(UTC), TS_TYPE), n_rows),
    }
    columns |= {name: pa.repeat(value, n_rows) for name, value in origin.items()}
    rows = prediction_rows(written)
    return pa.table({**{name: rows[name] for name in rows.column_names}, **columns})


def utc_datetime(ts: np.datetime64) -> datetime:
    """The instant as an aware datetime, UTC."""
    return ts.astype("datetime64[us]").astype(datetime).replace(tzinfo=UTC)
