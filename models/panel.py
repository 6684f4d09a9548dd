"""The panel: a cube of values (bar, asset, column) with a mask, the data type that the other packages exchange.

Glossary: t bars, n assets, f columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

TS_TYPE = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, eq=False)
class Panel:
    """Values of f columns for n assets at t bars.

    ``ts`` (t,) datetime64[us], UTC: the open of each bar, strictly ascending. ``values`` (t, n, f) float64. ``mask``
    (t, n) bool: True where the asset has a bar. Every value without a bar is NaN. A value of an existing bar can be
    NaN, too: an indicator that is still warming up.

    Raises ValueError for shapes that differ and for timestamps that do not ascend.
    """

    ts: np.ndarray
    symbols: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    mask: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.ts), len(self.symbols), len(self.columns))
        if self.values.shape != shape or self.mask.shape != shape[:2]:
            raise ValueError(f"panel of {shape} got values {self.values.shape} and mask {self.mask.shape}")
        if len(self.ts) > 1 and not (self.ts[1:] > self.ts[:-1]).all():
            raise ValueError("panel timestamps must be strictly ascending")

    def __len__(self) -> int:
        return len(self.ts)

    def column(self, name: str) -> np.ndarray:
        """The values of the column ``name``, (t, n). Raises ValueError for a column that the panel does not have."""
        return self.values[:, :, self.columns.index(name)]

    def slice_bars(self, start: int, stop: int) -> Panel:
        """The panel of the bars at positions [start, stop)."""
        return Panel(self.ts[start:stop], self.symbols, self.columns, self.values[start:stop], self.mask[start:stop])

    @classmethod
    def from_table(
        cls, table: pa.Table, columns: Sequence[str], symbols: Sequence[str], ts: np.ndarray | None = None
    ) -> Panel:
        """A panel from a long table (symbol, ts, *columns) with one row per (symbol, ts), in any order.

        ``ts`` (t,), strictly ascending, is the grid of bars; the default is the distinct timestamps of the table. Where
        a bar of a symbol has no row, the mask is False and the values are NaN; null becomes NaN. Raises ValueError for
        a row whose timestamp is not on the grid, and KeyError for a symbol that is not one of ``symbols``.
        """
        row_ts = table["ts"].to_numpy().astype("datetime64[us]")
        grid = np.unique(row_ts) if ts is None else np.asarray(ts, dtype="datetime64[us]")
        bar_index = np.searchsorted(grid, row_ts)
        is_inside = bar_index < len(grid)
        if not is_inside.all() or not (grid[np.minimum(bar_index, len(grid) - 1)] == row_ts).all():
            raise ValueError("a row's timestamp is not on the panel's grid")
        index_by_symbol = {symbol: k for k, symbol in enumerate(symbols)}
        asset_index = np.array([index_by_symbol[s] for s in table["symbol"].to_pylist()], dtype=np.int64)
        values = np.full((len(grid), len(symbols), len(columns)), np.nan)
        for k, name in enumerate(columns):
            values[bar_index, asset_index, k] = table[name].to_numpy(zero_copy_only=False)
        mask = np.zeros(values.shape[:2], dtype=bool)
        mask[bar_index, asset_index] = True
        return cls(grid, tuple(symbols), tuple(columns), values, mask)

    def to_table(self, first: int = 0) -> pa.Table:
        """A long table (symbol, ts, *columns): one row per existing bar of an asset, from bar position ``first`` on.

        Rows are in the order of the bars, and within a bar in the order of ``symbols``. A NaN value becomes null.
        """
        bar_index, asset_index = np.nonzero(self.mask[first:])
        arrays = {
            "symbol": pa.array(np.asarray(self.symbols, dtype=object)[asset_index], pa.string()),
            "ts": pa.array(self.ts[first:][bar_index], pa.timestamp("us")).cast(TS_TYPE),
        }
        rows = self.values[first:][bar_index, asset_index]
        for k, name in enumerate(self.columns):
            arrays[name] = pa.array(rows[:, k], pa.float64(), from_pandas=True)
        return pa.table(arrays)
