"""Universes: named sets of symbols with their provider, calendar and trading costs, as warehouse/seeds lists them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from warehouse.connect import Warehouse
from warehouse.errors import UnknownUniverseError
from warehouse.tables import read_query


@dataclass(frozen=True)
class Member:
    """One symbol's membership in [valid_from, valid_to), UTC dates; ``valid_to`` is None for a current member."""

    symbol: str
    sector: str | None
    industry: str | None
    valid_from: date
    valid_to: date | None


@dataclass(frozen=True)
class Universe:
    """A named set of symbols that are researched together.

    ``interval`` is the length of its bars, such as 1d. ``calendar`` is the exchange calendar, such as XNYS.
    ``history_start`` is the UTC instant from which bars are fetched. The costs are in basis points of traded value.
    ``survivorship_biased``: True when symbols that were delisted in the past are missing. A symbol has one member entry
    per membership.
    """

    name: str
    provider: str
    interval: str
    calendar: str
    benchmark: str
    history_start: datetime
    commission_bps: float
    slippage_bps: float
    survivorship_biased: bool
    members: tuple[Member, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols of current and former members, sorted; the benchmark only if it is a member."""
        return tuple(sorted({member.symbol for member in self.members}))

    @property
    def symbols_to_fetch(self) -> tuple[str, ...]:
        """The symbols whose data a night needs: the members and the benchmark, sorted."""
        return tuple(sorted({*self.symbols, self.benchmark}))

    @property
    def sectors(self) -> dict[str, str]:
        """Symbol → sector; members without a sector are left out."""
        return {member.symbol: member.sector for member in self.members if member.sector}

    @property
    def industries(self) -> dict[str, str]:
        """Symbol → industry; members without an industry are left out."""
        return {member.symbol: member.industry for member in self.members if member.industry}


def load_universe(warehouse: Warehouse, name: str) -> Universe:
    """The universe ``name``. Raises UnknownUniverseError, whose message lists the existing names."""
    with warehouse.read() as con:
        rows = read_query(con, "universe_named", universe=name).to_pylist()
        names = read_query(con, "universe_names")["universe"].to_pylist()
        members = read_query(con, "members_of", universe=name).to_pylist()
    if not rows:
        raise UnknownUniverseError(f"unknown universe {name!r}; known: {', '.join(names)}")
    return Universe(**rows[0], members=tuple(Member(**member) for member in members))
