"""Every layer refuses what it cannot work with in the same words."""

import pytest
import torch
from torch import nn

from models.layers.errors import DtypeError, LayerError, NotFiniteError, ShapeError, SizeError, StateError
from models.nets.sequence_layers import SEQUENCE_LAYERS

D = 4
LAYERS = {name: kind.layer(D, 4) if kind.state_space else kind.layer(D) for name, kind in SEQUENCE_LAYERS.items()}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
with_gaps = pytest.mark.parametrize("name", [name for name, kind in SEQUENCE_LAYERS.items() if kind.state_space])


@every_layer
def test_shapes(layer: nn.Module) -> None:
    for shape in ((2, 0, D), (0, 3, D), (2, D), (2, 3, D + 1)):
        with pytest.raises(ShapeError, match="give"):
            layer(torch.zeros(shape))
    with pytest.raises(ShapeError, match="call forward"):
        layer.step(torch.zeros(2, 1, D), layer.initial_state(2))
    assert layer(torch.zeros(1, 1, D))[0].shape == (1, 1, D)


@every_layer
def test_types(layer: nn.Module) -> None:
    with pytest.raises(DtypeError, match=r"float32"):
        layer(torch.zeros(2, 3, D, dtype=torch.int64))
    try:  # another floating type is either converted or refused
        y, _ = layer(torch.zeros(2, 3, D, dtype=torch.float64))
        assert y.dtype == torch.float64
    except DtypeError as error:
        assert "make them one" in str(error)


@every_layer
def test_states(layer: nn.Module) -> None:
    x, state = torch.zeros(2, 3, D), layer.initial_state(2)
    for wrong in (layer.initial_state(3), state[:-1], tuple(part.long() for part in state)):
        with pytest.raises(StateError):
            layer(x, wrong)
        for learning in (True, False):
            with torch.set_grad_enabled(learning), pytest.raises(StateError):
                layer.step(x[:, 0], wrong)
    with pytest.raises(StateError):
        layer.step(x[:, 0], None)


@with_gaps
def test_gaps(name: str) -> None:
    layer, x = LAYERS[name], torch.zeros(2, 3, D)
    with pytest.raises(ShapeError, match="one per bar"):
        layer(x, gaps=torch.ones(2, 4))
    for wrong in (-1.0, torch.nan, torch.inf):
        gaps = torch.ones(2, 3)
        gaps[1, 2] = wrong
        with pytest.raises(NotFiniteError, match="sort the bars"):
            layer(x, gaps=gaps)


@with_gaps
def test_sizes(name: str) -> None:
    for sizes in ((D, 0), (0, 4)):
        with pytest.raises(SizeError):
            SEQUENCE_LAYERS[name].layer(*sizes)
    if name != "mamba_simplified":
        for bounds in ((0.0, 0.1), (0.2, 0.1)):
            with pytest.raises(SizeError, match="dt_min"):
                SEQUENCE_LAYERS[name].layer(D, 4, dt_min=bounds[0], dt_max=bounds[1])


@with_gaps
def test_weights_in_half_precision_say_to_use_autocast(name: str) -> None:
    kind = SEQUENCE_LAYERS[name]
    with pytest.raises(LayerError, match="autocast"):
        kind.layer(D, 4).bfloat16()(torch.zeros(2, 3, D, dtype=torch.bfloat16))
