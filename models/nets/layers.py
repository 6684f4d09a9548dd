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
class Kind:
    """A layer as networks use it. ``gated``: a GLU follows it. ``stateful``: it takes d_state."""

    layer: Callable[..., nn.Module]
    gated: bool = True
    stateful: bool = True

    def maker(self, spec: Spec, options: dict[str, Any]) -> Callable[[], nn.Module]:
        """Makes one layer of ``spec`` with those of ``options`` that are the layer's own, which are taken out.

        ``bidirectional`` wraps two layers in one. Raises SizeError where the layer knows no time gaps and is asked to.
        """
        if options.get("irregular") and not self.stateful:
            raise SizeError("only state-space layers know time gaps; leave irregular out, or choose s4, s4d, s5, mamba")
        known = inspect.signature(self.layer).parameters
        own = {name: options.pop(name) for name in list(options) if name in known and name != "d_state"}
        sizes = {"d_state": spec.d_state} if self.stateful else {}
        make = partial(self.layer, spec.d_model, **sizes, **own)
        return partial(Bidirectional, spec.d_model, make) if options.pop("bidirectional", False) else make


KINDS = {
    "s4": Kind(S4),
    "s4d": Kind(S4D),
    "dss": Kind(DSS),
    "s5": Kind(S5),
    "mamba": Kind(Mamba, gated=False),
    "mamba_simplified": Kind(Mamba.simplified, gated=False),
    "mamba2": Kind(Mamba2, gated=False),
    "lstm": Kind(LSTM, gated=False, stateful=False),
    "gru": Kind(GRU, gated=False, stateful=False),
    "transformer": Kind(Attention, gated=False, stateful=False),
    "tcn": Kind(TCN, gated=False, stateful=False),
}


def kind(name: str) -> Kind:
    """The layer of that name. Raises SizeError."""
    if name not in KINDS:
        raise SizeError(f"no sequence layer {name!r}; choose one of {', '.join(KINDS)}")
    return KINDS[name]


def sequence(spec: Spec, n_features: int, n_horizons: int, **options: Any) -> SequenceNetwork:
    """The sequence network of the layer that ``spec.model`` names.

    Options: those of the layer by name, and of SequenceNetwork (pooling, irregular, pool_bars) and Heads
    (assets, weights, regimes). Raises SizeError, NotCausalError, and TypeError for an option that none of them has.
    """
    chosen = kind(spec.model)
    make = chosen.maker(spec, options)
    return SequenceNetwork(spec, n_features, n_horizons, make, chosen.gated, **options)
