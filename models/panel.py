"""The (time, asset, feature) cube with its mask: the data type that the other packages exchange.

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

    ``ts`` (t,) datetime64[us], UTC bar open, strictly ascending. ``values`` (t, n, f) float64. ``mask`` (t, n) is True
    where the asset has a bar; where it is False every value is NaN. A value may be NaN under a True mask (an indicator
    that is still warming up).
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
        """One column, (t, n)."""
        return self.values[:, :, self.columns.index(name)]

    def rows(self, start: int, stop: int) -> Panel:
        """Bars [start, stop) by position."""
        return Panel(self.ts[start:stop], self.symbols, self.columns, self.values[start:stop], self.mask[start:stop])

    def until(self, last: np.datetime64) -> Panel:
        """The bars whose open is at or before ``last``."""
        return self.rows(0, int(np.searchsorted(self.ts, last, side="right")))

    @classmethod
    def from_table(
        cls, table: pa.Table, columns: Sequence[str], symbols: Sequence[str], ts: np.ndarray | None = None
    ) -> Panel:
        """A panel from long rows (symbol, ts, *columns), one row per (symbol, ts), in any order.

        ``ts`` is the grid; the default is the distinct timestamps of the rows. Raises ValueError for a row whose
        timestamp is not on the grid.
        """
        row_ts = table["ts"].to_numpy().astype("datetime64[us]")
        grid = np.unique(row_ts) if ts is None else np.asarray(ts, dtype="datetime64[us]")
        i = np.searchsorted(grid, row_ts)
        is_inside = i < len(grid)
        if not is_inside.all() or not (grid[np.minimum(i, len(grid) - 1)] == row_ts).all():
            raise ValueError("a row's timestamp is not on the panel's grid")
        symbol_index = {symbol: k for k, symbol in enumerate(symbols)}
        j = np.array([symbol_index[s] for s in table["symbol"].to_pylist()], dtype=np.int64)
        values = np.full((len(grid), len(symbols), len(columns)), np.nan)
        for k, name in enumerate(columns):
            values[i, j, k] = table[name].to_numpy(zero_copy_only=False)
        mask = np.zeros(values.shape[:2], dtype=bool)
        mask[i, j] = True
        return cls(grid, tuple(symbols), tuple(columns), values, mask)

    def to_table(self, first: int = 0) -> pa.Table:
        """Long rows (symbol, ts, *columns) of the cells with a bar, from bar ``first`` on, sorted by (ts, symbol)."""
        i, j = np.nonzero(self.mask[first:])
        arrays = {
            "symbol": pa.array(np.asarray(self.symbols, dtype=object)[j], pa.string()),
            "ts": pa.array(self.ts[first:][i], pa.timestamp("us")).cast(TS_TYPE),
        }
        cells = self.values[first:][i, j]
        for k, name in enumerate(self.columns):
            arrays[name] = pa.array(cells[:, k], pa.float64(), from_pandas=True)
        return pa.table(arrays)
