"""The sequence layers by name, and the builder of their networks.

A sequence layer is an ``nn.Module`` that maps l bars x (b, l, d) of b independent sequences to (b, l, d). To add a
layer, write it in models/layers/ and add one line to SEQUENCE_LAYERS. One line in ENTRIES of models/zoo.py then adds a
network with this layer. Every layer must have:

constructor           ``Layer(d_model, ...)``. Networks pass ``d_model`` by position, and by name ``d_state`` and those
                      options of a Spec that are parameters of the constructor. A layer need not have an option that its
                      paper lacks: an option that neither the layer nor the network has raises TypeError.
initial_state(b)      The state before the first bar: a tuple of float32 or float64 tensors whose first dimension is b.
                      The state has the same shapes after every bar. It contains everything about earlier bars that the
                      later outputs depend on.
forward(x, state)     y (b, l, d) and the state after the last bar. ``state`` is optional; None means the initial state.
                      Causal: y at a bar depends only on this bar and earlier bars, to the last bit; a Fourier transform
                      over all bars does not have this property.
step(x, state)        y (b, d) of one bar x (b, d) and the state after it, equal to ``forward`` on that one bar up to
                      rounding. Here ``state`` is required.
export                Under torch.compiler.is_exporting() both run in real float32 arithmetic, because ONNX has no
                      complex type; see models/layers/kernels/complex_pairs.py and the layers s4d and s5.
errors                ShapeError for another shape of x, DtypeError for integers, StateError for a state of another
                      shape or number of tensors, SizeError for sizes below 1 (see models.layers.checks).

A layer may also have:

undecayed()           A list of parameters that AdamW must not decay, because 0 is no neutral value for them: decay
                      rates, frequencies, step sizes, gains. Parameters with one dimension are never decayed.
reference(x, state)   A slow form of ``forward``, the paper's definition, that the tests compare ``forward`` with.
                      Without it they compare ``forward`` with ``step``.
causal = False        The layer reads later bars. Forecasting networks refuse it with NotCausalError.

A layer with ``reads_gaps=True`` must also have:

forward(..., gaps)    ``gaps`` (b, l), optional: the time since the previous bar in bars, 1 on a regular grid. The layer
                      multiplies its step size by it. At a bar with gap 0 (padding) the layer ignores x and does not
                      change its state; a layer with a convolution inside may require that such bars come last. Raises
                      ShapeError for another shape, NotFiniteError for a negative, infinite or NaN gap.
step(..., gap)        ``gap`` (b,), optional: the gap of the one bar.
dt_min, dt_max        Where the paper has them, bounds of the initial step sizes; SizeError unless 0 < dt_min ≤ dt_max.
half precision        Weights in half precision raise a LayerError that names autocast.

``reads_gaps=True`` enables the network option ``irregular``, with which the layers receive the batch's gaps. Networks
of other layers refuse ``irregular`` with SizeError. tests/models/layers/test_checks.py tests every layer of
SEQUENCE_LAYERS against this list, tests/models/nets/test_battery.py every network, tests/models/training/test_export.py
every export.
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
    """How networks build and use a layer.

    ``layer``: builds the layer, as the module docstring specifies. ``adds_glu``: True if the network puts a GLU after
    the layer, for a layer whose output is linear in its input; False for a layer with a nonlinearity or gate of its
    own. ``reads_gaps``: True for a layer that takes time gaps, see the module docstring.
    """

    layer: Callable[..., nn.Module]
    adds_glu: bool = True
    reads_gaps: bool = True

    def layer_factory(self, spec: Spec, options: dict[str, Any]) -> Callable[[], nn.Module]:
        """A function that builds one layer of ``spec``. Removes the options that the layer uses from ``options``.

        With the option ``bidirectional`` the function builds a Bidirectional of two layers. Raises SizeError for
        ``irregular`` if the layer takes no time gaps.
        """
        if options.get("irregular") and not self.reads_gaps:
            with_gaps = ", ".join(name for name, layer in SEQUENCE_LAYERS.items() if layer.reads_gaps)
            raise SizeError(f"this layer takes no time gaps; leave irregular out, or choose one of: {with_gaps}")
        parameters = inspect.signature(self.layer).parameters
        layer_options = {name: options.pop(name) for name in list(options) if name in parameters and name != "d_state"}
        sizes = {"d_state": spec.d_state} if "d_state" in parameters else {}
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
    "lstm": SequenceLayer(LSTM, adds_glu=False, reads_gaps=False),
    "gru": SequenceLayer(GRU, adds_glu=False, reads_gaps=False),
    "transformer": SequenceLayer(Attention, adds_glu=False, reads_gaps=False),
    "tcn": SequenceLayer(TCN, adds_glu=False, reads_gaps=False),
}


def sequence_layer(name: str) -> SequenceLayer:
    """The layer of that name. Raises SizeError for an unknown name."""
    if name not in SEQUENCE_LAYERS:
        raise SizeError(f"no sequence layer {name!r}; choose one of {', '.join(SEQUENCE_LAYERS)}")
    return SEQUENCE_LAYERS[name]


def build_sequence_network(spec: Spec, n_features: int, n_horizons: int, **options: Any) -> SequenceNetwork:
    """The sequence network with the layer that ``spec.model`` names.

    ``options``: options of the layer, of SequenceNetwork (pooling, irregular, pool_bars) and of Heads (assets, weights,
    regimes). Raises SizeError, NotCausalError, and TypeError for an option that none of the three has.
    """
    layer_entry = sequence_layer(spec.model)
    make_layer = layer_entry.layer_factory(spec, options)
    return SequenceNetwork(spec, n_features, n_horizons, make_layer, layer_entry.adds_glu, **options)
