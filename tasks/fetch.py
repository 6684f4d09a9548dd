"""The pull of one symbol: which span to ask for, its rows, and whether the market has restated its history."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.sessions import midnight
from tasks.errors import ForbiddenError, MarketError
from tasks.markets.provider import Provider
from warehouse.universes import Universe

logger = logging.getLogger(__name__)

BAR_VALUES = ("open", "high", "low", "close", "volume", "turnover")
SAME = 1e-9  # relative: below it two floats are the same price


@dataclass(frozen=True)
class PullRequest:
    """One symbol to pull: its history is [first, end), and ``stored`` holds the last bars of it that the warehouse has,
    oldest first."""

    symbol: str
    first: datetime
    end: datetime
    stored: pa.Table

    @property
    def start(self) -> datetime:
        """Where the pull begins: at the oldest bar of ``stored``, at ``first`` without one."""
        return self.stored["ts"][0].as_py() if len(self.stored) else self.first


@dataclass(frozen=True)
class PullResult:
    """The answer for one symbol: rows by raw table, and ``events``; or the error."""

    symbol: str
    tables: dict[str, pa.Table] = field(default_factory=dict)
    error: MarketError | None = None

    @property
    def rows(self) -> int:
        """Rows in all tables."""
        return sum(len(table) for table in self.tables.values())


def pull_requests(universe: Universe, night: date, stored: pa.Table) -> list[PullRequest]:
    """The requests of a night, by symbol; ``stored`` holds the last bars of every symbol.

    A member is pulled from the day it joined, and no more once it has left and its bars are stored. A benchmark outside
    the members is pulled from the beginning of the universe's history.
    """
    requests = []
    for symbol in universe.symbols_to_fetch:
        bars = stored.filter(pc.equal(stored["symbol"], symbol))
        memberships = [member for member in universe.members if member.symbol == symbol]
        joined = min((member.valid_from for member in memberships), default=universe.history_start.date())
        is_member = not memberships or any(m.valid_to is None or m.valid_to > night for m in memberships)
        if joined > night or (not is_member and len(bars)):
            continue
        last = night + timedelta(days=1) if is_member else max(m.valid_to or night for m in memberships)
        requests.append(PullRequest(symbol, max(midnight(joined), universe.history_start), midnight(last), bars))
    return requests


def pull(provider: Provider, interval: str, request: PullRequest) -> PullResult:
    """The rows of one symbol, or its error. Raises ForbiddenError, because it concerns every symbol.

    When a bar before the watermark has changed, or a split came after it, the whole history is pulled again.
    """
    try:
        tables = provider.fetch(request.symbol, interval, request.start, request.end)
        if request.start > request.first and _history_restated(tables, request.stored):
            logger.info("%s: its history was restated; pulling all of it again", request.symbol)
            tables = provider.fetch(request.symbol, interval, request.first, request.end)
    except ForbiddenError:
        raise
    except MarketError as error:
        return PullResult(request.symbol, error=error)
    return PullResult(request.symbol, tables)


def _history_restated(tables: dict[str, pa.Table], stored: pa.Table) -> bool:
    """True when a bar before the watermark has changed, or a split came after it."""
    actions = tables.get("corporate_actions")
    if actions is not None:
        new_split = pc.and_(pc.equal(actions["kind"], "split"), pc.greater(actions["ts"], stored["ts"][-1]))
        if pc.any(new_split).as_py():
            return True
    bars = tables["bars"]
    _, before, now = np.intersect1d(stored["ts"].to_numpy()[:-1], bars["ts"].to_numpy(), return_indices=True)
    return not all(
        np.allclose(bars[name].to_numpy()[now], stored[name].to_numpy()[before], rtol=SAME, atol=0.0, equal_nan=True)
        for name in BAR_VALUES
    )
