"""Incremental inference: forecasts bar by bar from a saved network state, at the cost of one step per new bar.

Glossary: a night is the run for one date. A segment is a run of bars that models.training.fit forecasts in one pass,
after ``context_bars`` of history.

A state file is in the folder of its model file. It contains the hash of the inputs that the state was computed from,
and it is valid only for the bar that follows these inputs. Without a valid state file the forecasts are computed again
from the context. Both computations give the same forecasts up to float32 rounding.

The state that a night started from is deleted only by the next night. So a night that was killed and is run again
repeats the same steps and gives identical bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.graphs.context import SideInputs
from models.nets.forecast import Forecast
from models.nets.sequence import flatten_state, unflatten_state
from models.panel import Panel
from models.training.artifact import Artifact
from models.training.data import Inputs
from models.training.keys import inputs_for, inputs_hash


def step_forecasts(
    model: Artifact, features: Panel, side_inputs: SideInputs, bars: range, state: Any, starts_segment: bool = False
) -> tuple[list[Forecast], Any]:
    """The forecasts of ``bars``, one (1, 1, n, …) per bar, and the network state after the last bar.

    ``bars`` are successive positions in ``features``; a negative position is a masked bar. ``state`` is the network
    state before the first bar. The time gap of a bar is counted from the bar before it. With ``starts_segment`` the gap
    of the first bar is 1, as in a segment that is computed in one pass.
    """
    panel_start = max(0, bars.start if starts_segment else bars.start - 1)
    panel = features.slice_bars(panel_start, bars.stop)
    header = model.header
    inputs = Inputs.from_panel(panel, header.scaler, header.bar_us, inputs_for(header.spec, side_inputs, panel.ts))
    network: Any = model.network
    forecasts = []
    with torch.no_grad():
        for bar in bars:
            forecast, state = network.step(inputs.batch(torch.tensor([[bar - panel_start]])), state)
            forecasts.append(forecast)
    return forecasts, state


def can_step(network: nn.Module) -> bool:
    """True if the network has a ``step`` method and the machine has no GPU: a GPU computes a segment faster than steps.

    False for a network that learns edges and keeps only the ``top_k`` heaviest ones. Rounding decides which of two
    almost equal edges is kept, so a bar computed by a step could differ by a whole edge from the same bar in a segment.
    """
    hybrid = getattr(network, "hybrid", None)
    if hybrid is not None and hybrid.learns_edges and hybrid.top_k is not None:
        return False
    return hasattr(network, "step") and not torch.cuda.is_available()


@dataclass(frozen=True)
class IncrementalForecaster:
    """Runs the network of the model file ``artifact`` over a panel bar by bar, and saves its state for the next night.

    ``begin`` is the position of the first bar that the state has read: ``context_bars`` before the start of a segment.
    It is negative if the context begins before the panel.
    """

    artifact: Path
    model: Artifact
    features: Panel
    side_inputs: SideInputs
    begin: int

    def forecasts(self, first: int, stop: int) -> list[Forecast] | None:
        """The forecasts of the bars [first, stop), one per bar; None without a valid saved state before ``first``.

        Saves the state after the bar ``stop`` − 1.
        """
        state = self._load(first)
        if state is None:
            return None
        forecasts, state = self._run(first, stop, state)
        self._save(stop, state, started_from=first)
        return forecasts

    def save_state(self, stop: int) -> None:
        """Runs the network over the bars [begin, stop) from its initial state and saves the state after them."""
        network: Any = self.model.network
        _, state = self._run(self.begin, stop, network.initial_state(1, len(self.features.symbols)))
        self._save(stop, state, started_from=stop)

    def _run(self, first: int, stop: int, state: Any) -> tuple[list[Forecast], Any]:
        """The forecasts of the bars [first, stop) and the state after them; ``state`` is the state before them."""
        return step_forecasts(
            self.model,
            self.features,
            self.side_inputs,
            range(first, stop),
            state,
            starts_segment=first == self.begin,
        )

    def _load(self, first: int) -> Any | None:
        """The saved state before the bar ``first``; None if the file is missing, unreadable or from other inputs."""
        network: Any = self.model.network
        try:
            with safe_open(self._state_path(first), framework="pt") as file:
                if (file.metadata() or {}).get("inputs") != self._inputs_hash(first):
                    return None
                tensors = [file.get_tensor(f"{k:03d}") for k in range(len(file.keys()))]
            return unflatten_state(tensors, network.initial_state(1, len(self.features.symbols)))
        except (FileNotFoundError, SafetensorError, OSError, ValueError):
            return None

    def _save(self, stop: int, state: Any, started_from: int) -> None:
        """Saves the state before the bar ``stop``; keeps the one before ``started_from`` and deletes all others."""
        path = self._state_path(stop)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        tensors: dict[str, Tensor] = {f"{k:03d}": t.contiguous().clone() for k, t in enumerate(flatten_state(state))}
        try:
            save_file(tensors, partial, metadata={"inputs": self._inputs_hash(stop)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        for other in path.parent.glob(f"{self.artifact.stem}.*.state"):
            if other not in (path, self._state_path(started_from)):
                other.unlink(missing_ok=True)

    def _state_path(self, bar: int) -> Path:
        """The file of the state before the bar ``bar``."""
        return self.artifact.with_name(f"{self.artifact.stem}.{bar}.state")

    def _inputs_hash(self, stop: int) -> str:
        """The sha256 of everything that determines the state after the bars [begin, stop)."""
        panel = self.features.slice_bars(max(0, self.begin), stop)
        header = self.model.header
        return inputs_hash(header.spec, panel, self.side_inputs, extra_values=[header.fit_result.data_hash, stop])
