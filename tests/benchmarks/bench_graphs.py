"""Rolling correlation of 500 assets over 2500 days as edges, against the dense forms that write every matrix."""

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
from tests.benchmarks.memory import held

pytestmark = pytest.mark.benchmark
DAYS, ASSETS, WINDOW, ROUNDS = 2500, 500, 60, 3
LEAST, TOP_K = 0.5, 8
ENDS = np.arange(WINDOW - 1, DAYS)
MARKETS = {"without a factor": 0.0, "with a factor": 0.6}  # its loading, in units of an asset's own deviation


def market(loading: float) -> np.ndarray:
    """Returns (t, n)."""
    rng = np.random.default_rng(0)
    return 0.01 * (loading * rng.normal(size=(DAYS, 1)) + rng.normal(size=(DAYS, ASSETS)))


def standardised(returns: np.ndarray, dtype: type) -> np.ndarray:
    """z / √w of every window, (k, w, n) and contiguous, so that the products are BLAS's."""
    z = np.array(sliding_window_view(returns.astype(dtype), WINDOW, axis=0).transpose(0, 2, 1), order="C")
    z -= z.mean(axis=1, keepdims=True)
    z /= np.sqrt(np.einsum("kwn,kwn->kn", z, z))[:, None]
    return z


def by_matmul(returns: np.ndarray) -> np.ndarray:
    """Every correlation, (k, n, n) float32."""
    z = standardised(returns, np.float32)
    return z.transpose(0, 2, 1) @ z


def by_bmm(returns: np.ndarray) -> torch.Tensor:
    z = torch.from_numpy(standardised(returns, np.float32))
    return torch.bmm(z.transpose(1, 2), z)


def streamed(returns: np.ndarray, ends: np.ndarray = ENDS, top_k: int | None = None) -> int:
    """How many edges there are; each snapshot's are let go before the next ones are read."""
    return sum(len(src) for src, _, _ in rolling_edges(returns, ends, WINDOW, LEAST, top_k))


def peak_mib(loading: float) -> float:
    """The most a fresh process held while it streamed, above its inputs."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_graphs", str(loading)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("name", MARKETS)
def test_streamed_edges_are_three_times_as_fast_as_dense_matrices(name: str) -> None:
    returns = market(MARKETS[name])
    streamed(returns, ENDS[:300])  # loads or compiles the kernels
    used = peak_mib(MARKETS[name])
    contenders: dict[str, Callable[[], object]] = {
        "edges of the moving sums": lambda: streamed(returns),
        f"the {TOP_K} strongest of either end": lambda: streamed(returns, top_k=TOP_K),
        "the last bar alone": lambda: streamed(returns, ENDS[-1:]),
        "numpy matmul, float32": lambda: by_matmul(returns),
        "torch bmm, float32": lambda: by_bmm(returns),
    }
    ours, _, _, dense, _ = contenders
    result = contest(contenders, ROUNDS)
    density = streamed(returns) / (len(ENDS) * ASSETS * (ASSETS - 1) / 2)
    result.report(f"{ASSETS} x {DAYS}, window {WINDOW}, {name} ({density:.2%} of pairs)", ours)
    print(f"\npeak memory above inputs: {used:.1f} MiB")

    for end in ENDS[::400]:
        exact = np.corrcoef(returns[end - WINDOW + 1 : end + 1].T)
        src, dst, weight = next(iter(rolling_edges(returns, np.array([end]), WINDOW, LEAST, None)))
        np.testing.assert_allclose(weight, exact[src, dst], rtol=0, atol=1e-6)
        assert len(src) == (np.abs(np.triu(exact, k=1)) >= LEAST).sum()
    assert used <= 50
    assert result.ratio(dense, ours) > 3


def test_half_of_all_pairs_being_edges_takes_no_more_memory():
    used = peak_mib(1.0)
    print(f"\npeak memory above inputs where half of the pairs are edges: {used:.1f} MiB")
    assert used <= 50


if __name__ == "__main__":
    bars = market(float(sys.argv[1]))
    streamed(bars[:, :20])
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = held("VmRSS")
    streamed(bars)
    print((held("VmHWM") - before) / 1024)
