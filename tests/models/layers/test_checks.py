"""Every sequence layer takes d_model and d_state (S4-31) and raises the same errors for invalid input and options.

Ids such as S4-31: .github/sources.md.
"""

import inspect

import pytest
import torch
from torch import nn

from models.layers.errors import DtypeError, LayerError, NotFiniteError, ShapeError, SizeError, StateError
from models.nets.sequence_layers import SEQUENCE_LAYERS

D_MODEL = 4
SIZES = {"d_model": D_MODEL, "d_state": 4}


def parameters_of(name: str) -> set[str]:
    """The names of the constructor's parameters. Not every layer has every parameter of SIZES."""
    return set(inspect.signature(SEQUENCE_LAYERS[name].layer).parameters)


def make_layer(name: str, **options: float) -> nn.Module:
    """A small layer, built from the entries of SIZES that its constructor accepts and from ``options``."""
    sizes = {parameter: value for parameter, value in SIZES.items() if parameter in parameters_of(name)}
    return SEQUENCE_LAYERS[name].layer(**(sizes | options))


LAYERS = {name: make_layer(name) for name in SEQUENCE_LAYERS}
GAP_LAYERS = [name for name, entry in SEQUENCE_LAYERS.items() if entry.reads_gaps]
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
every_layer_with_gaps = pytest.mark.parametrize("name", GAP_LAYERS)


@every_layer
def test_an_input_of_another_shape_is_refused(layer: nn.Module) -> None:
    for shape in ((2, 0, D_MODEL), (0, 3, D_MODEL), (2, D_MODEL), (2, 3, D_MODEL + 1)):
        with pytest.raises(ShapeError, match="give"):
            layer(torch.zeros(shape))
    with pytest.raises(ShapeError, match="call forward"):
        layer.step(torch.zeros(2, 1, D_MODEL), layer.initial_state(2))
    assert layer(torch.zeros(1, 1, D_MODEL))[0].shape == (1, 1, D_MODEL)


@every_layer
def test_integers_are_refused(layer: nn.Module) -> None:
    with pytest.raises(DtypeError, match=r"float32"):
        layer(torch.zeros(2, 3, D_MODEL, dtype=torch.int64))


@every_layer
def test_float64_input_gives_float64_output_or_a_dtype_error(layer: nn.Module) -> None:
    try:
        y, _ = layer(torch.zeros(2, 3, D_MODEL, dtype=torch.float64))
        assert y.dtype == torch.float64
    except DtypeError as error:
        assert "convert x" in str(error)


@every_layer
def test_a_state_of_another_batch_size_layer_or_dtype_is_refused(layer: nn.Module) -> None:
    x = torch.zeros(2, 3, D_MODEL)
    state = layer.initial_state(2)
    for wrong_state in (layer.initial_state(3), state[:-1], tuple(tensor.long() for tensor in state)):
        with pytest.raises(StateError):
            layer(x, wrong_state)
        for has_gradients in (True, False):
            with torch.set_grad_enabled(has_gradients), pytest.raises(StateError):
                layer.step(x[:, 0], wrong_state)
    with pytest.raises(StateError):
        layer.step(x[:, 0], None)


@every_layer_with_gaps
def test_gaps_that_are_misshapen_negative_or_not_finite_are_refused(name: str) -> None:
    layer = LAYERS[name]
    x = torch.zeros(2, 3, D_MODEL)
    with pytest.raises(ShapeError, match="one per bar"):
        layer(x, gaps=torch.ones(2, 4))
    for bad_gap in (-1.0, torch.nan, torch.inf):
        gaps = torch.ones(2, 3)
        gaps[1, 2] = bad_gap
        with pytest.raises(NotFiniteError, match="sort the bars"):
            layer(x, gaps=gaps)


@pytest.mark.parametrize("name", SEQUENCE_LAYERS)
def test_sizes_of_zero_are_refused(name: str) -> None:
    for parameter in parameters_of(name) & set(SIZES):
        with pytest.raises(SizeError):
            make_layer(name, **{parameter: 0})


@pytest.mark.parametrize("name", [name for name in SEQUENCE_LAYERS if parameters_of(name) >= {"dt_min", "dt_max"}])
def test_a_range_of_step_sizes_that_contains_zero_or_is_reversed_is_refused(name: str) -> None:
    for dt_min, dt_max in ((0.0, 0.1), (0.2, 0.1)):
        with pytest.raises(SizeError, match="dt_min"):
            make_layer(name, dt_min=dt_min, dt_max=dt_max)


@every_layer_with_gaps
def test_bfloat16_weights_are_refused_and_the_error_suggests_autocast(name: str) -> None:
    with pytest.raises(LayerError, match="autocast"):
        make_layer(name).bfloat16()(torch.zeros(2, 3, D_MODEL, dtype=torch.bfloat16))
