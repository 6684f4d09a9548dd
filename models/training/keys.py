"""Names of fits: a fold is fitted again exactly when something that decides its numbers has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import zoo
from models.features.labels import Labels
from models.graphs.context import SideInputs
from models.graphs.snapshot import Snapshot
from models.panel import Panel
from models.scoring.folds import Fold
from models.training.config import TrainConfig
from models.zoo import Spec

ROOM = Path(zoo.__file__).parent
FITTERS = ("arch", "lightgbm", "numba")
SOURCES = ("layers", "nets", "training", "features", "graphs")


@lru_cache(maxsize=1)
def code_version() -> str:
    """16 hex digits of the sha256 of every source file that a fit runs through, and of the versions of what fits."""
    digest = hashlib.sha256(torch.__version__.partition("+")[0].encode())
    digest.update("".join(version(name) for name in FITTERS).encode())
    for path in sorted([ROOM / "zoo.py", *(p for folder in SOURCES for p in (ROOM / folder).rglob("*.py"))]):
        digest.update(str(path.relative_to(ROOM)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def data_hash(
    spec: Spec, config: TrainConfig, features: Panel, labels: Labels, side_inputs: SideInputs, fold: Fold
) -> str:
    """The sha256 of all a fit of the fold reads: bars from the first burn-in to the last training row, their labels,
    and what the network hears beside them. What comes later changes nothing."""
    first, stop = int(fold.train[0]), int(fold.train[-1]) + 1
    start = max(0, first - config.burn_in_bars)
    known = labels.rows(first, stop)
    targets = (known.returns, known.volatility, known.class_5, known.end)
    return inputs_hash(spec, features.rows(start, stop), side_inputs, [labels.horizons, first - start], targets)


def inputs_hash(
    spec: Spec, panel: Panel, side_inputs: SideInputs, said: Sequence[Any], more: Sequence[np.ndarray] = ()
) -> str:
    """The sha256 of all a network reads at the bars of ``panel``: their features, the snapshots in force and the events
    up to the last close, and of what else is ``said`` (JSON-able) or given as arrays."""
    digest = hashlib.sha256(json.dumps([panel.symbols, panel.columns, *said]).encode())
    arrays, around = [panel.ts, panel.mask, panel.values, *more], inputs_for(spec, side_inputs, panel.ts)
    for snapshot in around.snapshots or ():
        digest.update(json.dumps([str(snapshot.as_of), snapshot.nodes, snapshot.directed]).encode())
        arrays += [snapshot.src, snapshot.dst, snapshot.weight]
    if around.events is not None:
        events = around.events.events
        digest.update(json.dumps(events.nodes).encode())
        arrays += [around.events.closes, events.src, events.dst, events.t, events.kind, events.features]
    for array in arrays:
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), np.nan, array)  # one NaN, whatever arithmetic made it
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fold_key(
    spec: Spec, config: TrainConfig, features: Panel, labels: Labels, side_inputs: SideInputs, fold: Fold
) -> str:
    """The sha256 of spec, config (with the seed), code version and data: the same fit, the same key."""
    data = data_hash(spec, config, features, labels, side_inputs, fold)
    said = {"spec": spec.to_json(), "config": config.to_json(), "code": code_version(), "data": data}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def inputs_for(spec: Spec, side_inputs: SideInputs, ts: np.ndarray) -> SideInputs:
    """What the network of ``spec`` reads beside the successive bars ``ts``: the snapshots of its graph in force, oldest
    first, and the events of those bars; None of what it reads none of."""
    graph, snapshots, events = zoo.graph_of(spec), None, None
    if graph is not None:
        of_graph = sorted((s for s in side_inputs.snapshots or () if s.graph == graph), key=lambda s: s.as_of)
        snapshots = snapshots_in_force(of_graph, ts[0], ts[-1])
    if side_inputs.events is not None and zoo.network(spec.model).events:
        events = side_inputs.events.of_bars(ts)
    return SideInputs(snapshots, events)


def snapshots_in_force(snapshots: Sequence[Snapshot], first: np.datetime64, last: np.datetime64) -> list[Snapshot]:
    """Of ``snapshots``, oldest first, those that are the latest at some bar in [first, last]."""
    until = [s for s in snapshots if s.as_of <= last]
    before = sum(s.as_of <= first for s in until)
    return until[max(0, before - 1) :]
