"""S4D: convolution against recurrence against the dense state-space model (S4-11, S4-12, S4-13, S4-21, HYB-01)."""

import numpy as np
import pytest
import torch

from models.layers import s4d
from models.layers.s4d import S4D


def by_step(layer: S4D, x: torch.Tensor, state: s4d.State) -> tuple[torch.Tensor, s4d.State]:
    outputs = []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize("spectrum", ["legs", "linear"])
@pytest.mark.parametrize("chunk", [4, 10, 128])
def test_convolution_equals_recurrence(monkeypatch: pytest.MonkeyPatch, chunk: int, spectrum: str) -> None:
    monkeypatch.setattr(s4d, "CHUNK_BARS", chunk)
    torch.manual_seed(0)
    layer, x = S4D(3, 8, spectrum), torch.randn(2, 21, 3)
    for state in (layer.initial_state(2), (torch.randn(2, 3, 4, 2),)):
        fast, (fast_state,) = layer(x, state)
        slow, (slow_state,) = by_step(layer, x, state)
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fast_state, slow_state, rtol=1e-4, atol=1e-4)


def test_no_state_is_the_initial_state() -> None:
    layer, x = S4D(3, 8), torch.randn(2, 9, 3)
    torch.testing.assert_close(layer(x)[0], layer(x, layer.initial_state(2))[0])


def test_recurrence_is_the_zero_order_hold_of_the_continuous_system() -> None:
    """S4-07: with the input held over a bar, h' = A h + x is what Ā and B̄ solve exactly; here in many small steps."""
    torch.manual_seed(0)
    layer = S4D(1, 4, dt_min=0.3, dt_max=0.3)
    with torch.no_grad():
        A = (-torch.exp(layer.log_decay) + 1j * layer.frequency).numpy().astype(complex)[0]
        dt, C, D = float(layer.log_dt.exp()), torch.view_as_complex(layer.C).numpy()[0], float(layer.D)
        x, h, fine = torch.randn(1, 5, 1), np.zeros(2, dtype=complex), 20_000
        y = layer(x)[0][0, :, 0].numpy()
    for t, x_t in enumerate(x[0, :, 0].tolist()):
        for _ in range(fine):
            h = h + dt / fine * (A * h + x_t)
        assert y[t] == pytest.approx(2 * (C * h).sum().real + D * x_t, abs=1e-3)


def test_the_future_never_changes_the_past_by_a_bit() -> None:
    layer, x = S4D(4, 8), torch.randn(3, 40, 4)
    changed = x.clone()
    changed[:, 25:] = 1e3
    assert torch.equal(layer(x)[0][:, :25], layer(changed)[0][:, :25])
    assert not torch.equal(layer(x)[0][:, 25:], layer(changed)[0][:, 25:])


def test_every_parameter_learns_and_gradients_of_both_forms_agree() -> None:
    torch.manual_seed(1)
    layer, x = S4D(2, 8), torch.randn(2, 12, 2)
    parameters = list(layer.parameters())
    fast = torch.autograd.grad(layer(x)[0].square().sum(), parameters)
    slow = torch.autograd.grad(by_step(layer, x, layer.initial_state(2))[0].square().sum(), parameters)
    for a, b in zip(fast, slow, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_step_sizes_start_within_their_bounds() -> None:
    dt = S4D(64, dt_min=0.01, dt_max=0.5).log_dt.exp()
    assert dt.min() >= 0.01 and dt.max() <= 0.5 and dt.std() > 0.05
