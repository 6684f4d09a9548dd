"""Signals of a night: what each network recommends for each symbol in the next session.

A night is the run for one as-of date; its stored positions and forecasts are the inputs. Signals never change after the
night is published; until then a new run replaces them. Glossary: t bars, n assets.
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
    """What the task wrote: ``signals`` counts the rows of all networks for the session (date) ``for_session``.

    ``champion`` is the name of the network whose signals are followed.
    """

    signals: int
    for_session: date
    champion: str


@dataclass(frozen=True, eq=False)
class DecisionWindow:
    """The t bars whose forecasts are fresh enough for the night's last decision, made at the close of the last of them.

    ``open_times`` (t,) and ``close_times`` (t,) of the bars are datetime64[us], UTC. ``prices`` is a panel of the
    universe's members at these bars with the columns close and atr_14 (average true range as a fraction of the close).
    """

    open_times: np.ndarray
    close_times: np.ndarray
    prices: Panel


@task(name="next signals", cache_policy=NO_CACHE, persist_result=False)
def write_next_session_signals(
    night: Night, models: Sequence[Contender], limits: Limits, horizons: Sequence[int], class_horizon: int
) -> SignalReport:
    """Writes the night's signals, and its rows of store.model_registry, which name the champion and the challenger.

    Every network that is in ``models`` and on the night's leaderboard gets signals. ``horizons`` are the forecast
    horizons in bars for which a signal states an expected return. ``class_horizon`` is the one of them whose forecast
    gives label, confidence and expected volatility. A signal carries the weight that the backtest decided at the close
    of the night's last session. A symbol has no signal when it has no forecast by then, or only a forecast that is
    older than ``limits`` allow. A second run replaces the signals of an unpublished night. Raises PublishedNightError
    when a published night would change, NoForecastsError when no network of ``models`` is on the leaderboard or the
    last session has not closed, and SourceMismatchError when the tape does not match the source.
    """
    check_tape_matches_source(night)
    contenders = {c.model: c for c in networks(models)}
    board = night.warehouse.query("leaderboard_of", night=night.as_of, **night.slice).to_pylist()
    network_rows = [row for row in board if row["model"] in contenders]  # by rank, like ``board``
    if not network_rows:
        raise NoForecastsError(
            f"no network on the leaderboard of {night.universe.name}, night {night.as_of}: run its backtest with a "
            "model that forecasts"
        )
    window = _last_decision_window(night, limits)
    tables = [
        _signal_rows(night, contenders[row["model"]], row["backtest_id"], window, horizons, class_horizon)
        for row in sorted(network_rows, key=lambda row: row["model"])
    ]
    signals = pa.concat_tables(tables)
    _write_unless_published(night, signals, _registry_rows(board, network_rows, contenders))
    for_session = next_session(night.universe.calendar, night.as_of)
    report = SignalReport(signals.num_rows, for_session, champion=network_rows[0]["model"])
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def check_tape_matches_source(night: Night) -> None:
    """Raises SourceMismatchError for a live night with a tape (recorded market data), or a recorded night without."""
    if (night.source == "live" and night.tape is not None) or (night.source == "recorded" and night.tape is None):
        raise SourceMismatchError(
            f"night {night.as_of} of {night.universe.name} is {night.source} and its tape is {night.tape}: signals "
            "computed from a tape are never written as live, and signals of a live market are never written as recorded"
        )


def _last_decision_window(night: Night, limits: Limits) -> DecisionWindow:
    """The bars that are fresh enough for the decision at the close of the night's last session.

    The window starts at the first bar that closes at most ``limits.max_staleness_hours`` before the decision. Raises
    NoForecastsError when the last bar of the session has not closed by the night's clock.
    """
    universe = night.universe
    open_times, close_times = bar_grid(night)
    session_end_bars = session_ends(universe.calendar, universe.interval, close_times)
    session_date = last_session(universe.calendar, night.as_of)
    if (
        not len(session_end_bars)
        or open_times[session_end_bars[-1]].astype("datetime64[D]").astype(date) != session_date
    ):
        raise NoForecastsError(
            f"{universe.name}: the session {session_date} has not closed by {night.clock}; run the night later"
        )
    decision_bar = session_end_bars[-1]
    oldest_close = close_times[decision_bar] - limits.max_staleness_hours * WHOLE_HOUR
    fresh_bars = slice(int(np.searchsorted(close_times, oldest_close)), decision_bar + 1)
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
    return DecisionWindow(open_times, close_times[fresh_bars], prices)


def _signal_rows(
    night: Night,
    contender: Contender,
    backtest_id: str,
    window: DecisionWindow,
    horizons: Sequence[int],
    class_horizon: int,
) -> pa.Table:
    """Rows of store.signals of one network, one per symbol with a fresh forecast, in the order of the universe.

    Fresh means that one of the window's bars has a close and a forecast at ``class_horizon``. Column as_of is the open
    time of the latest such bar, from which all columns but weight are taken. An expected return is NaN at a horizon
    without a forecast there. stop_price is null for side FLAT.
    """
    forecasts = {h: load_forecasts(night, contender, h, window.open_times) for h in horizons}
    forecast = forecasts[class_horizon]
    decision_bars = np.array([len(window.open_times) - 1])
    has_forecast = forecast.mask & window.prices.mask
    latest_by_decision, _ = latest_signals(has_forecast, window.close_times, decision_bars)  # −1 without a forecast
    latest_bar_index = latest_by_decision[0]
    assets = np.flatnonzero(latest_bar_index >= 0)
    bar_of_asset = latest_bar_index[assets]

    def latest(panel: Panel, column: str) -> np.ndarray:
        """Values of the column (len(assets),), of each asset at its latest bar with a forecast."""
        return panel.column(column)[bar_of_asset, assets]

    signals = signals_from_probabilities(np.stack([latest(forecast, name) for name in PROBABILITIES], axis=-1))
    weight = _decided_weights(night, backtest_id, window)[assets]
    direction = np.sign(weight).astype(np.int64)
    close = latest(window.prices, "close")
    atr = close * latest(window.prices, "atr_14")  # as a price difference
    returns_by_horizon = np.stack([latest(forecasts[h], "expected_return") for h in horizons], axis=-1)
    columns = {
        "model": [contender.model] * len(assets),
        "symbol": [night.universe.symbols[j] for j in assets],
        "as_of": pa.array(window.open_times[bar_of_asset], pa.timestamp("us")).cast(TS_TYPE),
        "for_session": [next_session(night.universe.calendar, night.as_of)] * len(assets),
        "side": [DIRECTION_NAMES[d + 1] for d in direction],
        "label_3": [CLASS_NAMES_3[k] for k in signals.class_3],
        "label_5": [CLASS_NAMES_5[k] for k in signals.class_5],
        "confidence": signals.confidence,
        "expected_return": [list(zip(horizons, row, strict=True)) for row in returns_by_horizon.tolist()],
        "expected_volatility": latest(forecast, "expected_volatility"),
        "weight": weight,
        "close": close,
        "stop_price": pa.array(stop_price(direction, close, atr), from_pandas=True),
    }
    return pa.table(columns, schema=SIGNAL_SCHEMA)


def _decided_weights(night: Night, backtest_id: str, window: DecisionWindow) -> np.ndarray:
    """Weights (n,) that the backtest decided at the last bar of ``window``; 0 where no position is stored."""
    start = utc_datetime(window.open_times[-1])
    end = start + timedelta(microseconds=1)
    rows = night.warehouse.query("positions_between", **night.slice, backtest_id=backtest_id, start=start, end=end)
    weights = Panel.from_table(rows, ("weight",), night.universe.symbols, window.open_times[-1:])
    return np.nan_to_num(weights.column("weight")[0])


def _registry_rows(board: Sequence[Row], network_rows: Sequence[Row], contenders: dict[str, Contender]) -> pa.Table:
    """Rows of store.model_registry: the best-ranked network as champion and the second, if any, as challenger.

    ``board`` holds all rows of the leaderboard, ``network_rows`` the rows of networks in ``contenders``, both by rank.
    The reason states the Sharpe ratio and rank of the network, and of each model that gets no signals, such as a rule.
    """
    other_rows = [row for row in board if row["model"] not in contenders]
    comparison = "".join(f"; {row['model']} {_describe_sharpe(row)}" for row in other_rows)
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
    """Sharpe ratio and rank of a leaderboard row in words; a portfolio whose equity never changed has no Sharpe."""
    sharpe = "no Sharpe, it never moved" if row["sharpe"] is None else f"Sharpe {row['sharpe']:.2f}"
    return f"{sharpe}, rank {row['rank']}"


def _write_unless_published(night: Night, signals: pa.Table, registry: pa.Table) -> None:
    """Replaces the signals and registry rows of an unpublished night; writes nothing for a published night.

    Raises PublishedNightError when the night is published and its stored signals differ from ``signals``.
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
