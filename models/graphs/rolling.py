"""Edges of rolling correlations, computed from moving sums; no matrix per bar is stored.

Glossary: t bars, n assets, w bars of the window, e edges · x returns, 0 where unknown · S_ij = Σ x_i x_j over the
window, (n, n) · x̄, σ mean and standard deviation of an asset's returns in the window · z standardised returns of the
window, 0 where unknown.

    S ← S + x_t x_t' − x_{t−w} x_{t−w}'        correlation_ij = (S_ij / w − x̄_i x̄_j) / (σ_i σ_j)

A step costs n² operations instead of w n². But moving sums keep the rounding errors of bars that have left the window,
so a weight computed from them alone would depend on more than its window. Therefore a moving sum determines a
correlation only to within MAX_SUM_ERROR. If every value in that range rounds to the same six decimals, these are the
weight. Otherwise the pair's correlation is computed again from its own window. It is also computed again in two other
cases: an asset of the pair lacks a bar of the window, or its earlier returns were so much larger than those of the
window that the error of the sums could exceed MAX_SUM_ERROR.

So every edge is, to the bit, a function of its own window. It does not depend on earlier bars, on the bar where a block
of windows starts, or on the thread that computed it. The slow definition is ``measures.correlation`` followed by
``edge_selection.strongest_edges``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numba import config, njit

from models.graphs.edge_selection import MIN_WEIGHT, Edges
from models.graphs.measures import DECIMALS, MIN_OBSERVED_SHARE, ZERO_TOLERANCE

# number of bars after which the sums restart, or two windows if these are longer, so that restarts stay cheap
BLOCK_BARS = 128
SPARE_EDGES = 1 << 17  # number of edges that a buffer holds in addition to one complete graph
MAX_SUM_ERROR = 1e-9  # largest error of a correlation from the moving sums
WEIGHT_SCALE = 10.0**DECIMALS  # a weight times this is an integer
# edges of successive windows: pairs (e, 2) int32, weight (e,), and for each window the position after its last edge
EdgeBuffer = tuple[np.ndarray, np.ndarray, np.ndarray]


def rolling_edges(
    returns: np.ndarray, ends: np.ndarray, window_bars: int, min_strength: float, top_k: int | None
) -> Iterator[Edges]:
    """Yields the edges (src, dst, weight) of each window of ``returns`` (t, n), NaN where unknown.

    They are the edges that ``edge_selection.strongest_edges`` selects by ``min_strength`` and ``top_k``.
    ``window_bars`` is the length of a window. ``ends``, ascending, are the positions of the windows' last bars.

    NUMBA_NUM_THREADS threads compute blocks of windows in parallel. Each thread computes at most one buffer of edges
    ahead of the caller, so memory is bounded for any number of edges.
    """
    block_of_window = ends // max(BLOCK_BARS, 2 * window_bars)
    waiting_blocks = deque(np.split(ends, np.flatnonzero(np.diff(block_of_window)) + 1) if len(ends) else [])
    running: deque[tuple[Iterator[EdgeBuffer], Future[EdgeBuffer | None]]] = deque()
    n_threads = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    with ThreadPoolExecutor(n_threads, thread_name_prefix="graphs") as pool:
        while running or waiting_blocks:
            while waiting_blocks and len(running) <= n_threads:
                buffers = _block_edges(returns, waiting_blocks.popleft(), window_bars, min_strength, top_k)
                running.append((buffers, pool.submit(next, buffers, None)))
            buffers, future = running[0]
            buffer = future.result()
            if buffer is None:  # the block has no further buffer
                running.popleft()
                continue
            running[0] = buffers, pool.submit(next, buffers, None)
            yield from _split_by_window(*buffer)


def _block_edges(
    returns: np.ndarray, ends: np.ndarray, window_bars: int, min_strength: float, top_k: int | None
) -> Iterator[EdgeBuffer]:
    """Yields the edges of a block of windows, which end at ``ends``, in one buffer or more.

    The moving sums start with the first window of the block.
    """
    first = int(ends[0]) - window_bars + 1
    n = returns.shape[1]
    block_returns = returns[first : int(ends[-1]) + 1]
    is_known = np.isfinite(block_returns)
    x_and_mask = np.where(is_known, block_returns, 0.0), is_known.astype(np.float64)
    # A step of the sums rounds twice, each time by at most half an epsilon of w peak_i peak_j. Up to this ratio of an
    # asset's largest return to its standard deviation, all steps together stay within MAX_SUM_ERROR.
    max_peak = math.sqrt(MAX_SUM_ERROR / (2 * len(block_returns) * np.finfo(np.float64).eps))
    selection = (window_bars, max(min_strength, MIN_WEIGHT), min(top_k or 0, n), max_peak)
    sums = np.zeros((n, n))
    capacity = n * (n - 1) // 2 + SPARE_EDGES
    n_done = 0
    while n_done < len(ends):
        pairs = np.empty((capacity, 2), np.int32)
        weight = np.empty(capacity)
        stops = np.empty(len(ends), np.int64)
        begin = n_done
        n_done = _fill_edges(x_and_mask, ends - first, begin, selection, sums, (pairs, weight, stops))
        yield pairs, weight, stops[begin:n_done]


def _split_by_window(pairs: np.ndarray, weight: np.ndarray, stops: np.ndarray) -> Iterator[Edges]:
    """Yields (src, dst, weight) of each window from a buffer, see EdgeBuffer."""
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        src, dst = pairs[start:stop].T.astype(np.int64)
        yield src, dst, weight[start:stop]


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_edges(x_and_mask, ends, begin, selection, sums, buffer):
    """Fills ``buffer`` (pairs, weight, stops) with the edges of the windows begin, begin + 1, …

    It stops before a window whose edges might not fit, and returns that window's position in ``ends``, or len(ends).
    ``x_and_mask``, (t, n) float64 each: x, and 1 where a return is known, 0 elsewhere. ``sums`` (n, n) contains S of
    the window before ``begin``, right of the diagonal only, and is updated to S of the last window that was done.
    """
    x = x_and_mask[0]
    window_bars, min_strength, top_k, max_peak = selection
    pairs, weight, stops = buffer
    n = x.shape[1]
    screen = np.empty(n)
    moments = np.empty(n), np.empty(n), screen
    is_ready = np.empty(n, np.bool_)  # True where an asset's z has been computed for the current window
    standardised = np.empty((n, window_bars)), np.empty((n, window_bars)), is_ready
    covariance = np.empty(n)
    candidates = np.empty(n + 8, np.int64)
    flags = np.empty((n + 7) // 8 * 8, np.uint8)
    strongest = np.empty((n, max(top_k, 1)))
    peak = _abs_peaks(x)
    n_edges = 0
    # no correlation below this rounds to min_strength or more, whatever the error of the sums
    floor = min_strength - 0.5 / WEIGHT_SCALE - MAX_SUM_ERROR
    for window_index in range(begin, len(ends)):
        if n_edges + n * (n - 1) // 2 > len(pairs):
            return window_index
        end = ends[window_index]
        first_edge = n_edges
        n_moved = end - ends[window_index - 1] if window_index > 0 else window_bars
        _fill_moments(x_and_mask, end, window_bars, peak, max_peak, moments)
        is_ready[:] = False
        for i in range(n):
            _move_sums(sums[i], x, i, end, n_moved, window_bars)
            n_candidates = _find_candidates(sums[i], i, moments, window_bars, floor, (covariance, candidates, flags))
            for c in range(n_candidates):
                j = candidates[c]
                scaled = covariance[j] / (screen[i] * screen[j]) * WEIGHT_SCALE
                nearest = np.rint(scaled)
                # the value is too near to a rounding boundary for the accuracy of the sums, or it is NaN
                if not abs(scaled - nearest) < 0.5 - MAX_SUM_ERROR * WEIGHT_SCALE:
                    nearest = np.rint(_exact_correlation(i, j, x_and_mask, end, moments, standardised) * WEIGHT_SCALE)
                value = min(1.0, max(-1.0, nearest / WEIGHT_SCALE))
                if abs(value) >= min_strength:
                    pairs[n_edges, 0] = i
                    pairs[n_edges, 1] = j
                    weight[n_edges] = value
                    n_edges += 1
        if top_k > 0:
            n_edges = _keep_strongest(pairs, weight, first_edge, n_edges, strongest)
        stops[window_index] = n_edges
    return len(ends)


@njit(nogil=True, cache=True, error_model="numpy")
def _abs_peaks(x):
    """The largest |x| of each asset, (n,), over all bars of x (t, n)."""
    peak = np.zeros(x.shape[1])
    for t in range(len(x)):
        for j in range(len(peak)):
            peak[j] = max(peak[j], abs(x[t, j]))
    return peak


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_moments(x_and_mask, end, window_bars, peak, max_peak, moments):
    """Fills ``moments`` (mean, deviation, screen), (n,) each, for the window of bars that ends at ``end``.

    ``mean`` and ``deviation`` (the standard deviation) are those of an asset's known returns. ``screen`` equals the
    deviation where the moving sums are accurate. It is 0, so that every pair becomes a candidate and is NaN, where the
    pairs must be computed from their own window. It is infinite, so that no pair becomes a candidate, where the asset
    has too few returns or does not move.
    """
    x, is_known = x_and_mask
    mean, deviation, screen = moments
    count = screen  # shared memory: the number of known returns is needed only until ``screen`` is filled
    mean[:] = 0.0
    deviation[:] = 0.0
    count[:] = 0.0
    for t in range(end - window_bars + 1, end + 1):
        for j in range(len(mean)):
            mean[j] += x[t, j]
            count[j] += is_known[t, j]
    for j in range(len(mean)):
        mean[j] /= max(count[j], 1.0)
    for t in range(end - window_bars + 1, end + 1):
        for j in range(len(mean)):
            centred = (x[t, j] - mean[j]) * is_known[t, j]
            deviation[j] += centred * centred
    for j in range(len(mean)):
        deviation[j] = math.sqrt(deviation[j] / max(count[j], 1.0))
        if count[j] < MIN_OBSERVED_SHARE * window_bars or deviation[j] <= ZERO_TOLERANCE:
            screen[j] = np.inf
        elif count[j] < window_bars or peak[j] > max_peak * deviation[j]:
            screen[j] = 0.0
        else:
            screen[j] = deviation[j]


@njit(nogil=True, cache=True, error_model="numpy")
def _move_sums(row_of_sums, x, i, end, n_moved, window_bars):
    """Updates row i of the sums, right of the diagonal, to the window that ends at ``end``, ``n_moved`` bars later.

    If ``n_moved`` is at least half a window, the sums are computed anew.
    """
    sums_after = row_of_sums[i + 1 :]  # the compiler vectorises loops from 0 over a view
    if 2 * n_moved >= window_bars:
        sums_after[:] = 0.0
        for t in range(end - window_bars + 1, end + 1):
            entering = x[t, i + 1 :]
            x_entering = x[t, i]
            for j in range(len(sums_after)):
                sums_after[j] += x_entering * entering[j]
    else:
        for t in range(end - n_moved + 1, end + 1):
            entering = x[t, i + 1 :]
            leaving = x[t - window_bars, i + 1 :]
            x_entering = x[t, i]
            x_leaving = x[t - window_bars, i]
            for j in range(len(sums_after)):
                sums_after[j] += x_entering * entering[j] - x_leaving * leaving[j]


@njit(nogil=True, cache=True, error_model="numpy")
def _find_candidates(sums_row, i, moments, window_bars, floor, scratch):
    """The number of assets j > i whose |correlation| with asset i can reach ``floor``.

    ``scratch`` is (covariance, candidates, flags). The function fills ``covariance`` at the positions j > i, and writes
    these assets to the front of ``candidates``.
    """
    mean, _, screen = moments
    covariance, candidates, flags = scratch
    min_covariance = floor * screen[i]  # to be multiplied by the deviation of the other asset
    mean_i = mean[i]
    share = 1.0 / window_bars
    n_after = len(sums_row) - i - 1
    n_candidates = 0
    sums_after = sums_row[i + 1 :]
    mean_after = mean[i + 1 :]
    screen_after = screen[i + 1 :]
    covariance_after = covariance[i + 1 :]
    for j in range(n_after):
        covariance_after[j] = sums_after[j] * share - mean_i * mean_after[j]
    for j in range(n_after):
        flags[j] = abs(covariance_after[j]) >= min_covariance * screen_after[j]
    flags[n_after:] = 0
    words = flags.view(np.uint64)  # eight flags at a time: most words are 0
    for word in range((n_after + 7) // 8):
        if words[word] > 0:
            for j in range(8 * word, 8 * word + 8):
                candidates[n_candidates] = i + 1 + j
                n_candidates += flags[j]
    return n_candidates


@njit(nogil=True, cache=True, error_model="numpy")
def _exact_correlation(i, j, x_and_mask, end, moments, standardised):
    """Correlation of the pair (i, j) from the window that ends at ``end`` alone; 0 where it is unknown."""
    z, is_observed, is_ready = standardised
    for asset in (i, j):
        if not is_ready[asset]:
            _standardise(x_and_mask, asset, end, moments, z[asset], is_observed[asset])
            is_ready[asset] = True
    value = _pair_correlation(z[i], is_observed[i], z[j], is_observed[j])
    return 0.0 if math.isnan(value) else value


@njit(nogil=True, cache=True, error_model="numpy")
def _standardise(x_and_mask, asset, end, moments, z, is_observed):
    """Fills ``z`` and ``is_observed``, (w,) each, with the standardised returns of one asset and their mask."""
    x, is_known = x_and_mask
    mean, deviation, _ = moments
    for t in range(len(z)):
        bar = end - len(z) + 1 + t
        is_observed[t] = is_known[bar, asset]
        z[t] = (x[bar, asset] - mean[asset]) * is_observed[t] / deviation[asset]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _pair_correlation(a, a_observed, b, b_observed):
    """Correlation of the standardised returns ``a`` and ``b`` (w,) over the bars that both assets have.

    It is defined as in ``measures.pairwise``: NaN for too few shared bars, and if an asset does not move in them.
    """
    n_shared_bars = 0.0
    product = 0.0
    a_sum = 0.0
    b_sum = 0.0
    a_square = 0.0
    b_square = 0.0
    for t in range(len(a)):
        n_shared_bars += a_observed[t] * b_observed[t]
        product += a[t] * b[t]
        a_sum += a[t] * b_observed[t]
        b_sum += a_observed[t] * b[t]
        a_square += a[t] * a[t] * b_observed[t]
        b_square += a_observed[t] * b[t] * b[t]
    a_variance = n_shared_bars * a_square - a_sum * a_sum
    b_variance = n_shared_bars * b_square - b_sum * b_sum
    if n_shared_bars < MIN_OBSERVED_SHARE * len(a) or min(a_variance, b_variance) <= ZERO_TOLERANCE:
        return np.nan
    return (n_shared_bars * product - a_sum * b_sum) / math.sqrt(a_variance * b_variance)


@njit(nogil=True, cache=True, error_model="numpy")
def _keep_strongest(pairs, weight, start, stop, strongest):
    """Moves the edges of [start, stop) that are among the k strongest of either asset to the front of that range.

    Returns the position after the last kept edge. ``strongest`` (n, top_k) is scratch memory for the greatest |weight|
    of each asset.
    """
    top_k = strongest.shape[1]
    strongest[:] = 0.0
    for e in range(start, stop):
        strength = abs(weight[e])
        for endpoint in range(2):
            node = pairs[e, endpoint]
            rank = top_k - 1
            if strength > strongest[node, rank]:
                while rank > 0 and strongest[node, rank - 1] < strength:
                    strongest[node, rank] = strongest[node, rank - 1]
                    rank -= 1
                strongest[node, rank] = strength
    stop_kept = start
    for e in range(start, stop):
        i = pairs[e, 0]
        j = pairs[e, 1]
        if abs(weight[e]) >= min(strongest[i, top_k - 1], strongest[j, top_k - 1]):
            pairs[stop_kept, 0] = i
            pairs[stop_kept, 1] = j
            weight[stop_kept] = weight[e]
            stop_kept += 1
    return stop_kept
