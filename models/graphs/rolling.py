"""Rolling correlation as edges: sums that move along with the window, and never a matrix per bar.

Glossary: t bars, n assets, w bars of the window, e edges · x returns, 0 where unknown · S (n, n) = Σ x_i x_j over the
window · z returns less their mean in the window, in their deviations there, 0 where unknown.

    S ← S + x_t x_t' − x_{t−w} x_{t−w}'        correlation_ij = (S_ij / w − x̄_i x̄_j) / (σ_i σ_j)

A step costs n² operations instead of w n². Sums that move along carry the rounding of bars long gone, so a weight
would depend on more than its window. Therefore the sums only tell what a weight is to within SLACK: where every value
in that range rounds to the same six decimals, that is the weight; where not, or where an asset lacks a bar of the
window, or its past is so much wilder than its window that the sums may be off by more, the pair is summed anew over its
own window. So every edge is what its own window gives, to the bit, whatever came before, wherever a block of bars
starts and whatever thread ran it. The slow definition is ``measures.correlation`` with ``keeping.strongest``.
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

BLOCK_BARS = 128  # a block restarts its sums; two windows where that is more, so that the restart stays cheap
SPARE_EDGES = 1 << 17  # room of the buffers beyond one complete graph
SLACK = 1e-9  # how far the moving sums may be off, in units of correlation
SCALE = 10.0**DECIMALS
Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # pairs (e, 2), weight (e,), and where each window's end


def rolling_edges(
    returns: np.ndarray, ends: np.ndarray, window: int, min_strength: float, top_k: int | None
) -> Iterator[Edges]:
    """Edges of ``keeping.strongest`` for each window of ``returns`` (t, n) that ends with a bar of ``ends``, ascending.

    Blocks of windows are summed side by side in NUMBA_NUM_THREADS threads, but no further ahead of the reader than one
    bufferful a block, however many edges there are.
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
            parts, coming = running[0]
            part = coming.result()
            if part is None:
                running.popleft()
                continue
            running[0] = parts, pool.submit(next, parts, None)
            yield from _split(*part)


def _block(
    returns: np.ndarray, ends: np.ndarray, window: int, min_strength: float, top_k: int | None
) -> Iterator[Part]:
    """Edges of the windows that end at ``ends``, by sums that start with the first of them, a bufferful at a time."""
    first, n = int(ends[0]) - window + 1, returns.shape[1]
    slab = returns[first : int(ends[-1]) + 1]
    known = np.isfinite(slab)
    bars = np.where(known, slab, 0.0), known.astype(np.float64)
    # a step rounds twice, by at most half an epsilon of w peak_i peak_j each
    wildest = math.sqrt(SLACK / (2 * len(slab) * np.finfo(np.float64).eps))
    rule = (window, max(min_strength, LEAST), min(top_k or 0, n), wildest)
    sums, room, done = np.zeros((n, n)), n * (n - 1) // 2 + SPARE_EDGES, 0
    while done < len(ends):
        pairs, weight, stops = np.empty((room, 2), np.int32), np.empty(room), np.empty(len(ends), np.int64)
        begin, done = done, _run(bars, ends - first, done, rule, sums, (pairs, weight, stops))
        yield pairs, weight, stops[begin:done]


def _split(pairs: np.ndarray, weight: np.ndarray, stops: np.ndarray) -> Iterator[Edges]:
    """The edges of each window, which end at ``stops``."""
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        src, dst = pairs[start:stop].T.astype(np.int64)
        yield src, dst, weight[start:stop]


@njit(nogil=True, cache=True, error_model="numpy")
def _run(bars, ends, begin, rule, sums, out):
    """Fills ``out`` (pairs, weight, and where each window's end) with the edges of windows begin, begin + 1, …, as
    many as surely fit; the first one left. ``sums`` are those of the window before ``begin``, then before that one."""
    x = bars[0]
    window, min_strength, top_k, wildest = rule
    pairs, weight, stops = out
    n = x.shape[1]
    screen = np.empty(n)
    moments = np.empty(n), np.empty(n), screen
    own = np.empty((n, window)), np.empty((n, window)), np.empty(n, np.bool_)
    row, found, flags = np.empty(n), np.empty(n + 8, np.int64), np.empty((n + 7) // 8 * 8, np.uint8)
    best, peak = np.empty((n, max(top_k, 1))), _peaks(x)
    count, floor = 0, min_strength - 0.5 / SCALE - SLACK
    for k in range(begin, len(ends)):
        if count + n * (n - 1) // 2 > len(pairs):
            return k
        end, before = ends[k], count
        moved = end - ends[k - 1] if k > 0 else window
        _describe(bars, end, window, peak, wildest, moments)
        own[2][:] = False
        for i in range(n):
            _advance(sums[i], x, i, end, moved, window)
            for h in range(_screen(sums[i], i, moments, window, floor, (row, found, flags))):
                j = found[h]
                place = row[j] / (screen[i] * screen[j]) * SCALE
                nearest = np.rint(place)
                if not abs(place - nearest) < 0.5 - SLACK * SCALE:  # the moving sums do not decide it; nor does NaN
                    nearest = np.rint(_anew(i, j, bars, end, moments, own) * SCALE)
                value = min(1.0, max(-1.0, nearest / SCALE))
                if abs(value) >= min_strength:
                    pairs[count, 0], pairs[count, 1], weight[count] = i, j, value
                    count += 1
        if top_k > 0:
            count = _keep_top(pairs, weight, before, count, best)
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
def _describe(bars, end, window, peak, wildest, moments):
    """Fills mean and deviation of each asset over its own bars of the window, and its screen: the deviation where
    moving sums can be trusted, 0 where its pairs must be summed anew, infinity where it has no pairs."""
    x, known = bars
    mean, deviation, screen = moments
    count = screen
    mean[:], deviation[:], count[:] = 0.0, 0.0, 0.0
    for t in range(end - window + 1, end + 1):
        for j in range(len(mean)):
            mean[j] += x[t, j]
            count[j] += known[t, j]
    for j in range(len(mean)):
        mean[j] /= max(count[j], 1.0)
    for t in range(end - window + 1, end + 1):
        for j in range(len(mean)):
            centred = (x[t, j] - mean[j]) * known[t, j]
            deviation[j] += centred * centred
    for j in range(len(mean)):
        deviation[j] = math.sqrt(deviation[j] / max(count[j], 1.0))
        if count[j] < MIN_OBSERVED * window or deviation[j] <= FLAT:
            screen[j] = np.inf
        elif count[j] < window or peak[j] > wildest * deviation[j]:
            screen[j] = 0.0
        else:
            screen[j] = deviation[j]


@njit(nogil=True, cache=True, error_model="numpy")
def _advance(row, x, i, end, moved, window):
    """Moves row i of the sums ``moved`` bars on to the window that ends at ``end``; by half a window, sums anew."""
    after = row[i + 1 :]  # loops from 0 over a view are what the compiler makes vectors of
    if 2 * moved >= window:
        after[:] = 0.0
        for t in range(end - window + 1, end + 1):
            come, a = x[t, i + 1 :], x[t, i]
            for j in range(len(after)):
                after[j] += a * come[j]
    else:
        for t in range(end - moved + 1, end + 1):
            come, gone, a, b = x[t, i + 1 :], x[t - window, i + 1 :], x[t, i], x[t - window, i]
            for j in range(len(after)):
                after[j] += a * come[j] - b * gone[j]


@njit(nogil=True, cache=True, error_model="numpy")
def _screen(sums, i, moments, window, floor, space):
    """Fills ``space``: row with the covariances of asset i with those after it, and found with the assets of which
    |correlation| may reach ``floor``. How many they are."""
    (mean, _, screen), (row, found, flags) = moments, space
    least, a, share, n, hits = floor * screen[i], mean[i], 1.0 / window, len(sums) - i - 1, 0
    sums, mean, screen, covariance = sums[i + 1 :], mean[i + 1 :], screen[i + 1 :], row[i + 1 :]
    for j in range(n):
        covariance[j] = sums[j] * share - a * mean[j]
    for j in range(n):
        flags[j] = abs(covariance[j]) >= least * screen[j]
    flags[n:] = 0
    words = flags.view(np.uint64)  # eight at a time: most are none
    for word in range((n + 7) // 8):
        if words[word] > 0:
            for j in range(8 * word, 8 * word + 8):
                found[hits] = i + 1 + j
                hits += flags[j]
    return hits


@njit(nogil=True, cache=True, error_model="numpy")
def _anew(i, j, bars, end, moments, own):
    """Correlation of a pair over its own window; 0 where it is unknown."""
    z, seen, ready = own
    for k in (i, j):
        if not ready[k]:
            _standardise(bars, k, end, moments, z[k], seen[k])
            ready[k] = True
    value = _pair(z[i], seen[i], z[j], seen[j])
    return 0.0 if math.isnan(value) else value


@njit(nogil=True, cache=True, error_model="numpy")
def _standardise(bars, k, end, moments, z, seen):
    """Fills z and ``seen`` of asset k, (w,) each."""
    x, known = bars
    mean, deviation, _ = moments
    for t in range(len(z)):
        bar = end - len(z) + 1 + t
        seen[t] = known[bar, k]
        z[t] = (x[bar, k] - mean[k]) * seen[t] / deviation[k]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _pair(a, a_seen, b, b_seen):
    """Correlation over the bars two assets share, as ``measures.pairwise`` has it; NaN where they share too few."""
    pairs, product, a_sum, b_sum, a_square, b_square = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for t in range(len(a)):
        pairs += a_seen[t] * b_seen[t]
        product += a[t] * b[t]
        a_sum += a[t] * b_seen[t]
        b_sum += a_seen[t] * b[t]
        a_square += a[t] * a[t] * b_seen[t]
        b_square += a_seen[t] * b[t] * b[t]
    a_variance, b_variance = pairs * a_square - a_sum * a_sum, pairs * b_square - b_sum * b_sum
    if pairs < MIN_OBSERVED * len(a) or min(a_variance, b_variance) <= FLAT:
        return np.nan
    return (pairs * product - a_sum * b_sum) / math.sqrt(a_variance * b_variance)


@njit(nogil=True, cache=True, error_model="numpy")
def _keep_top(pairs, weight, start, stop, best):
    """Moves the edges in [start, stop) that are among the strongest of either end to the front; where they now end."""
    k = best.shape[1]
    best[:] = 0.0
    for e in range(start, stop):
        strength = abs(weight[e])
        for end in range(2):
            node, place = pairs[e, end], k - 1
            if strength > best[node, place]:
                while place > 0 and best[node, place - 1] < strength:
                    best[node, place] = best[node, place - 1]
                    place -= 1
                best[node, place] = strength
    kept = start
    for e in range(start, stop):
        i, j = pairs[e, 0], pairs[e, 1]
        if abs(weight[e]) >= min(best[i, k - 1], best[j, k - 1]):
            pairs[kept, 0], pairs[kept, 1], weight[kept] = i, j, weight[e]
            kept += 1
    return kept
