"""Speed and memory of the edges of rolling correlations, compared with dense forms that compute every matrix.

Glossary: t days, n assets, w days of a window, k windows. ``python -m tests.benchmarks.bench_graphs LOADING`` prints
the peak memory of its process in MiB.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from models.graphs.rolling import rolling_edges
from tests.benchmarks.contest import contest
from tests.benchmarks.memory import memory_kib

pytestmark = pytest.mark.benchmark
DAYS = 2500
ASSETS = 500
WINDOW = 60
ROUNDS = 3
MIN_STRENGTH = 0.5
TOP_K = 8
ENDS = np.arange(WINDOW - 1, DAYS)
# the factor's loading, in standard deviations of an asset's own noise
MARKETS = {"without a factor": 0.0, "with a factor": 0.6}
MAX_PEAK_MIB = 50


def factor_returns(loading: float) -> np.ndarray:
    """Random returns (t, n): one factor, with this loading for every asset, and noise."""
    rng = np.random.default_rng(0)
    return 0.01 * (loading * rng.normal(size=(DAYS, 1)) + rng.normal(size=(DAYS, ASSETS)))


def standardised_windows(returns: np.ndarray, dtype: type) -> np.ndarray:
    """z / √w of every window, (k, w, n), where z are the standardised returns; contiguous, so that BLAS is used."""
    z = np.array(sliding_window_view(returns.astype(dtype), WINDOW, axis=0).transpose(0, 2, 1), order="C")
    z -= z.mean(axis=1, keepdims=True)
    z /= np.sqrt(np.einsum("kwn,kwn->kn", z, z))[:, None]
    return z


def correlations_by_matmul(returns: np.ndarray) -> np.ndarray:
    """The correlation matrix of every window, (k, n, n) float32, by numpy."""
    z = standardised_windows(returns, np.float32)
    return z.transpose(0, 2, 1) @ z


def correlations_by_bmm(returns: np.ndarray) -> torch.Tensor:
    """The correlation matrix of every window, (k, n, n) float32, by torch."""
    z = torch.from_numpy(standardised_windows(returns, np.float32))
    return torch.bmm(z.transpose(1, 2), z)


def count_edges(returns: np.ndarray, ends: np.ndarray = ENDS, top_k: int | None = None) -> int:
    """Number of edges of all windows that end at ``ends``. It holds the edges of one window at a time."""
    return sum(len(src) for src, _, _ in rolling_edges(returns, ends, WINDOW, MIN_STRENGTH, top_k))


def peak_mib(loading: float) -> float:
    """Peak memory in MiB, above the memory of the returns, of a new process that counts the edges."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_graphs", str(loading)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("name", MARKETS)
def test_edges_are_three_times_as_fast_as_dense_matrices(name: str) -> None:
    returns = factor_returns(MARKETS[name])
    count_edges(returns, ENDS[:300])  # loads or compiles the kernels
    peak = peak_mib(MARKETS[name])
    contenders: dict[str, Callable[[], object]] = {
        "edges of the moving sums": lambda: count_edges(returns),
        f"the {TOP_K} strongest of either asset": lambda: count_edges(returns, top_k=TOP_K),
        "the last bar alone": lambda: count_edges(returns, ENDS[-1:]),
        "numpy matmul, float32": lambda: correlations_by_matmul(returns),
        "torch bmm, float32": lambda: correlations_by_bmm(returns),
    }
    ours, _, _, dense, _ = contenders
    result = contest(contenders, ROUNDS)
    density = count_edges(returns) / (len(ENDS) * ASSETS * (ASSETS - 1) / 2)
    result.report(f"{ASSETS} x {DAYS}, window {WINDOW}, {name} ({density:.2%} of pairs)", ours)
    print(f"\npeak memory above inputs: {peak:.1f} MiB")

    for end in ENDS[::400]:
        exact = np.corrcoef(returns[end - WINDOW + 1 : end + 1].T)
        src, dst, weight = next(iter(rolling_edges(returns, np.array([end]), WINDOW, MIN_STRENGTH, None)))
        np.testing.assert_allclose(weight, exact[src, dst], rtol=0, atol=1e-6)
        assert len(src) == (np.abs(np.triu(exact, k=1)) >= MIN_STRENGTH).sum()
    assert peak <= MAX_PEAK_MIB
    assert result.ratio(dense, ours) > 3


def test_memory_does_not_grow_when_half_of_all_pairs_are_edges() -> None:
    """With a loading of 1, the population correlation of each pair is 0.5, which is MIN_STRENGTH."""
    peak = peak_mib(1.0)
    print(f"\npeak memory above inputs where half of the pairs are edges: {peak:.1f} MiB")
    assert peak <= MAX_PEAK_MIB


if __name__ == "__main__":
    returns = factor_returns(float(sys.argv[1]))
    count_edges(returns[:, :20])  # loads or compiles the kernels
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_kib("VmRSS")
    count_edges(returns)
    print((memory_kib("VmHWM") - before) / 1024)
