"""The sequence layers of the zoo by name, and the network of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from models.layers.attention import Attention
from models.layers.bidirectional import Bidirectional
from models.layers.dss import DSS
from models.layers.errors import SizeError
from models.layers.gru import GRU
from models.layers.lstm import LSTM
from models.layers.mamba import Mamba
from models.layers.mamba2 import Mamba2
from models.layers.s4 import S4
from models.layers.s4d import S4D
from models.layers.s5 import S5
from models.layers.tcn import TCN
from models.nets.sequence import SequenceNetwork
from models.nets.spec import Spec


@dataclass(frozen=True)
class SequenceLayer:
    """A layer as networks use it. ``gated``: a GLU follows it. ``state_space``: it takes d_state."""

    layer: Callable[..., nn.Module]
    gated: bool = True
    state_space: bool = True

    def maker(self, spec: Spec, options: dict[str, Any]) -> Callable[[], nn.Module]:
        """Makes one layer of ``spec`` with those of ``options`` that are the layer's own, which are taken out.

        ``bidirectional`` wraps two layers in one. Raises SizeError where the layer knows no time gaps and is asked to.
        """
        if options.get("irregular") and not self.state_space:
            raise SizeError("only state-space layers know time gaps; leave irregular out, or choose s4, s4d, s5, mamba")
        known = inspect.signature(self.layer).parameters
        own = {name: options.pop(name) for name in list(options) if name in known and name != "d_state"}
        sizes = {"d_state": spec.d_state} if self.state_space else {}
        make = partial(self.layer, spec.d_model, **sizes, **own)
        return partial(Bidirectional, spec.d_model, make) if options.pop("bidirectional", False) else make


SEQUENCE_LAYERS = {
    "s4": SequenceLayer(S4),
    "s4d": SequenceLayer(S4D),
    "dss": SequenceLayer(DSS),
    "s5": SequenceLayer(S5),
    "mamba": SequenceLayer(Mamba, gated=False),
    "mamba_simplified": SequenceLayer(Mamba.simplified, gated=False),
    "mamba2": SequenceLayer(Mamba2, gated=False),
    "lstm": SequenceLayer(LSTM, gated=False, state_space=False),
    "gru": SequenceLayer(GRU, gated=False, state_space=False),
    "transformer": SequenceLayer(Attention, gated=False, state_space=False),
    "tcn": SequenceLayer(TCN, gated=False, state_space=False),
}


def sequence_layer(name: str) -> SequenceLayer:
    """The layer of that name. Raises SizeError."""
    if name not in SEQUENCE_LAYERS:
        raise SizeError(f"no sequence layer {name!r}; choose one of {', '.join(SEQUENCE_LAYERS)}")
    return SEQUENCE_LAYERS[name]


def sequence(spec: Spec, n_features: int, n_horizons: int, **options: Any) -> SequenceNetwork:
    """The sequence network of the layer that ``spec.model`` names.

    Options: those of the layer by name, and of SequenceNetwork (pooling, irregular, pool_bars) and Heads
    (assets, weights, regimes). Raises SizeError, NotCausalError, and TypeError for an option that none of them has.
    """
    chosen = sequence_layer(spec.model)
    make = chosen.maker(spec, options)
    return SequenceNetwork(spec, n_features, n_horizons, make, chosen.gated, **options)
