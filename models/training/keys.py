"""Keys of fits: a fold is fitted again if and only if something that determines its numbers has changed."""

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

PACKAGE = Path(zoo.__file__).parent
FITTING_PACKAGES = ("arch", "lightgbm", "numba")
SOURCE_FOLDERS = ("layers", "nets", "training", "features", "graphs")


@lru_cache(maxsize=1)
def code_version() -> str:
    """16 hex digits of the sha256 of every source file that a fit uses and of the versions of the fitting packages.

    The fitting packages are torch and FITTING_PACKAGES; the files are zoo.py and SOURCE_FOLDERS.
    """
    digest = hashlib.sha256(torch.__version__.partition("+")[0].encode())
    digest.update("".join(version(name) for name in FITTING_PACKAGES).encode())
    source_files = [path for folder in SOURCE_FOLDERS for path in (PACKAGE / folder).rglob("*.py")]
    for path in sorted([PACKAGE / "zoo.py", *source_files]):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def data_hash(
    spec: Spec, config: TrainConfig, features: Panel, labels: Labels, side_inputs: SideInputs, fold: Fold
) -> str:
    """The sha256 of all data that a fit of the fold reads. Later data does not change it.

    The data are the bars from the first burn-in bar to the last training row, the labels of the training rows, and the
    side inputs that the network reads.
    """
    first_train_row = int(fold.train[0])
    stop = int(fold.train[-1]) + 1
    start = max(0, first_train_row - config.burn_in_bars)
    train_labels = labels.slice_bars(first_train_row, stop)
    label_arrays = (train_labels.returns, train_labels.volatility, train_labels.class_5, train_labels.end)
    return inputs_hash(
        spec,
        features.slice_bars(start, stop),
        side_inputs,
        extra_values=[labels.horizons, first_train_row - start],
        extra_arrays=label_arrays,
    )


def inputs_hash(
    spec: Spec,
    panel: Panel,
    side_inputs: SideInputs,
    extra_values: Sequence[Any],
    extra_arrays: Sequence[np.ndarray] = (),
) -> str:
    """The sha256 of all data that a network reads at the bars of ``panel``, and of the extra values and arrays.

    The data are the features, the snapshots in effect at these bars, and the events of these bars. ``extra_values`` are
    values that JSON can store.
    """
    digest = hashlib.sha256(json.dumps([panel.symbols, panel.columns, *extra_values]).encode())
    arrays = [panel.ts, panel.mask, panel.values, *extra_arrays]
    network_inputs = inputs_for(spec, side_inputs, panel.ts)
    for snapshot in network_inputs.snapshots or ():
        digest.update(json.dumps([str(snapshot.as_of), snapshot.nodes, snapshot.directed]).encode())
        arrays += [snapshot.src, snapshot.dst, snapshot.weight]
    if network_inputs.events is not None:
        events = network_inputs.events.events
        digest.update(json.dumps(events.nodes).encode())
        arrays += [network_inputs.events.close_times, events.src, events.dst, events.t, events.kind, events.features]
    for array in arrays:
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), np.nan, array)  # the same bits for every NaN
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fold_key(
    spec: Spec, config: TrainConfig, features: Panel, labels: Labels, side_inputs: SideInputs, fold: Fold
) -> str:
    """The sha256 of spec, config (with the seed), code version and data: equal keys mean equal model files."""
    data = data_hash(spec, config, features, labels, side_inputs, fold)
    content = {"spec": spec.to_json(), "config": config.to_json(), "code": code_version(), "data": data}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def inputs_for(spec: Spec, side_inputs: SideInputs, ts: np.ndarray) -> SideInputs:
    """The side inputs that the network of ``spec`` reads at the bars that open at ``ts`` (t,), ascending.

    They are the snapshots of the network's graph in effect at these bars, oldest first, and the events of these bars. A
    field is None if the network does not read that input.
    """
    graph_name = zoo.graph_of(spec)
    snapshots = None
    events = None
    if graph_name is not None:
        graph_snapshots = sorted(
            (s for s in side_inputs.snapshots or () if s.graph == graph_name), key=lambda s: s.as_of
        )
        snapshots = snapshots_in_effect(graph_snapshots, ts[0], ts[-1])
    if side_inputs.events is not None and zoo.find_network(spec.model).reads_events:
        events = side_inputs.events.for_bars(ts)
    return SideInputs(snapshots, events)


def snapshots_in_effect(snapshots: Sequence[Snapshot], first: np.datetime64, last: np.datetime64) -> list[Snapshot]:
    """The snapshots that are the latest one at some instant in [first, last]; ``snapshots`` are oldest first.

    A snapshot is in effect from its ``as_of``, inclusive, until that of the next one.
    """
    up_to_last = [s for s in snapshots if s.as_of <= last]
    n_up_to_first = sum(s.as_of <= first for s in up_to_last)
    return up_to_last[max(0, n_up_to_first - 1) :]
