"""The name, sizes and options that a network is built from; stored with every trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spec:
    """A network of the zoo and its sizes. ``options`` are keyword arguments of its builder (``{"heads": 2}``)."""

    model: str
    d_model: int = 32
    n_layers: int = 2
    d_state: int = 16
    dropout: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """Every field as a JSON-able value; ``Spec(**spec.to_json()) == spec``."""
        return asdict(self)
