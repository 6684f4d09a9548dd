"""The panel: built from long rows in any order, and written back as the same rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from models.panel import TS_TYPE, Panel

MONDAY, TUESDAY, WEDNESDAY = (np.datetime64(f"2024-01-0{k}T14:30", "us") for k in (1, 2, 3))


@pytest.fixture
def long_table() -> pa.Table:
    """Unsorted rows: A has three bars, B has no bar on Tuesday and an unknown volume on Wednesday."""
    return pa.table(
        {
            "symbol": ["B", "A", "A", "B", "A"],
            "ts": pa.array([WEDNESDAY, MONDAY, WEDNESDAY, MONDAY, TUESDAY]).cast(TS_TYPE),
            "close": [23.0, 11.0, 13.0, 21.0, 12.0],
            "volume": [None, 1.0, 3.0, 4.0, 2.0],
        }
    )


@pytest.fixture
def panel(long_table: pa.Table) -> Panel:
    """``long_table`` as a panel of three bars, two symbols and two columns."""
    return Panel.from_table(long_table, ("close", "volume"), ("A", "B"))


def test_every_row_is_placed_at_its_bar_and_symbol(panel: Panel) -> None:
    assert panel.ts.tolist() == np.array([MONDAY, TUESDAY, WEDNESDAY]).tolist()
    np.testing.assert_array_equal(panel.column("close"), [[11, 21], [12, np.nan], [13, 23]])
    np.testing.assert_array_equal(panel.column("volume"), [[1, 4], [2, np.nan], [3, np.nan]])


def test_the_mask_is_false_for_a_missing_bar_and_true_for_a_bar_with_an_unknown_value(panel: Panel) -> None:
    np.testing.assert_array_equal(panel.mask, [[True, True], [True, False], [True, True]])


def test_the_table_of_a_panel_is_sorted_by_time_then_symbol(panel: Panel) -> None:
    assert panel.to_table().to_pydict() == {
        "symbol": ["A", "B", "A", "A", "B"],
        "ts": pa.array([MONDAY, MONDAY, TUESDAY, WEDNESDAY, WEDNESDAY]).cast(TS_TYPE).to_pylist(),
        "close": [11.0, 21.0, 12.0, 13.0, 23.0],
        "volume": [1.0, 4.0, 2.0, 3.0, None],
    }


def test_first_selects_the_bar_with_which_the_table_starts(panel: Panel) -> None:
    assert panel.to_table(first=1)["close"].to_pylist() == [12.0, 13.0, 23.0]


def test_a_panel_converted_to_a_table_and_back_is_the_same(panel: Panel) -> None:
    restored = Panel.from_table(panel.to_table(), panel.columns, panel.symbols)
    np.testing.assert_array_equal(restored.values, panel.values)
    np.testing.assert_array_equal(restored.mask, panel.mask)


def test_bars_and_symbols_without_a_row_are_masked(long_table: pa.Table) -> None:
    grid = np.array([MONDAY, TUESDAY, WEDNESDAY, np.datetime64("2024-01-04T14:30", "us")])
    symbols = ("A", "B", "C")
    panel = Panel.from_table(long_table, ("close",), symbols, grid)
    assert panel.values.shape == (len(grid), len(symbols), 1)
    assert not panel.mask[-1].any()
    assert not panel.mask[:, symbols.index("C")].any()


@pytest.mark.parametrize("grid", [[MONDAY, WEDNESDAY], [MONDAY, TUESDAY]])
def test_a_row_whose_timestamp_is_not_on_the_grid_is_refused(long_table: pa.Table, grid: list[np.datetime64]) -> None:
    with pytest.raises(ValueError, match="not on the panel's grid"):
        Panel.from_table(long_table, ("close",), ("A", "B"), np.array(grid))


def test_bars_are_sliced_by_position(panel: Panel) -> None:
    np.testing.assert_array_equal(panel.slice_bars(1, 3).column("close"), [[12, np.nan], [13, 23]])


def test_timestamps_out_of_order_or_repeated_are_refused(panel: Panel) -> None:
    for ts in (panel.ts[::-1], panel.ts[[0, 0, 1]]):
        with pytest.raises(ValueError, match="strictly ascending"):
            Panel(ts, panel.symbols, panel.columns, panel.values, panel.mask)


def test_shapes_that_do_not_fit_are_refused(panel: Panel) -> None:
    with pytest.raises(ValueError, match=r"panel of \(3, 2, 2\)"):
        Panel(panel.ts, panel.symbols, panel.columns, panel.values[:, :, :1], panel.mask)
    with pytest.raises(ValueError, match=r"mask \(2, 2\)"):
        Panel(panel.ts, panel.symbols, panel.columns, panel.values, panel.mask[:2])
