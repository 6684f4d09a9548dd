"""Signals of a night: the view of each network on each symbol for the next session, written once."""

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
from models.scoring.portfolio import WHOLE_HOUR, Limits, latest_views
from models.scoring.signals import LABELS_3, LABELS_5, SIDES, stop_price, views
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

SIGNAL = pa.schema(
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
REGISTRY = pa.schema(
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
    """Number of signals written, the session they are for, and the champion, whose signals are recommended."""

    signals: int
    for_session: date
    champion: str


@dataclass(frozen=True, eq=False)
class Decision:
    """The bars (t,) whose forecasts are fresh enough for the night's last decision, which is made at the last of them.

    ``closed_at`` (t,) is when each bar closes; ``prices`` has columns close and atr_14.
    """

    opens: np.ndarray
    closed_at: np.ndarray
    prices: Panel


@task(name="next signals", cache_policy=NO_CACHE, persist_result=False)
def next_signals(
    night: Night, models: Sequence[Contender], limits: Limits, horizons: Sequence[int], class_horizon: int
) -> SignalReport:
    """Writes the signals of every network of ``models``, and which of them are champion and challenger.

    A signal carries the weight that the backtest decided at the close of the night's last session; a symbol without a
    forecast by then, or with one older than the limits allow, has no signal. A night that is not published yet may be
    written again. Raises PublishedNightError when a published night would change, NoForecastsError when the leaderboard
    has no network, SourceMismatchError when source and tape do not go together.
    """
    refuse_mixed_sources(night)
    contenders = {c.model: c for c in networks(models)}
    board = night.warehouse.query("leaderboard_of", night=night.as_of, **night.slice).to_pylist()
    ranked = [row for row in board if row["model"] in contenders]
    if not ranked:
        raise NoForecastsError(
            f"no network on the leaderboard of {night.universe.name}, night {night.as_of}: run its backtest with a "
            "model that forecasts"
        )
    decision = _last_decision(night, limits)
    tables = [
        _signals(night, contenders[row["model"]], row["backtest_id"], decision, horizons, class_horizon)
        for row in sorted(ranked, key=lambda row: row["model"])
    ]
    signals = pa.concat_tables(tables)
    _write_once(night, signals, _registry(board, ranked, contenders))
    for_session = next_session(night.universe.calendar, night.as_of)
    report = SignalReport(signals.num_rows, for_session, ranked[0]["model"])
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def refuse_mixed_sources(night: Night) -> None:
    """Raises SourceMismatchError for a live night with a tape, or a recorded one without."""
    if (night.source == "live" and night.tape is not None) or (night.source == "recorded" and night.tape is None):
        raise SourceMismatchError(
            f"night {night.as_of} of {night.universe.name} is {night.source} and its tape is {night.tape}: signals of "
            "a tape are never written as live, nor live ones as recorded"
        )


def _last_decision(night: Night, limits: Limits) -> Decision:
    """The decision at the close of the night's last session.

    Raises NoForecastsError when that session's last bar has not closed.
    """
    universe = night.universe
    opens, closed_at = bar_grid(night)
    ends = session_ends(universe.calendar, universe.interval, closed_at)
    session = last_session(universe.calendar, night.as_of)
    if not len(ends) or opens[ends[-1]].astype("datetime64[D]").astype(date) != session:
        raise NoForecastsError(
            f"{universe.name}: the session {session} has not closed by {night.clock}; run the night later"
        )
    oldest = closed_at[ends[-1]] - limits.max_staleness_hours * WHOLE_HOUR
    fresh = slice(int(np.searchsorted(closed_at, oldest)), ends[-1] + 1)
    opens = opens[fresh]
    rows = night.warehouse.query(
        "atr_between",
        **night.slice,
        interval=universe.interval,
        symbols=list(universe.symbols),
        start=utc_datetime(opens[0]),
        end=utc_datetime(opens[-1]) + timedelta(microseconds=1),
    )
    return Decision(opens, closed_at[fresh], Panel.from_table(rows, ("close", "atr_14"), universe.symbols, opens))


def _signals(
    night: Night,
    contender: Contender,
    backtest_id: str,
    decision: Decision,
    horizons: Sequence[int],
    class_horizon: int,
) -> pa.Table:
    """One row per symbol with a fresh forecast, by symbol."""
    forecasts = {h: load_forecasts(night, contender, h, decision.opens) for h in horizons}
    forecast = forecasts[class_horizon]
    last_bar, _ = latest_views(
        forecast.mask & decision.prices.mask, decision.closed_at, np.array([len(decision.opens) - 1])
    )
    assets = np.flatnonzero(last_bar[0] >= 0)
    bar = last_bar[0, assets]

    def latest(panel: Panel, column: str) -> np.ndarray:
        return panel.column(column)[bar, assets]

    view = views(np.stack([latest(forecast, name) for name in PROBABILITIES], axis=-1))
    weight = _decided_weights(night, backtest_id, decision)[assets]
    side = np.sign(weight).astype(np.int64)
    close = latest(decision.prices, "close")
    returns = np.stack([latest(forecasts[h], "expected_return") for h in horizons], axis=-1)
    columns = {
        "model": [contender.model] * len(assets),
        "symbol": [night.universe.symbols[j] for j in assets],
        "as_of": pa.array(decision.opens[bar], pa.timestamp("us")).cast(TS_TYPE),
        "for_session": [next_session(night.universe.calendar, night.as_of)] * len(assets),
        "side": [SIDES[s + 1] for s in side],
        "label_3": [LABELS_3[k] for k in view.label_3],
        "label_5": [LABELS_5[k] for k in view.label_5],
        "confidence": view.confidence,
        "expected_return": [list(zip(horizons, row, strict=True)) for row in returns.tolist()],
        "expected_volatility": latest(forecast, "expected_volatility"),
        "weight": weight,
        "close": close,
        "stop_price": pa.array(stop_price(side, close, close * latest(decision.prices, "atr_14")), from_pandas=True),
    }
    return pa.table(columns, schema=SIGNAL)


def _decided_weights(night: Night, backtest_id: str, decision: Decision) -> np.ndarray:
    """Weights (n,) that the backtest decided at the last bar of ``decision``; 0 where no position is stored."""
    last = utc_datetime(decision.opens[-1])
    span = {"start": last, "end": last + timedelta(microseconds=1)}
    rows = night.warehouse.query("positions_between", **night.slice, backtest_id=backtest_id, **span)
    weights = Panel.from_table(rows, ("weight",), night.universe.symbols, decision.opens[-1:])
    return np.nan_to_num(weights.column("weight")[0])


def _registry(board: Sequence[Row], ranked: Sequence[Row], contenders: dict[str, Contender]) -> pa.Table:
    """The champion, the best-ranked network, and the next best as challenger, with the reason in words."""
    rules = [row for row in board if row["model"] not in contenders]
    comparison = "".join(f"; {row['model']} {_in_words(row)}" for row in rules)
    rows = [
        {
            "role": role,
            "model": row["model"],
            "trial_ids": list(contenders[row["model"]].trial_ids),
            "sharpe": row["sharpe"],
            "reason": f"{place} of {len(ranked)} networks by Sharpe net of costs over {row['sessions']} sessions: "
            f"{_in_words(row)}{comparison}",
        }
        for role, place, row in zip(("champion", "challenger"), ("first", "second"), ranked, strict=False)
    ]
    return pa.Table.from_pylist(rows, REGISTRY)


def _in_words(row: Row) -> str:
    sharpe = "no Sharpe, it never moved" if row["sharpe"] is None else f"Sharpe {row['sharpe']:.2f}"
    return f"{sharpe}, rank {row['rank']}"


def _write_once(night: Night, signals: pa.Table, registry: pa.Table) -> None:
    """Writes signals and registry; does nothing for a published night with these very signals.

    Raises PublishedNightError for a published night with other signals.
    """
    keys = {"night": night.as_of, **night.slice}
    row = night_row(night)
    if row is not None and row["published_at"] is not None:
        stored = night.warehouse.query("signals_of", **keys).cast(SIGNAL)
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
