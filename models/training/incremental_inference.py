"""Forecasts bar by bar from a saved state, so that tomorrow's inference costs one step a bar.

State files stand beside their model file. Each says which inputs went into it (their hash), and is only used for the
bar after them; without one, the forecasts are made from the context anew. They are those of the whole sequence to the
rounding of single precision. The state that a night began with is kept until the next, so that a night killed and run
again takes the same steps to the same bits.
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
from models.nets.sequence import flat, nested
from models.panel import Panel
from models.training.artifact import Artifact
from models.training.data import Inputs
from models.training.keys import inputs_for, inputs_hash


def step_forecasts(
    model: Artifact, features: Panel, side_inputs: SideInputs, bars: range, state: Any, begins: bool = False
) -> tuple[list[Forecast], Any]:
    """The forecasts of ``bars``, successive positions in ``features``, from the state before them, and that after them.

    A bar's gap is counted from the one before it; with ``begins`` the first has none, as in a segment run at once.
    Positions before the panel are masked bars.
    """
    offset = max(0, bars.start if begins else bars.start - 1)
    panel, header = features.rows(offset, bars.stop), model.header
    inputs = Inputs.of(panel, header.scaler, header.bar_us, inputs_for(header.spec, side_inputs, panel.ts))
    network: Any = model.network
    made = []
    with torch.no_grad():
        for bar in bars:
            forecast, state = network.step(inputs.batch(torch.tensor([[bar - offset]])), state)
            made.append(forecast)
    return made, state


def can_step(network: nn.Module) -> bool:
    """True for a network with a step, where there is no GPU: a GPU runs a segment sooner than its steps.

    Not for one that learns edges and keeps the heaviest: where two are all but equal, the rounding decides which is
    kept, and so a bar stepped can differ by a whole edge from the same bar in its segment.
    """
    hybrid = getattr(network, "hybrid", None)
    if hybrid is not None and hybrid.learns_edges and hybrid.top_k is not None:
        return False
    return hasattr(network, "step") and not torch.cuda.is_available()


@dataclass(frozen=True)
class IncrementalForecaster:
    """A network at the bars of a panel, one after the other: from ``begin``, ``context_bars`` before a segment, which
    may lie before the panel. ``file`` is the model file."""

    file: Path
    model: Artifact
    features: Panel
    side_inputs: SideInputs
    begin: int

    def forecasts(self, first: int, stop: int) -> list[Forecast] | None:
        """Those of bars [first, stop), and the state after them saved; None if no saved state leads there."""
        state = self._saved(first)
        if state is None:
            return None
        made, state = self._run(first, stop, state)
        self._save(stop, state, began=first)
        return made

    def save_state(self, stop: int) -> None:
        """Runs every bar from ``begin`` and saves the state after the one before ``stop``."""
        network: Any = self.model.network
        _, state = self._run(self.begin, stop, network.initial_state(1, len(self.features.symbols)))
        self._save(stop, state, began=stop)

    def _run(self, first: int, stop: int, state: Any) -> tuple[list[Forecast], Any]:
        return step_forecasts(
            self.model, self.features, self.side_inputs, range(first, stop), state, first == self.begin
        )

    def _saved(self, first: int) -> Any | None:
        """The state after the bar before ``first``, or None where none is saved that can be read and heard the same."""
        network: Any = self.model.network
        try:
            with safe_open(self._at(first), framework="pt") as opened:
                if (opened.metadata() or {}).get("inputs") != self._heard(first):
                    return None
                tensors = [opened.get_tensor(f"{k:03d}") for k in range(len(opened.keys()))]
            return nested(tensors, network.initial_state(1, len(self.features.symbols)))
        except (FileNotFoundError, SafetensorError, OSError, ValueError):
            return None

    def _save(self, stop: int, state: Any, began: int) -> None:
        file = self._at(stop)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        tensors: dict[str, Tensor] = {f"{k:03d}": t.contiguous().clone() for k, t in enumerate(flat(state))}
        try:
            save_file(tensors, partial, metadata={"inputs": self._heard(stop)})
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        for old in file.parent.glob(f"{self.file.stem}.*.state"):
            if old not in (file, self._at(began)):
                old.unlink(missing_ok=True)

    def _at(self, bar: int) -> Path:
        return self.file.with_name(f"{self.file.stem}.{bar}.state")

    def _heard(self, stop: int) -> str:
        """The sha256 of what a state after the bars [begin, stop) has read."""
        panel = self.features.rows(max(0, self.begin), stop)
        header = self.model.header
        return inputs_hash(header.spec, panel, self.side_inputs, [header.outcome.data_hash, stop])
