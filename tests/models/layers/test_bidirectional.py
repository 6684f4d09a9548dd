"""The layer that reads a series in time order and in reverse, and its refusal to forecast (S4-19, S4-31).

Ids such as S4-19: .github/sources.md.
"""

import pytest
import torch

from models.layers.bidirectional import Bidirectional, backward_gaps
from models.layers.dss import DSS
from models.layers.errors import NotCausalError, ShapeError
from models.layers.lstm import LSTM
from models.layers.s4 import S4


def test_the_output_is_a_linear_map_of_the_outputs_of_both_layers() -> None:
    torch.manual_seed(0)
    layer = Bidirectional(3, lambda: S4(3, 8)).double()
    x = torch.randn(2, 9, 3, dtype=torch.double)
    y, state = layer(x)
    outputs = torch.cat([layer.onward(x)[0], layer.returning(x.flip(1))[0].flip(1)], dim=-1)
    torch.testing.assert_close(y, outputs @ layer.mix.weight.T + layer.mix.bias)
    assert state == ()
    assert y.shape == x.shape


def test_the_layer_is_not_causal() -> None:
    layer = Bidirectional(3, lambda: S4(3, 8))
    x = torch.randn(2, 9, 3)
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.equal(layer(x)[0][:, 0], layer(changed)[0][:, 0])
    assert layer.causal is False


def test_a_reversed_series_and_swapped_layers_give_the_reversed_result() -> None:
    layer = Bidirectional(3, lambda: S4(3, 8))
    x = torch.randn(2, 9, 3)
    y, _ = layer(x)
    layer.onward, layer.returning = layer.returning, layer.onward
    with torch.no_grad():
        layer.mix.weight.copy_(layer.mix.weight.roll(3, dims=1))
    torch.testing.assert_close(layer(x.flip(1))[0].flip(1), y)


def test_a_backward_gap_is_the_time_to_the_next_real_bar() -> None:
    gaps = torch.tensor([[1.0, 2.0, 0.0, 0.0, 5.0, 3.0], [0.0, 1.0, 1.0, 4.0, 1.0, 0.0]])
    expected = torch.tensor([[1.0, 3.0, 0.0, 0.0, 5.0, 2.0], [0.0, 1.0, 1.0, 4.0, 1.0, 0.0]])
    assert backward_gaps(gaps).tolist() == expected.tolist()


def test_padded_bars_do_not_change_the_outputs_of_real_bars() -> None:
    layer = Bidirectional(3, lambda: DSS(3, 8))
    x = torch.randn(2, 9, 3)
    real_bars = torch.tensor([0, 2, 3, 5, 7])  # positions of the bars that are not padding, which have a gap above 0
    gaps = torch.zeros(2, 9)
    gaps[:, real_bars] = torch.rand(5) + 0.5
    y, _ = layer(x, None, gaps)
    torch.testing.assert_close(y[:, real_bars], layer(x[:, real_bars], None, gaps[:, real_bars])[0])


def test_gradients_reach_both_layers() -> None:
    layer = Bidirectional(3, lambda: DSS(3, 8))
    layer(torch.randn(2, 9, 3))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_the_undecayed_parameters_are_those_of_both_layers() -> None:
    dss = Bidirectional(3, lambda: DSS(3, 8))
    assert len(dss.undecayed()) == 2 * len(DSS(3, 8).undecayed()) == 6
    assert Bidirectional(3, lambda: LSTM(3)).undecayed() == []


def test_forecasting_is_refused() -> None:
    layer = Bidirectional(3, lambda: S4(3, 8))
    x = torch.randn(2, 9, 3)
    for call in (
        lambda: layer(x, layer.onward.initial_state(2)),
        lambda: layer.step(x[:, 0], layer.onward.initial_state(2)),
        lambda: layer.initial_state(2),
    ):
        with pytest.raises(NotCausalError, match="not for forecasting"):
            call()
    with pytest.raises(ShapeError, match="give"):
        layer(x[..., :2])
