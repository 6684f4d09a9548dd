"""Sector and industry graphs link the members of a group (HYB-08, see .github/sources.md)."""

from __future__ import annotations

import numpy as np
import pytest

from models.graphs.membership import INDUSTRY, SECTOR, membership_snapshot
from models.graphs.snapshot import GraphError

NOON = np.datetime64("2024-01-02T12:00", "us")
SECTORS = {"AAA": "Energy", "BBB": "Health Care", "CCC": "Energy", "DDD": None, "FFF": "Energy"}


def test_members_of_a_sector_are_linked_and_symbols_without_a_sector_have_no_links() -> None:
    """HYB-08: EEE has no entry in SECTORS and the sector of DDD is None, so the two are not linked either."""
    graph = membership_snapshot(SECTOR, NOON, ("AAA", "BBB", "CCC", "DDD", "EEE", "FFF"), SECTORS)
    assert list(zip(graph.src, graph.dst, strict=True)) == [(0, 2), (0, 5), (2, 5)]
    assert (graph.graph, graph.as_of, np.isnat(graph.window_start)) == ("sector", NOON, True)
    np.testing.assert_array_equal(graph.weight, 1.0)


def test_an_industry_links_fewer_than_its_sector() -> None:
    symbols = ("AAA", "CCC", "FFF")
    industries = {"AAA": "Refining", "CCC": "Exploration", "FFF": "Refining"}
    industry = membership_snapshot(INDUSTRY, NOON, symbols, industries)
    assert list(zip(industry.src, industry.dst, strict=True)) == [(0, 2)]
    assert len(membership_snapshot(SECTOR, NOON, symbols, SECTORS).src) == 3


def test_a_membership_graph_of_one_symbol_is_refused() -> None:
    with pytest.raises(GraphError, match="at least two assets, got 1"):
        membership_snapshot(SECTOR, NOON, ("AAA",), SECTORS)
