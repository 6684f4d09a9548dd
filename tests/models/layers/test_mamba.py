"""The Mamba block (MAM-07, MAM-11 to MAM-13, TRAP-05)."""

import torch

from models.layers.mamba import Mamba


def test_whole_sequence_equals_step_by_step() -> None:
    torch.manual_seed(0)
    layer, x = Mamba(6, d_state=5), torch.randn(2, 13, 6)
    whole, last = layer(x)
    state, outputs = layer.initial_state(2), []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, dim=1), whole, rtol=1e-4, atol=1e-5)
    for a, b in zip(state, last, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_halves_joined_by_the_state_are_the_whole() -> None:
    layer, x = Mamba(6), torch.randn(2, 13, 6)
    for cut in (1, 2, 7):
        first, state = layer(x[:, :cut])
        second, _ = layer(x[:, cut:], state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), layer(x)[0], rtol=1e-4, atol=1e-5)


def test_shapes_follow_the_paper_and_not_the_sources_shared_vector() -> None:
    """TRAP-05: A has a row for every channel, dt a rank of d_model / 16."""
    layer = Mamba(64, d_state=16, expand=2)
    assert layer.A_log.shape == (128, 16)
    assert layer.dt_rank == 4 and layer.dt_proj.weight.shape == (128, 4)
    assert layer.in_proj.bias is None and layer.out_proj.bias is None
    torch.testing.assert_close(layer.A_log.exp()[0], torch.arange(1.0, 17))
    assert Mamba(64, dt_rank=1).dt_proj.weight.shape == (128, 1)


def test_step_sizes_start_within_their_bounds() -> None:
    dt = torch.nn.functional.softplus(Mamba(32).dt_proj.bias)
    assert dt.min() >= 0.001 * 0.999 and dt.max() <= 0.1 * 1.001


def test_the_future_never_changes_the_past_by_a_bit() -> None:
    layer, x = Mamba(6), torch.randn(2, 30, 6)
    changed = x.clone()
    changed[:, 20:] = 50.0
    assert torch.equal(layer(x)[0][:, :20], layer(changed)[0][:, :20])


def test_selection_depends_on_the_input() -> None:
    """MAM-05: the same impulse is remembered differently when the bars after it differ."""
    torch.manual_seed(0)
    layer = Mamba(4)
    quiet, loud = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
    loud[:, 1] = 3.0
    decay = []
    for rest in (quiet, loud):
        impulse, none = rest.clone(), rest.clone()
        impulse[:, 0] = 1.0
        decay.append(layer(impulse)[1][1] - layer(none)[1][1])
    assert not torch.allclose(*decay, rtol=1e-2)
