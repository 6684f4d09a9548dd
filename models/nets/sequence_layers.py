"""The sequence layers of the zoo by name, and the network of each.

A sequence layer is an ``nn.Module`` that maps bars x (b, l, d) of b independent sequences to (b, l, d). To add one,
write it in models/layers/ and add one line to SEQUENCE_LAYERS; a line in ENTRIES of models/zoo.py makes it a network of
its own. The layer has to have:

constructor           ``Layer(d_model, ...)``. Networks pass ``d_model`` by position, and by name those options of a
                      Spec that are parameters of the constructor. A layer need not have an option that its paper
                      lacks: an option that neither the layer nor the network has raises TypeError.
initial_state(batch)  The state before the first bar: a tuple of float32 or float64 tensors, ``batch`` rows each. The
                      state has the same shapes after every bar, and holds all that later bars need of earlier ones.
forward(x, state)     y (b, l, d) and the state after the last bar. ``state`` is optional: None stands for the initial
                      one. Causal: y at a bar depends on this bar and those before it only.
step(x, state)        y (b, d) of one bar x (b, d) and the state after it, equal to ``forward`` on that one bar. Here
                      ``state`` is required.
errors                ShapeError for another shape of x, DtypeError for integers, StateError for a state of another
                      shape or number of tensors, SizeError for sizes below 1 (see models.layers.checks).

and may have:

undecayed()           A list of parameters that AdamW must not shrink, because zero is no neutral value for them: decay
                      rates, frequencies, step sizes, gains. Parameters with one dimension are exempt in any case.
reference(x, state)   A slow form of ``forward``, the paper's definition, that the tests compare ``forward`` with.
                      Without it they compare ``forward`` with ``step``.
causal = False        The layer reads later bars. Forecasting networks refuse it with NotCausalError.

A layer with ``state_space=True`` also has:

d_state               The second parameter of the constructor: the size of the state. Networks pass it by name.
forward(..., gaps)    ``gaps`` (b, l), optional: the time since the previous bar, 1 for a regular one, by which the
                      layer scales its step size. At a bar with gap 0 (padding) it ignores x and keeps its state; a
                      layer with a convolution inside may require that such bars come last. ShapeError for another
                      shape, NotFiniteError for a negative, infinite or NaN gap.
step(..., gap)        ``gap`` (b,), optional: the same for one bar.
dt_min, dt_max        Bounds of the first step sizes, where its paper has them; SizeError unless 0 < dt_min ≤ dt_max.
weights               In half precision they raise a LayerError that names autocast.

``state_space=True`` enables the network option ``irregular``, with which the layers receive the batch's gaps. Other
layers are built without ``d_state`` and refuse ``irregular`` with SizeError. tests/models/layers/test_checks.py tests
every layer of SEQUENCE_LAYERS against this list, tests/models/nets/test_battery.py every network.
"""

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
    """How networks build and use a layer; the contract of ``layer`` and of ``state_space`` is in the module docstring.

    ``adds_glu``: the network follows the layer by a GLU, which mixes the channels; False for a layer that has a gate of
    its own or already mixes its channels.
    """

    layer: Callable[..., nn.Module]
    adds_glu: bool = True
    state_space: bool = True

    def layer_factory(self, spec: Spec, options: dict[str, Any]) -> Callable[[], nn.Module]:
        """A function that builds one layer of ``spec``. Removes the layer's options from ``options``.

        The option ``bidirectional`` wraps two layers in one. Raises SizeError for ``irregular`` where the layer is not
        a state-space layer.
        """
        if options.get("irregular") and not self.state_space:
            raise SizeError("only state-space layers know time gaps; leave irregular out, or choose s4, s4d, s5, mamba")
        parameters = inspect.signature(self.layer).parameters
        layer_options = {name: options.pop(name) for name in list(options) if name in parameters and name != "d_state"}
        sizes = {"d_state": spec.d_state} if self.state_space else {}
        make_layer = partial(self.layer, spec.d_model, **sizes, **layer_options)
        if options.pop("bidirectional", False):
            return partial(Bidirectional, spec.d_model, make_layer)
        return make_layer


SEQUENCE_LAYERS = {
    "s4": SequenceLayer(S4),
    "s4d": SequenceLayer(S4D),
    "dss": SequenceLayer(DSS),
    "s5": SequenceLayer(S5),
    "mamba": SequenceLayer(Mamba, adds_glu=False),
    "mamba_simplified": SequenceLayer(Mamba.simplified, adds_glu=False),
    "mamba2": SequenceLayer(Mamba2, adds_glu=False),
    "lstm": SequenceLayer(LSTM, adds_glu=False, state_space=False),
    "gru": SequenceLayer(GRU, adds_glu=False, state_space=False),
    "transformer": SequenceLayer(Attention, adds_glu=False, state_space=False),
    "tcn": SequenceLayer(TCN, adds_glu=False, state_space=False),
}


def sequence_layer(name: str) -> SequenceLayer:
    """The layer of that name. Raises SizeError."""
    if name not in SEQUENCE_LAYERS:
        raise SizeError(f"no sequence layer {name!r}; choose one of {', '.join(SEQUENCE_LAYERS)}")
    return SEQUENCE_LAYERS[name]


def sequence(spec: Spec, n_features: int, n_horizons: int, **options: Any) -> SequenceNetwork:
    """The sequence network of the layer that ``spec.model`` names.

    Options, by name: those of the layer, of SequenceNetwork (pooling, irregular, pool_bars) and of Heads (assets,
    weights, regimes). Raises SizeError, NotCausalError, and TypeError for an option that none of them has.
    """
    layer = sequence_layer(spec.model)
    make_layer = layer.layer_factory(spec, options)
    return SequenceNetwork(spec, n_features, n_horizons, make_layer, layer.adds_glu, **options)
