"""One symbol's pull: from where, up to when, and whether what came is still of the vintage that we have."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.sessions import midnight
from tasks.errors import ForbiddenError, MarketError
from tasks.markets.session import Market
from warehouse.universes import Universe

logger = logging.getLogger(__name__)

BAR_VALUES = ("open", "high", "low", "close", "volume", "turnover")
SAME = 1e-9  # relative: below it two floats are the same price
FUNDING_OVERLAP = timedelta(days=2)  # one page of answers either way


@dataclass(frozen=True)
class PullRequest:
    """One symbol to pull: its history is [first, end), and ``known`` (oldest first) are the last bars of it we have."""

    symbol: str
    first: datetime
    end: datetime
    known: pa.Table

    @property
    def start(self) -> datetime:
        """Where the pull begins: at the oldest of the known bars, or at the beginning."""
        return self.known["ts"][0].as_py() if len(self.known) else self.first


@dataclass(frozen=True)
class Pull:
    """What came of one symbol: rows by raw table, and ``events``; or the error."""

    symbol: str
    tables: dict[str, pa.Table] = field(default_factory=dict)
    error: MarketError | None = None

    @property
    def rows(self) -> int:
        """Rows in all tables."""
        return sum(len(table) for table in self.tables.values())


def symbols_due(universe: Universe, night: date, known: pa.Table) -> list[PullRequest]:
    """What the night has to pull, by symbol; ``known`` are the last bars of every symbol.

    A member is pulled from the day it joined, and no more once it has left and we have its bars. A benchmark outside
    the members is pulled from the beginning of the universe's history.
    """
    due = []
    for symbol in universe.fetched:
        bars = known.filter(pc.equal(known["symbol"], symbol))
        memberships = [member for member in universe.members if member.symbol == symbol]
        joined = min((member.valid_from for member in memberships), default=universe.history_start.date())
        stays = not memberships or any(m.valid_to is None or m.valid_to > night for m in memberships)
        if joined > night or (not stays and len(bars)):
            continue
        left = max(m.valid_to or night for m in memberships) if not stays else night + timedelta(days=1)
        due.append(PullRequest(symbol, max(midnight(joined), universe.history_start), midnight(left), bars))
    return due


def pull(market: Market, universe: Universe, due: PullRequest) -> Pull:
    """One symbol's rows, or its error; ForbiddenError is raised, for it concerns every symbol.

    When a bar before the watermark has changed, or a split came after it, the whole history is pulled again.
    """
    try:
        tables = _ask(market, universe, due.symbol, due.start, due.end)
        if due.start > due.first and _history_restated(tables, due.known):
            logger.info("%s: its history was restated; pulling all of it again", due.symbol)
            tables = _ask(market, universe, due.symbol, due.first, due.end)
    except ForbiddenError:
        raise
    except MarketError as error:
        return Pull(due.symbol, error=error)
    return Pull(due.symbol, tables)


def _ask(market: Market, universe: Universe, symbol: str, start: datetime, end: datetime) -> dict[str, pa.Table]:
    if market.binance is not None:
        until = min(end, market.clock)
        bars = market.binance.bars(symbol, universe.interval, start, until)
        return {"bars": bars, "events": market.binance.events(symbol, start, until)}
    if universe.provider == "yahoo":
        bars, actions = market.yahoo.daily_bars(symbol, start.date(), end.date())
        return {"bars": bars, "corporate_actions": actions}
    # a settlement at the very end is known then, and belongs to the bar that closes with it
    settled = market.bybit.funding(symbol, start - FUNDING_OVERLAP, end + timedelta(milliseconds=1))
    return {"bars": market.bybit.klines(symbol, universe.interval, start, end), "funding_rates": settled}


def _history_restated(tables: dict[str, pa.Table], known: pa.Table) -> bool:
    """True when a bar before the watermark has changed, or a split came after it."""
    actions = tables.get("corporate_actions")
    if actions is not None:
        new_split = pc.and_(pc.equal(actions["kind"], "split"), pc.greater(actions["ts"], known["ts"][-1]))
        if pc.any(new_split).as_py():
            return True
    bars = tables["bars"]
    _, before, now = np.intersect1d(known["ts"].to_numpy()[:-1], bars["ts"].to_numpy(), return_indices=True)
    return not all(
        np.allclose(bars[name].to_numpy()[now], known[name].to_numpy()[before], rtol=SAME, atol=0.0, equal_nan=True)
        for name in BAR_VALUES
    )
