"""A temporal graph network that a stream feeds: the memory of a market, kept up to the last event."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import zoo
from models.graphs.events import Events
from models.training.artifact import file_hash, load_artifact
from models.training.errors import DamagedArtifactError
from tasks.errors import NoModelError
from warehouse.connect import Warehouse
from warehouse.publish import read_published
from warehouse.tables import read_query

logger = logging.getLogger(__name__)

CLOSE, FOLD = "close_us", "fold"


def published_network(warehouse: Warehouse, universe: str, model: str, assets: int) -> LiveNetwork:
    """A model's newest published fold, its memory empty.

    Raises NoModelError for a model without one or that reads no events, NotPublishedError, ArtifactError.
    """
    try:
        zoo.network(model)
    except zoo.UnknownModelError as exc:
        raise NoModelError(f"{exc}; only networks can be fed") from exc
    with read_published(warehouse) as con:
        rows = read_query(con, "newest_fold", universe=universe, model=model).to_pylist()
    if not rows:
        raise NoModelError(f"no published night of {universe} has a fold of {model}; run one with this model first")
    path = warehouse.artifacts / rows[0]["artifact"]
    if file_hash(path) != rows[0]["artifact_sha256"]:
        raise DamagedArtifactError(f"{path}: not the file that the fold wrote; delete it and run the night again")
    artifact = load_artifact(path)
    if not hasattr(artifact.network, "insert"):
        raise NoModelError(f"{model} reads no events between bars: stream with a temporal graph network, such as tgn")
    return LiveNetwork(artifact.network, assets, artifact.header.bar_us, fold=rows[0]["artifact_sha256"])


class LiveNetwork:
    """A network with ``initial_state`` and ``insert`` over events, see models/nets/tgn.py, and its state.

    What a stream keeps of it is the memory, in ``state_now``: nothing is forecast or embedded until somebody asks the
    network for it. Times count from the open of the bar in which the first event falls. It learns nothing here.
    ``fold`` says which weights it has: a memory is of use to none but those that made it.
    """

    def __init__(self, network: nn.Module, assets: int, bar_us: int, fold: str = "") -> None:
        self.network, self.assets, self.bar_us, self.fold = network.eval(), assets, bar_us, fold
        self.state_now: Any = network.initial_state(1, assets)  # type: ignore[operator]
        self.close_us: int | None = None

    @torch.no_grad()
    def consume(self, events: Events) -> None:
        """Takes the next events into the memory, which is written over: ``state`` gives copies."""
        if self.close_us is None:
            self.close_us = int(events.t[0]) // self.bar_us * self.bar_us
        asked = self.state_now, events, self.close_us, self.bar_us
        self.state_now = self.network.insert(*asked, in_place=True)  # type: ignore[operator]

    def state(self) -> dict[str, np.ndarray]:
        """Every tensor of the state by its place in it, the fold, and the instant from which times count."""
        said = {FOLD: np.array(self.fold)} | ({} if self.close_us is None else {CLOSE: np.array(self.close_us)})
        return said | {name: value.detach().numpy().copy() for name, value in _tensors(self.state_now).items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from where ``state`` was taken, or begins empty where another fold took it.

        Raises NoModelError for the state of another network.
        """
        if FOLD in arrays and str(arrays[FOLD]) != self.fold:
            logger.info("the network has been fitted anew: its memory begins empty")
            return
        expected = {name: tuple(value.shape) for name, value in _tensors(self.state_now).items()}
        found = {name: array.shape for name, array in arrays.items() if name not in (CLOSE, FOLD)}
        if expected != found:
            raise NoModelError("the saved memory is of another network; move the stream's state away to begin anew")
        self.state_now = _with(self.state_now, arrays)
        self.close_us = int(arrays[CLOSE]) if CLOSE in arrays else None


def _tensors(state: Any, place: str = "") -> dict[str, Tensor]:
    """The tensors of nested tuples by their place: 0.1 is the second of the first."""
    if isinstance(state, Tensor):
        return {place: state}
    parts = (_tensors(part, f"{place}.{i}".lstrip(".")) for i, part in enumerate(state))
    return {name: tensor for part in parts for name, tensor in part.items()}


def _with(state: Any, arrays: Mapping[str, np.ndarray], place: str = "") -> Any:
    """Nested tuples of the same shape with the tensors of ``arrays``."""
    if isinstance(state, Tensor):
        return torch.from_numpy(arrays[place].copy())
    parts = [_with(part, arrays, f"{place}.{i}".lstrip(".")) for i, part in enumerate(state)]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
