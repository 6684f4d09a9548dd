"""Universes: which symbols, from which provider, at what cost; filled from warehouse/seeds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from warehouse.connect import Warehouse
from warehouse.errors import UnknownUniverseError
from warehouse.tables import read_query


@dataclass(frozen=True)
class Member:
    """One symbol's membership in [valid_from, valid_to); no ``valid_to`` while it lasts."""

    symbol: str
    sector: str | None
    industry: str | None
    valid_from: date
    valid_to: date | None


@dataclass(frozen=True)
class Universe:
    """A named set of symbols that are researched together, with their calendar and trading costs in basis points.

    ``history_start``: no bar that opens before this UTC instant is wanted.
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
        """Members' symbols, sorted; the benchmark is among them only if it is a member."""
        return tuple(sorted({member.symbol for member in self.members}))

    @property
    def fetched(self) -> tuple[str, ...]:
        """Symbols whose data a night needs: the members' and the benchmark, sorted."""
        return tuple(sorted({*self.symbols, self.benchmark}))

    @property
    def sectors(self) -> dict[str, str]:
        """Sector by symbol, of the members that have one."""
        return {member.symbol: member.sector for member in self.members if member.sector}

    @property
    def industries(self) -> dict[str, str]:
        """Industry by symbol, of the members that have one."""
        return {member.symbol: member.industry for member in self.members if member.industry}


def load_universe(warehouse: Warehouse, name: str) -> Universe:
    """The universe called ``name``; UnknownUniverseError names those there are."""
    with warehouse.read() as con:
        found = read_query(con, "universe_named", universe=name).to_pylist()
        known = read_query(con, "universe_names")["universe"].to_pylist()
        members = read_query(con, "members_of", universe=name).to_pylist()
    if not found:
        raise UnknownUniverseError(f"unknown universe {name!r}; known: {', '.join(known)}")
    return Universe(**found[0], members=tuple(Member(**member) for member in members))
