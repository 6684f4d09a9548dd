"""The pull of one symbol: the time range to request, the rows received, and whether its history was restated.

A night is the run for one as-of date. The watermark of a symbol is its last bar in the warehouse.
"""

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
PRICE_RTOL = 1e-9  # two values are the same if they differ by less than this fraction


@dataclass(frozen=True)
class PullRequest:
    """One symbol to pull, whose whole history to store is [``first``, ``end``), UTC.

    ``stored`` holds the symbol's last bars in the warehouse, oldest first; the last of them is the watermark.
    """

    symbol: str
    first: datetime
    end: datetime
    stored: pa.Table

    @property
    def start(self) -> datetime:
        """The start of the pull: the oldest bar of ``stored``, or ``first`` if no bar is stored."""
        return self.stored["ts"][0].as_py() if len(self.stored) else self.first


@dataclass(frozen=True)
class PullResult:
    """Result of pulling one symbol: its ``error``, or else its rows by name of the raw table ("bars", "events" …)."""

    symbol: str
    tables: dict[str, pa.Table] = field(default_factory=dict)
    error: MarketError | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows in all tables."""
        return sum(len(table) for table in self.tables.values())


def pull_requests(universe: Universe, night: date, stored: pa.Table) -> list[PullRequest]:
    """One request for each symbol that the night pulls; ``stored`` holds the last bars of every symbol, oldest first.

    A member is pulled from the day it joined. A former member is pulled up to the day it left, and only while no bar of
    it is stored. A benchmark that is no member is pulled from the start of the universe's history. Symbols that join
    after the night get no request.
    """
    requests = []
    for symbol in universe.symbols_to_fetch:
        bars = stored.filter(pc.equal(stored["symbol"], symbol))
        memberships = [member for member in universe.members if member.symbol == symbol]
        joined = min((member.valid_from for member in memberships), default=universe.history_start.date())
        is_member = not memberships or any(m.valid_to is None or m.valid_to > night for m in memberships)
        if joined > night or (not is_member and len(bars)):
            continue
        first = max(midnight(joined), universe.history_start)
        end_day = night + timedelta(days=1) if is_member else max(m.valid_to or night for m in memberships)
        requests.append(PullRequest(symbol, first, end=midnight(end_day), stored=bars))
    return requests


def pull(provider: Provider, interval: str, request: PullRequest) -> PullResult:
    """The rows of one symbol, or its MarketError. ForbiddenError alone is raised, because it concerns every symbol.

    The whole history is pulled again when a bar before the watermark has changed, or a split came after the watermark.
    """
    try:
        tables = provider.fetch(request.symbol, interval, request.start, request.end)
        if request.start > request.first and _has_restated_history(tables, request.stored):
            logger.info("%s: its history was restated; pulling all of it again", request.symbol)
            tables = provider.fetch(request.symbol, interval, request.first, request.end)
    except ForbiddenError:
        raise
    except MarketError as error:
        return PullResult(request.symbol, error=error)
    return PullResult(request.symbol, tables)


def _has_restated_history(tables: dict[str, pa.Table], stored: pa.Table) -> bool:
    """True when a bar before the watermark has changed, or a split came after the watermark.

    The bar at the watermark itself may change without a restatement of the bars before it, so it is not compared.
    """
    actions = tables.get("corporate_actions")
    if actions is not None:
        new_split = pc.and_(pc.equal(actions["kind"], "split"), pc.greater(actions["ts"], stored["ts"][-1]))
        if pc.any(new_split).as_py():
            return True
    bars = tables["bars"]
    stored_ts = stored["ts"].to_numpy()[:-1]
    _, stored_rows, new_rows = np.intersect1d(stored_ts, bars["ts"].to_numpy(), return_indices=True)
    for name in BAR_VALUES:
        new_values = bars[name].to_numpy()[new_rows]
        old_values = stored[name].to_numpy()[stored_rows]
        if not np.allclose(new_values, old_values, rtol=PRICE_RTOL, atol=0.0, equal_nan=True):
            return True
    return False
