"""Feature rows and graph snapshots in a real warehouse: written once, and updated when bars are added or change.

A night is the run for one as-of date. With the options GRAPH, the night of FRIDAY has 21 correlation snapshots and one
snapshot of the sector graph. A Desk is a test warehouse with recorded bars, see tests/desk.py. Ids: .github/sources.md.
"""

from __future__ import annotations

from dataclasses import astuple, replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.features.indicators import FEATURES, FeatureError, compute_features
from models.graphs.catalogue import RETURN_GRAPHS, windowed_rules
from models.graphs.correlation import CorrelationRule
from models.graphs.snapshot import GraphError, Snapshot
from models.graphs.stability import MAX_TRAILING, stability
from models.graphs.windowed import build_snapshots
from models.sessions import bar_closes, bar_opens
from tasks.graphs import FeatureReport, GraphReport, build_graphs, write_features
from tasks.panels import bar_grid, load_bars, load_features, load_snapshots
from tests.desk import Desk

START = date(2024, 1, 2)
FRIDAY = date(2024, 6, 28)
MONDAY = date(2024, 7, 1)
EVERY_BARS = 5
WINDOWS = {"window_bars": 20, "min_correlation": 0.05, "top_k": 2, "every_bars": EVERY_BARS}
N_SNAPSHOTS = 21  # of each windowed graph up to FRIDAY
GRAPH = {"graphs": ("correlation", "sector"), **WINDOWS}
ALL_GRAPHS = {"graphs": (*RETURN_GRAPHS, "sector", "industry"), **WINDOWS}


def graph_tables(desk: Desk, where: str = "true") -> list[pa.Table]:
    """The rows of the snapshots and of the edges that satisfy ``where``."""
    return [desk.contents(f"store.{name} WHERE {where}") for name in ("graph_snapshots", "graph_edges")]


def assert_same_snapshots(actual: list[Snapshot], expected: list[Snapshot]) -> None:
    """Asserts that both lists have the same snapshots, with equal fields and edges."""
    for a, b in zip(actual, expected, strict=True):
        assert (a.graph, a.as_of, a.window_start, a.nodes) == (b.graph, b.as_of, b.window_start, b.nodes)
        assert a.directed == b.directed
        np.testing.assert_array_equal(a.src, b.src)
        np.testing.assert_array_equal(a.dst, b.dst)
        np.testing.assert_array_equal(a.weight, b.weight)


def test_the_first_night_writes_every_computed_feature_row(desk: Desk) -> None:
    night = desk.night(FRIDAY)
    report = write_features.fn(night)
    bars = load_bars(night)
    expected = compute_features(bars, bar_closes("XNYS", "1d", bars.ts))
    stored = load_features(night)
    assert report == FeatureReport(rows=int(bars.mask.sum()), added=int(bars.mask.sum()), replaced=0, removed=0)
    np.testing.assert_array_equal(stored.values, expected.values)
    np.testing.assert_array_equal(stored.mask, bars.mask)
    assert desk.rows("SELECT DISTINCT source, universe, interval, run_id FROM features") == [
        ("recorded", "stocks", "1d", night.run_id)
    ]


def test_table_and_view_have_the_feature_columns_in_order(desk: Desk) -> None:
    columns = "SELECT column_name FROM duckdb_columns() WHERE table_name = 'features' AND schema_name = '{}'"
    for schema in ("store", "main"):
        names = [name for (name,) in desk.rows(columns.format(schema))]
        assert tuple(names) == ("source", "universe", "symbol", "interval", "ts", *FEATURES, "run_id")


def test_writing_features_again_changes_no_row(desk: Desk) -> None:
    write_features.fn(desk.night(FRIDAY))
    before = desk.contents("store.features")
    report = write_features.fn(desk.night(FRIDAY))
    assert (report.added, report.replaced, report.removed) == (0, 0, 0)
    assert desk.contents("store.features").equals(before)


def test_the_next_night_adds_only_the_rows_of_its_bars(desk: Desk) -> None:
    write_features.fn(desk.night(FRIDAY))
    before = desk.contents("store.features")
    report = write_features.fn(desk.night(MONDAY))
    assert (report.added, report.replaced, report.removed) == (4, 0, 0)
    runs = desk.rows("SELECT DISTINCT ts::DATE, run_id FROM features ORDER BY 1 DESC LIMIT 2")
    assert runs == [(MONDAY, desk.night(MONDAY).run_id), (FRIDAY, desk.night(FRIDAY).run_id)]
    assert desk.contents("store.features WHERE ts < '2024-07-01'").equals(before)


@pytest.mark.parametrize("universe", ["stocks", "perpetuals"])
def test_rows_are_the_same_whether_written_in_one_night_or_over_many(desk: Desk, tmp_path: Path, universe: str) -> None:
    one_night = desk.copy_to(tmp_path / "one_night")
    for as_of in (date(2024, 6, 3), date(2024, 6, 17), FRIDAY, MONDAY):
        write_features.fn(desk.night(as_of, universe))
        build_graphs.fn(desk.night(as_of, universe), **ALL_GRAPHS)
    write_features.fn(one_night.night(MONDAY, universe))
    build_graphs.fn(one_night.night(MONDAY, universe), **ALL_GRAPHS)
    for table in ("store.features", "store.graph_snapshots", "store.graph_edges"):
        assert one_night.contents(table).num_rows > 0
        assert desk.contents(table, "* EXCLUDE (run_id)").equals(one_night.contents(table, "* EXCLUDE (run_id)"))


def test_a_restated_bar_replaces_the_rows_of_its_symbol_from_there_on(desk: Desk) -> None:
    write_features.fn(desk.night(FRIDAY))
    unchanged_rows = "store.features WHERE (symbol <> 'BBB' OR ts < '2024-06-03') AND ts < '2024-07-01'"
    before = desk.contents(unchanged_rows)
    desk.execute("UPDATE store.bars SET close = close * 1.001 WHERE symbol = 'BBB' AND ts::DATE = '2024-06-03'")
    report = write_features.fn(desk.night(MONDAY))
    n_sessions = len(bar_opens("XNYS", "1d", date(2024, 6, 3), date(2024, 6, 29)))
    assert (report.added, report.replaced, report.removed) == (4, n_sessions, 0)
    assert desk.contents(unchanged_rows).equals(before)
    assert desk.rows("SELECT count(*), count(DISTINCT (symbol, ts)) FROM features")[0] == (report.rows, report.rows)


def test_rows_of_a_bar_that_was_withdrawn_are_removed(desk: Desk) -> None:
    write_features.fn(desk.night(FRIDAY))
    desk.execute("DELETE FROM store.bars WHERE symbol = 'CCC' AND ts::DATE IN ('2024-06-27', '2024-06-28')")
    report = write_features.fn(desk.night(FRIDAY))
    assert (report.added, report.replaced, report.removed) == (0, 0, 2)
    assert desk.rows("SELECT max(ts)::DATE FROM features WHERE symbol = 'CCC'") == [(date(2024, 6, 26),)]


def test_an_earlier_night_leaves_later_rows_unchanged(desk: Desk) -> None:
    write_features.fn(desk.night(MONDAY))
    build_graphs.fn(desk.night(MONDAY), **GRAPH)
    before = [desk.contents("store.features"), *graph_tables(desk)]
    earlier = desk.night(date(2024, 5, 31))
    write_features.fn(earlier)
    build_graphs.fn(earlier, **GRAPH)
    assert [desk.contents("store.features"), *graph_tables(desk)] == before


def test_an_impossible_bar_raises_and_leaves_the_rows_unchanged(desk: Desk) -> None:
    write_features.fn(desk.night(FRIDAY))
    before = desk.contents("store.features")
    desk.execute("UPDATE store.bars SET low = -1 WHERE symbol = 'AAA' AND ts::DATE = '2024-07-01'")
    with pytest.raises(FeatureError, match="AAA at 2024-07-01T13:30"):
        write_features.fn(desk.night(MONDAY))
    assert desk.contents("store.features").equals(before)


def test_correlation_snapshots_are_stored_as_they_were_built(desk: Desk) -> None:
    night = desk.night(FRIDAY)
    report = build_graphs.fn(night, **GRAPH)
    built = build_snapshots("correlation", load_bars(night), CorrelationRule(**WINDOWS))
    stored = load_snapshots(night, "correlation")
    assert len(stored) == len(built) == report.snapshots - 1  # the other one is the sector graph's
    assert sum(len(s.src) for s in stored) > len(stored)
    assert_same_snapshots(stored, built)
    up_to_fourth = load_snapshots(night, "correlation", last=built[3].as_of)
    assert [s.as_of for s in up_to_fourth] == [s.as_of for s in built[:4]]
    third_and_fourth = load_snapshots(night, "correlation", first=built[2].as_of, last=built[3].as_of)
    assert [(s.as_of, len(s.src)) for s in third_and_fourth] == [(s.as_of, len(s.src)) for s in built[2:4]]


def test_snapshots_of_every_graph_are_stored_as_built_with_their_direction(desk: Desk) -> None:
    desk.delay_aaa_behind_bbb()
    night = desk.night(FRIDAY)
    build_graphs.fn(night, **ALL_GRAPHS)
    bars = load_bars(night)
    for graph, rule in windowed_rules(**ALL_GRAPHS).items():
        stored = load_snapshots(night, graph)
        assert len(stored) == N_SNAPSHOTS, graph
        assert_same_snapshots(stored, build_snapshots(graph, bars, rule))
    for graph in ("lead_lag", "granger"):  # BBB (node 1) leads AAA (node 0)
        assert any((1, 0) in zip(s.src, s.dst, strict=True) for s in load_snapshots(night, graph))


def test_each_snapshots_turnover_and_drift_compare_it_with_earlier_snapshots(desk: Desk) -> None:
    night = desk.night(FRIDAY)
    build_graphs.fn(night, **ALL_GRAPHS)
    for graph in RETURN_GRAPHS:
        series = load_snapshots(night, graph)
        rows = desk.rows(
            "SELECT turnover, drift, mean_correlation, directed FROM graph_snapshots "
            f"WHERE graph = '{graph}' ORDER BY as_of"
        )
        for k, (turnover, drift, mean_correlation, directed) in enumerate(rows):
            assert (turnover, drift) == astuple(stability(series[k], series[:k]))
            assert -1 < mean_correlation < 1 and directed == series[k].directed
    sector_rows = desk.rows(
        "SELECT turnover, drift, mean_correlation, directed FROM graph_snapshots WHERE graph = 'sector'"
    )
    assert sector_rows == [(None, None, None, False)]


def test_the_next_night_builds_only_the_new_snapshots(desk: Desk) -> None:
    """Their stability is computed against the stored ones."""
    later = date(2024, 7, 12)
    build_graphs.fn(desk.night(FRIDAY), **ALL_GRAPHS)
    up_to_friday = "as_of < '2024-06-29'"
    before = graph_tables(desk, up_to_friday)
    n_old_bars = len(bar_grid(desk.night(FRIDAY)).open_times)
    n_bars = len(bar_grid(desk.night(later)).open_times)
    n_new_snapshots = sum(position % EVERY_BARS == 0 for position in range(n_old_bars, n_bars))
    report = build_graphs.fn(desk.night(later), **ALL_GRAPHS)
    assert report.built == n_new_snapshots * len(RETURN_GRAPHS) > 0
    assert graph_tables(desk, up_to_friday) == before
    assert desk.rows("SELECT count(*) FROM graph_snapshots WHERE turnover IS NULL AND drift IS NOT NULL") == [(0,)]


def test_a_restated_bar_also_rebuilds_snapshots_whose_stability_it_changes(desk: Desk) -> None:
    """A later window without the bar keeps its edges, but its stability against the windows before it changes."""
    short_windows = {**GRAPH, "window_bars": 5}
    build_graphs.fn(desk.night(FRIDAY), **short_windows)
    stability_query = "SELECT as_of, turnover, drift FROM graph_snapshots WHERE graph = 'correlation' ORDER BY as_of"
    before = desk.rows(stability_query)
    edges = desk.contents("store.graph_edges WHERE as_of > '2024-04-20'", "* EXCLUDE (run_id)")
    # the bar changes its own return and the next one: with windows of 5 bars, every 5 bars, at most two windows
    desk.execute("UPDATE store.bars SET close = close * 1.05 WHERE symbol = 'BBB' AND ts::DATE = '2024-04-10'")
    night = desk.night(MONDAY)
    report = build_graphs.fn(night, **short_windows)
    after = desk.rows(stability_query)
    changed_dates = [new[0].date() for old, new in zip(before, after, strict=False) if old != new]
    assert 2 < len(changed_dates) <= 2 + MAX_TRAILING  # two windows, and the snapshots that are compared with them
    assert report.built <= 2 + MAX_TRAILING + 1  # and the snapshot of the new bar, if one is due
    assert min(changed_dates) >= date(2024, 4, 10)
    assert desk.contents(
        "store.graph_edges WHERE as_of > '2024-04-20' AND as_of < '2024-06-29'", "* EXCLUDE (run_id)"
    ).equals(edges)
    series = load_snapshots(night, "correlation")
    expected = [astuple(stability(snapshot, series[:k])) for k, snapshot in enumerate(series)]
    assert [(turnover, drift) for _, turnover, drift in after] == expected


def test_the_industry_graph_links_symbols_of_one_industry(desk: Desk) -> None:
    night = desk.night(FRIDAY)
    members = tuple(replace(m, industry="Gas" if m.symbol in "AAA CCC" else None) for m in night.universe.members)
    build_graphs.fn(replace(night, universe=replace(night.universe, members=members)), **ALL_GRAPHS)
    assert desk.rows("SELECT src, dst FROM graph_edges WHERE graph = 'industry'") == [("AAA", "CCC")]


def test_the_sector_graph_is_one_snapshot_at_the_first_bar(desk: Desk) -> None:
    """HYB-08."""
    build_graphs.fn(desk.night(FRIDAY), **GRAPH)
    edges = "SELECT as_of::DATE, src, dst, weight FROM graph_edges WHERE graph = 'sector' ORDER BY src"
    assert desk.rows(edges) == [(START, "AAA", "BBB", 1.0), (START, "CCC", "DDD", 1.0)]
    (snapshot,) = load_snapshots(desk.night(FRIDAY), "sector")
    assert np.isnat(snapshot.window_start)


def test_snapshot_rows_agree_with_their_edges(desk: Desk) -> None:
    build_graphs.fn(desk.night(FRIDAY), **GRAPH)
    assert desk.rows(
        "SELECT count(*) FROM graph_snapshots s JOIN (SELECT graph, as_of, count(*) AS n, avg(weight) AS mean,"
        " bool_and(src < dst) AS ordered FROM graph_edges GROUP BY ALL) e USING (graph, as_of)"
        " WHERE s.edges <> e.n OR abs(s.mean_weight - e.mean) > 1e-12 OR NOT ordered OR s.nodes <> 4"
        " OR s.density <> e.n / 6 OR s.window_start >= s.as_of"
    ) == [(0,)]


def test_building_graphs_again_builds_nothing(desk: Desk) -> None:
    first = build_graphs.fn(desk.night(FRIDAY), **GRAPH)
    snapshots, edges = graph_tables(desk)
    second = build_graphs.fn(desk.night(FRIDAY), **GRAPH)
    assert first.built == first.snapshots == N_SNAPSHOTS + 1  # and the sector graph's
    assert first.edges == edges.num_rows
    assert second == GraphReport(snapshots=N_SNAPSHOTS + 1, built=0, edges=0, removed=0)
    assert graph_tables(desk) == [snapshots, edges]


def test_other_parameters_replace_the_whole_correlation_graph(desk: Desk) -> None:
    build_graphs.fn(desk.night(FRIDAY), **GRAPH)
    report = build_graphs.fn(desk.night(FRIDAY), **{**GRAPH, "every_bars": 2 * EVERY_BARS})
    assert report.built == report.snapshots - 1 == 11  # every second snapshot is built with the new parameters
    assert report.removed == 10  # the others are removed
    assert len(load_snapshots(desk.night(FRIDAY), "correlation")) == 11
    assert desk.rows("SELECT DISTINCT parameters->>'every_bars' FROM graph_snapshots WHERE graph = 'correlation'") == [
        ("10",)
    ]
    assert desk.rows("SELECT count(*) FROM graph_edges ANTI JOIN graph_snapshots USING (graph, as_of)") == [(0,)]


def test_a_restated_bar_rebuilds_the_windows_that_contain_it(desk: Desk) -> None:
    """The last bar lies in no window yet, because no snapshot is due at it."""
    build_graphs.fn(desk.night(FRIDAY), **GRAPH)
    desk.execute("UPDATE store.bars SET close = close * 1.01 WHERE symbol = 'BBB' AND ts::DATE = '2024-06-28'")
    assert build_graphs.fn(desk.night(FRIDAY), **GRAPH).built == 0
    desk.execute("UPDATE store.bars SET close = close * 1.01 WHERE symbol = 'BBB' AND ts::DATE = '2024-05-30'")
    night = desk.night(MONDAY)
    # a changed close of 30 May changes the returns of 30 and 31 May
    snapshots_with_the_bar = [
        s
        for s in load_snapshots(night, "correlation")
        if s.window_start <= np.datetime64("2024-05-31T13:30") <= s.as_of
    ]
    last_position = len(bar_grid(night).open_times) - 1
    n_new_snapshots = int(last_position % EVERY_BARS == 0)
    assert build_graphs.fn(night, **GRAPH).built == len(snapshots_with_the_bar) + n_new_snapshots


def test_unusable_parameters_raise_and_leave_the_stored_graphs_unchanged(desk: Desk) -> None:
    build_graphs.fn(desk.night(FRIDAY), **GRAPH)
    before = desk.contents("store.graph_edges")
    with pytest.raises(GraphError, match="window_bars is 2"):
        build_graphs.fn(desk.night(FRIDAY), **{**GRAPH, "window_bars": 2})
    night = desk.night(FRIDAY)
    one_member = replace(night.universe, members=night.universe.members[:1])
    with pytest.raises(GraphError, match="at least two assets"):
        build_graphs.fn(replace(night, universe=one_member), **GRAPH)
    assert desk.contents("store.graph_edges").equals(before)


def test_a_renamed_symbol_rebuilds_its_graphs(desk: Desk) -> None:
    """TRAP-09."""
    build_graphs.fn(desk.night(FRIDAY), **GRAPH)
    desk.execute("UPDATE store.bars SET symbol = 'CCD' WHERE symbol = 'CCC'")
    night = desk.night(FRIDAY)
    members = tuple(replace(m, symbol="CCD") if m.symbol == "CCC" else m for m in night.universe.members)
    renamed = replace(night, universe=replace(night.universe, members=members))
    report = build_graphs.fn(renamed, **GRAPH)
    assert report.built == report.snapshots
    assert desk.rows("SELECT count(*) FROM graph_edges WHERE 'CCC' IN (src, dst)") == [(0,)]
    assert load_snapshots(renamed, "correlation")[0].nodes == ("AAA", "BBB", "CCD", "DDD")
