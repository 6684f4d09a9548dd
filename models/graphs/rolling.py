"""Edges of rolling correlations, from sums that move along with the window; no matrix per bar is stored.

Glossary: t bars, n assets, w bars of the window, e edges · x returns, 0 where unknown · S (n, n) = Σ x_i x_j over the
window · z standardised returns of the window, 0 where unknown.

    S ← S + x_t x_t' − x_{t−w} x_{t−w}'        correlation_ij = (S_ij / w − x̄_i x̄_j) / (σ_i σ_j)

A step costs n² operations instead of w n². Moving sums carry the rounding errors of bars that have left the window, so
a weight computed from them alone would depend on more than its window. Therefore the sums determine a weight only to
within SLACK: where every value in that range rounds to the same six decimals, that is the weight. Otherwise the pair is
summed again over its own window; also where an asset lacks a bar of the window, or where its past returns are so much
larger than those of the window that the error of the sums may exceed SLACK. So every edge is, to the bit, what its own
window gives, whatever came before it, wherever a block of bars starts and whichever thread computed it. The slow
definition is ``measures.correlation`` with ``edge_selection.strongest``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numba import config, njit

from models.graphs.edge_selection import LEAST, Edges
from models.graphs.measures import DECIMALS, FLAT, MIN_OBSERVED

BLOCK_BARS = 128  # bars after which the sums restart; two windows where that is more, which keeps restarts cheap
SPARE_EDGES = 1 << 17  # room of the buffers beyond one complete graph
SLACK = 1e-9  # how far the moving sums may be off, in units of correlation
SCALE = 10.0**DECIMALS
Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # pairs (e, 2), weight (e,), and where each window's edges end


def rolling_edges(
    returns: np.ndarray, ends: np.ndarray, window: int, min_strength: float, top_k: int | None
) -> Iterator[Edges]:
    """The edges that ``edge_selection.strongest`` selects in each window of ``returns`` (t, n). ``ends``, ascending,
    are the last bars of the windows.

    NUMBA_NUM_THREADS threads compute blocks of windows side by side. Each runs at most one buffer of edges ahead of the
    caller, so memory is bounded however many edges there are.
    """
    block = ends // max(BLOCK_BARS, 2 * window)
    waiting = deque(np.split(ends, np.flatnonzero(np.diff(block)) + 1) if len(ends) else [])
    running: deque[tuple[Iterator[Part], Future[Part | None]]] = deque()
    threads = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    with ThreadPoolExecutor(threads, thread_name_prefix="graphs") as pool:
        while running or waiting:
            while waiting and len(running) <= threads:
                parts = _block(returns, waiting.popleft(), window, min_strength, top_k)
                running.append((parts, pool.submit(next, parts, None)))
            parts, future = running[0]
            part = future.result()
            if part is None:
                running.popleft()
                continue
            running[0] = parts, pool.submit(next, parts, None)
            yield from _split(*part)


def _block(
    returns: np.ndarray, ends: np.ndarray, window: int, min_strength: float, top_k: int | None
) -> Iterator[Part]:
    """Edges of the windows that end at ``ends``, one buffer at a time; the sums start with the first window."""
    first = int(ends[0]) - window + 1
    n = returns.shape[1]
    block_returns = returns[first : int(ends[-1]) + 1]
    is_known = np.isfinite(block_returns)
    bars = np.where(is_known, block_returns, 0.0), is_known.astype(np.float64)
    # a step rounds twice, by at most half an epsilon of w peak_i peak_j each
    max_peak = math.sqrt(SLACK / (2 * len(block_returns) * np.finfo(np.float64).eps))
    rule = (window, max(min_strength, LEAST), min(top_k or 0, n), max_peak)
    sums = np.zeros((n, n))
    capacity = n * (n - 1) // 2 + SPARE_EDGES
    done = 0
    while done < len(ends):
        pairs = np.empty((capacity, 2), np.int32)
        weight = np.empty(capacity)
        stops = np.empty(len(ends), np.int64)
        begin = done
        done = _run(bars, ends - first, begin, rule, sums, (pairs, weight, stops))
        yield pairs, weight, stops[begin:done]


def _split(pairs: np.ndarray, weight: np.ndarray, stops: np.ndarray) -> Iterator[Edges]:
    """The edges of each window; they end at ``stops``."""
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        src, dst = pairs[start:stop].T.astype(np.int64)
        yield src, dst, weight[start:stop]


@njit(nogil=True, cache=True, error_model="numpy")
def _run(bars, ends, begin, rule, sums, out):
    """Fills ``out`` (pairs, weight, and where each window's edges end) with the edges of the windows begin, begin + 1,
    …, as long as the next window surely fits. Returns the first window that is not done. ``sums`` are those of the
    window before ``begin``, and afterwards those of the last window that is done."""
    x = bars[0]
    window, min_strength, top_k, max_peak = rule
    pairs, weight, stops = out
    n = x.shape[1]
    screen = np.empty(n)
    moments = np.empty(n), np.empty(n), screen
    standardised = np.empty((n, window)), np.empty((n, window)), np.empty(n, np.bool_)
    row = np.empty(n)
    candidates = np.empty(n + 8, np.int64)
    flags = np.empty((n + 7) // 8 * 8, np.uint8)
    best = np.empty((n, max(top_k, 1)))
    peak = _peaks(x)
    count = 0
    floor = min_strength - 0.5 / SCALE - SLACK
    for k in range(begin, len(ends)):
        if count + n * (n - 1) // 2 > len(pairs):
            return k
        end = ends[k]
        window_start = count
        moved = end - ends[k - 1] if k > 0 else window
        _describe(bars, end, window, peak, max_peak, moments)
        standardised[2][:] = False
        for i in range(n):
            _advance(sums[i], x, i, end, moved, window)
            for h in range(_screen(sums[i], i, moments, window, floor, (row, candidates, flags))):
                j = candidates[h]
                scaled = row[j] / (screen[i] * screen[j]) * SCALE
                nearest = np.rint(scaled)
                if not abs(scaled - nearest) < 0.5 - SLACK * SCALE:  # the moving sums do not decide it; nor does NaN
                    nearest = np.rint(_own_window(i, j, bars, end, moments, standardised) * SCALE)
                value = min(1.0, max(-1.0, nearest / SCALE))
                if abs(value) >= min_strength:
                    pairs[count, 0] = i
                    pairs[count, 1] = j
                    weight[count] = value
                    count += 1
        if top_k > 0:
            count = _keep_top(pairs, weight, window_start, count, best)
        stops[k] = count
    return len(ends)


@njit(nogil=True, cache=True, error_model="numpy")
def _peaks(x):
    """The largest |x| of each asset, (n,)."""
    peak = np.zeros(x.shape[1])
    for t in range(len(x)):
        for j in range(len(peak)):
            peak[j] = max(peak[j], abs(x[t, j]))
    return peak


@njit(nogil=True, cache=True, error_model="numpy")
def _describe(bars, end, window, peak, max_peak, moments):
    """Fills ``moments``: mean and deviation of each asset over its own bars of the window, and ``screen``. That is the
    deviation where the moving sums can be trusted, 0 where the asset's pairs must be summed again, and infinity where
    the asset has no pairs."""
    x, is_known = bars
    mean, deviation, screen = moments
    count = screen
    mean[:] = 0.0
    deviation[:] = 0.0
    count[:] = 0.0
    for t in range(end - window + 1, end + 1):
        for j in range(len(mean)):
            mean[j] += x[t, j]
            count[j] += is_known[t, j]
    for j in range(len(mean)):
        mean[j] /= max(count[j], 1.0)
    for t in range(end - window + 1, end + 1):
        for j in range(len(mean)):
            centred = (x[t, j] - mean[j]) * is_known[t, j]
            deviation[j] += centred * centred
    for j in range(len(mean)):
        deviation[j] = math.sqrt(deviation[j] / max(count[j], 1.0))
        if count[j] < MIN_OBSERVED * window or deviation[j] <= FLAT:
            screen[j] = np.inf
        elif count[j] < window or peak[j] > max_peak * deviation[j]:
            screen[j] = 0.0
        else:
            screen[j] = deviation[j]


@njit(nogil=True, cache=True, error_model="numpy")
def _advance(row, x, i, end, moved, window):
    """Moves row i of the sums ``moved`` bars on, to the window that ends at ``end``. Where that is half a window or
    more, the sums are computed again instead."""
    after = row[i + 1 :]  # the compiler vectorises loops from 0 over a view
    if 2 * moved >= window:
        after[:] = 0.0
        for t in range(end - window + 1, end + 1):
            entering = x[t, i + 1 :]
            x_entering = x[t, i]
            for j in range(len(after)):
                after[j] += x_entering * entering[j]
    else:
        for t in range(end - moved + 1, end + 1):
            entering = x[t, i + 1 :]
            leaving = x[t - window, i + 1 :]
            x_entering = x[t, i]
            x_leaving = x[t - window, i]
            for j in range(len(after)):
                after[j] += x_entering * entering[j] - x_leaving * leaving[j]


@njit(nogil=True, cache=True, error_model="numpy")
def _screen(sums, i, moments, window, floor, buffers):
    """Fills ``buffers``: row with the covariances of asset i with those after it, and candidates with the assets whose
    |correlation| with i may reach ``floor``. Returns the number of candidates."""
    mean, _, screen = moments
    row, candidates, flags = buffers
    least = floor * screen[i]
    own_mean = mean[i]
    share = 1.0 / window
    n = len(sums) - i - 1
    hits = 0
    sums_after = sums[i + 1 :]
    mean_after = mean[i + 1 :]
    screen_after = screen[i + 1 :]
    covariance = row[i + 1 :]
    for j in range(n):
        covariance[j] = sums_after[j] * share - own_mean * mean_after[j]
    for j in range(n):
        flags[j] = abs(covariance[j]) >= least * screen_after[j]
    flags[n:] = 0
    words = flags.view(np.uint64)  # eight flags at a time: most are 0
    for word in range((n + 7) // 8):
        if words[word] > 0:
            for j in range(8 * word, 8 * word + 8):
                candidates[hits] = i + 1 + j
                hits += flags[j]
    return hits


@njit(nogil=True, cache=True, error_model="numpy")
def _own_window(i, j, bars, end, moments, standardised):
    """Correlation of a pair summed over its own window; 0 where it is unknown."""
    z, is_observed, is_ready = standardised
    for k in (i, j):
        if not is_ready[k]:
            _standardise(bars, k, end, moments, z[k], is_observed[k])
            is_ready[k] = True
    value = _pair(z[i], is_observed[i], z[j], is_observed[j])
    return 0.0 if math.isnan(value) else value


@njit(nogil=True, cache=True, error_model="numpy")
def _standardise(bars, k, end, moments, z, is_observed):
    """Fills ``z`` and ``is_observed`` of asset k, (w,) each."""
    x, is_known = bars
    mean, deviation, _ = moments
    for t in range(len(z)):
        bar = end - len(z) + 1 + t
        is_observed[t] = is_known[bar, k]
        z[t] = (x[bar, k] - mean[k]) * is_observed[t] / deviation[k]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _pair(a, a_observed, b, b_observed):
    """Correlation over the bars that two assets share, as in ``measures.pairwise``; NaN where they share too few."""
    pairs = 0.0
    product = 0.0
    a_sum = 0.0
    b_sum = 0.0
    a_square = 0.0
    b_square = 0.0
    for t in range(len(a)):
        pairs += a_observed[t] * b_observed[t]
        product += a[t] * b[t]
        a_sum += a[t] * b_observed[t]
        b_sum += a_observed[t] * b[t]
        a_square += a[t] * a[t] * b_observed[t]
        b_square += a_observed[t] * b[t] * b[t]
    a_variance = pairs * a_square - a_sum * a_sum
    b_variance = pairs * b_square - b_sum * b_sum
    if pairs < MIN_OBSERVED * len(a) or min(a_variance, b_variance) <= FLAT:
        return np.nan
    return (pairs * product - a_sum * b_sum) / math.sqrt(a_variance * b_variance)


@njit(nogil=True, cache=True, error_model="numpy")
def _keep_top(pairs, weight, start, stop, best):
    """Moves the edges in [start, stop) that are among the strongest of either asset to the front. Returns where they
    end."""
    k = best.shape[1]
    best[:] = 0.0
    for e in range(start, stop):
        strength = abs(weight[e])
        for end in range(2):
            node = pairs[e, end]
            rank = k - 1
            if strength > best[node, rank]:
                while rank > 0 and best[node, rank - 1] < strength:
                    best[node, rank] = best[node, rank - 1]
                    rank -= 1
                best[node, rank] = strength
    count = start
    for e in range(start, stop):
        i = pairs[e, 0]
        j = pairs[e, 1]
        if abs(weight[e]) >= min(best[i, k - 1], best[j, k - 1]):
            pairs[count, 0] = i
            pairs[count, 1] = j
            weight[count] = weight[e]
            count += 1
    return count
