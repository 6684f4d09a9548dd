"""The specification of a network: its name in the zoo, its sizes and its options. It is stored with every trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spec:
    """What a network is built from.

    ``model``: its name in models.zoo.ENTRIES. ``d_model``: channels. ``n_layers``: layers. ``d_state``: size of the
    state of a state-space layer. ``dropout``: probability that dropout zeroes a value. ``options``: further keyword
    arguments of the builder, such as ``{"heads": 2}``. A network without a use for a size ignores it.
    """

    model: str
    d_model: int = 32
    n_layers: int = 2
    d_state: int = 16
    dropout: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """Every field by name, as JSON can hold it; ``Spec(**spec.to_json()) == spec``."""
        return asdict(self)
