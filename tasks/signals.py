"""Signals of a night: what each network recommends for each symbol in the next session, written once.

A night is the run for one as-of date; its stored positions and forecasts are the inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.panel import TS_TYPE, Panel
from models.scoring.portfolio import WHOLE_HOUR, Limits, latest_signals
from models.scoring.signals import CLASS_NAMES_3, CLASS_NAMES_5, DIRECTION_NAMES, signals_from_probabilities, stop_price
from models.sessions import last_session, next_session, session_ends
from tasks.errors import NoForecastsError, SourceMismatchError
from tasks.forecasts import PROBABILITIES, Contender, load_forecasts, networks, utc_datetime
from tasks.leaderboard import Row
from tasks.ledger import night_row
from tasks.night import Night
from tasks.panels import bar_grid
from warehouse.errors import PublishedNightError
from warehouse.tables import replace_slice

logger = logging.getLogger(__name__)

SIGNAL_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("symbol", pa.string()),
        ("as_of", TS_TYPE),
        ("for_session", pa.date32()),
        ("side", pa.string()),
        ("label_3", pa.string()),
        ("label_5", pa.string()),
        ("confidence", pa.float64()),
        ("expected_return", pa.map_(pa.int32(), pa.float64())),
        ("expected_volatility", pa.float64()),
        ("weight", pa.float64()),
        ("close", pa.float64()),
        ("stop_price", pa.float64()),
    ]
)
REGISTRY_SCHEMA = pa.schema(
    [
        ("role", pa.string()),
        ("model", pa.string()),
        ("trial_ids", pa.list_(pa.string())),
        ("sharpe", pa.float64()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class SignalReport:
    """``signals`` counts the rows written; ``champion`` is the model whose signals for ``for_session`` are followed."""

    signals: int
    for_session: date
    champion: str


@dataclass(frozen=True, eq=False)
class Decision:
    """The night's last decision, made at the close of the last of t bars, whose forecasts are fresh enough for it.

    ``open_times`` (t,) and ``close_times`` (t,) of the bars are datetime64[us], UTC. ``prices`` is a panel of these
    bars with the columns close and atr_14 (average true range as a fraction of the close).
    """

    open_times: np.ndarray
    close_times: np.ndarray
    prices: Panel


@task(name="next signals", cache_policy=NO_CACHE, persist_result=False)
def next_signals(
    night: Night, models: Sequence[Contender], limits: Limits, horizons: Sequence[int], class_horizon: int
) -> SignalReport:
    """Writes the signals of every network in ``models``, and the networks registered as champion and challenger.

    A signal carries the weight that the backtest decided at the close of the night's last session. A symbol without a
    forecast by then has no signal; neither has a symbol whose forecast is older than the limits allow. The signals of
    an unpublished night may be written again. Raises PublishedNightError when a published night would change,
    NoForecastsError when the leaderboard has no network of ``models`` or the last session has not closed, and
    SourceMismatchError when the tape does not match the source.
    """
    refuse_mixed_sources(night)
    contenders = {c.model: c for c in networks(models)}
    board = night.warehouse.query("leaderboard_of", night=night.as_of, **night.slice).to_pylist()
    network_rows = [row for row in board if row["model"] in contenders]  # by rank, like ``board``
    if not network_rows:
        raise NoForecastsError(
            f"no network on the leaderboard of {night.universe.name}, night {night.as_of}: run its backtest with a "
            "model that forecasts"
        )
    decision = _last_decision(night, limits)
    tables = [
        _signal_rows(night, contenders[row["model"]], row["backtest_id"], decision, horizons, class_horizon)
        for row in sorted(network_rows, key=lambda row: row["model"])
    ]
    signals = pa.concat_tables(tables)
    _write_once(night, signals, _registry_rows(board, network_rows, contenders))
    for_session = next_session(night.universe.calendar, night.as_of)
    report = SignalReport(signals.num_rows, for_session, champion=network_rows[0]["model"])
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def refuse_mixed_sources(night: Night) -> None:
    """Raises SourceMismatchError for a live night with a tape, or a recorded one without."""
    if (night.source == "live" and night.tape is not None) or (night.source == "recorded" and night.tape is None):
        raise SourceMismatchError(
            f"night {night.as_of} of {night.universe.name} is {night.source} and its tape is {night.tape}: signals "
            "computed from a tape are never written as live, and signals of a live market are never written as recorded"
        )


def _last_decision(night: Night, limits: Limits) -> Decision:
    """The decision at the close of the night's last session.

    Raises NoForecastsError when that session's last bar has not closed.
    """
    universe = night.universe
    open_times, close_times = bar_grid(night)
    session_end_bars = session_ends(universe.calendar, universe.interval, close_times)
    session = last_session(universe.calendar, night.as_of)
    if not len(session_end_bars) or open_times[session_end_bars[-1]].astype("datetime64[D]").astype(date) != session:
        raise NoForecastsError(
            f"{universe.name}: the session {session} has not closed by {night.clock}; run the night later"
        )
    last_bar = session_end_bars[-1]
    oldest_close = close_times[last_bar] - limits.max_staleness_hours * WHOLE_HOUR
    fresh_bars = slice(int(np.searchsorted(close_times, oldest_close)), last_bar + 1)
    open_times = open_times[fresh_bars]
    rows = night.warehouse.query(
        "atr_between",
        **night.slice,
        interval=universe.interval,
        symbols=list(universe.symbols),
        start=utc_datetime(open_times[0]),
        end=utc_datetime(open_times[-1]) + timedelta(microseconds=1),
    )
    prices = Panel.from_table(rows, ("close", "atr_14"), universe.symbols, open_times)
    return Decision(open_times, close_times[fresh_bars], prices)


def _signal_rows(
    night: Night,
    contender: Contender,
    backtest_id: str,
    decision: Decision,
    horizons: Sequence[int],
    class_horizon: int,
) -> pa.Table:
    """Rows of store.signals of one network: one per symbol with a fresh forecast, ordered by symbol."""
    forecasts = {h: load_forecasts(night, contender, h, decision.open_times) for h in horizons}
    forecast = forecasts[class_horizon]
    last_position = len(decision.open_times) - 1
    has_forecast = forecast.mask & decision.prices.mask
    latest_bars, _ = latest_signals(has_forecast, decision.close_times, np.array([last_position]))
    latest_bar = latest_bars[0]
    assets = np.flatnonzero(latest_bar >= 0)
    bars = latest_bar[assets]

    def latest(panel: Panel, column: str) -> np.ndarray:
        """The column's value of each asset of ``assets`` at its latest bar with a forecast."""
        return panel.column(column)[bars, assets]

    signals = signals_from_probabilities(np.stack([latest(forecast, name) for name in PROBABILITIES], axis=-1))
    weight = _decided_weights(night, backtest_id, decision)[assets]
    direction = np.sign(weight).astype(np.int64)
    close = latest(decision.prices, "close")
    atr = close * latest(decision.prices, "atr_14")
    returns = np.stack([latest(forecasts[h], "expected_return") for h in horizons], axis=-1)
    columns = {
        "model": [contender.model] * len(assets),
        "symbol": [night.universe.symbols[j] for j in assets],
        "as_of": pa.array(decision.open_times[bars], pa.timestamp("us")).cast(TS_TYPE),
        "for_session": [next_session(night.universe.calendar, night.as_of)] * len(assets),
        "side": [DIRECTION_NAMES[d + 1] for d in direction],
        "label_3": [CLASS_NAMES_3[k] for k in signals.class_3],
        "label_5": [CLASS_NAMES_5[k] for k in signals.class_5],
        "confidence": signals.confidence,
        "expected_return": [list(zip(horizons, by_horizon, strict=True)) for by_horizon in returns.tolist()],
        "expected_volatility": latest(forecast, "expected_volatility"),
        "weight": weight,
        "close": close,
        "stop_price": pa.array(stop_price(direction, close, atr), from_pandas=True),
    }
    return pa.table(columns, schema=SIGNAL_SCHEMA)


def _decided_weights(night: Night, backtest_id: str, decision: Decision) -> np.ndarray:
    """Weights (n,) that the backtest decided at the last bar of ``decision``; 0 where no position is stored."""
    start = utc_datetime(decision.open_times[-1])
    end = start + timedelta(microseconds=1)
    rows = night.warehouse.query("positions_between", **night.slice, backtest_id=backtest_id, start=start, end=end)
    weights = Panel.from_table(rows, ("weight",), night.universe.symbols, decision.open_times[-1:])
    return np.nan_to_num(weights.column("weight")[0])


def _registry_rows(board: Sequence[Row], network_rows: Sequence[Row], contenders: dict[str, Contender]) -> pa.Table:
    """Rows of store.model_registry, with the reason of each role in words.

    The best-ranked network is the champion and the second is the challenger; a single network has no challenger.
    """
    rule_rows = [row for row in board if row["model"] not in contenders]
    comparison = "".join(f"; {row['model']} {_describe_sharpe(row)}" for row in rule_rows)
    n_networks = len(network_rows)
    rows = [
        {
            "role": role,
            "model": row["model"],
            "trial_ids": list(contenders[row["model"]].trial_ids),
            "sharpe": row["sharpe"],
            "reason": f"{place} of {n_networks} networks by Sharpe net of costs over {row['sessions']} sessions: "
            f"{_describe_sharpe(row)}{comparison}",
        }
        for role, place, row in zip(("champion", "challenger"), ("first", "second"), network_rows, strict=False)
    ]
    return pa.Table.from_pylist(rows, REGISTRY_SCHEMA)


def _describe_sharpe(row: Row) -> str:
    sharpe = "no Sharpe, it never moved" if row["sharpe"] is None else f"Sharpe {row['sharpe']:.2f}"
    return f"{sharpe}, rank {row['rank']}"


def _write_once(night: Night, signals: pa.Table, registry: pa.Table) -> None:
    """Writes the signals and the registry of an unpublished night; changes nothing for a published night.

    Raises PublishedNightError when the night is published with other signals.
    """
    keys = {"night": night.as_of, **night.slice}
    row = night_row(night)
    if row is not None and row["published_at"] is not None:
        stored = night.warehouse.query("signals_of", **keys).cast(SIGNAL_SCHEMA)
        if stored != signals:
            raise PublishedNightError(
                f"the {night.source} night {night.as_of} of {night.universe.name} is published with "
                f"{stored.num_rows} signals that are not the {signals.num_rows} computed now; signals are written "
                "once: give --warehouse another file to compute them anew"
            )
        return
    with night.warehouse.write(f"signals of {night.universe.name}") as con:
        replace_slice(con, "store.signals", signals, **keys, run_id=night.run_id)
        replace_slice(con, "store.model_registry", registry, **keys, run_id=night.run_id)
