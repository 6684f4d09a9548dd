"""The selective scan against its definition, values and gradients (MAM-06 to MAM-10, MAM-13)."""

import pytest
import torch

from models.layers import scan
from models.layers.scan import selective_scan, selective_scan_reference

B, D, L, N = 3, 4, 11, 5


def arguments(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"u": (B, D, L), "delta": (B, D, L), "B": (B, N, L), "C": (B, N, L), "D": (D,), "z": (B, D, L)}
    shapes |= {"delta_bias": (D,), "initial_state": (B, D, N)}
    given = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    given["A"] = -torch.rand(D, N, dtype=dtype) * N
    return {name: value.requires_grad_() for name, value in given.items()}


@pytest.mark.parametrize("block", [1, 4, 1 << 20])
def test_blocks_equal_the_definition_in_values_and_all_gradients(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(scan, "BLOCK_ELEMENTS", block * B * D * N)
    given, weight, weight_h = arguments(), torch.randn(B, D, L), torch.randn(B, D, N)
    results = []
    for form in (selective_scan, selective_scan_reference):
        y, h = form(**given, delta_softplus=True, return_last_state=True)
        loss = (y * weight).sum() + (h * weight_h).sum()
        results.append([y, h, *torch.autograd.grad(loss, list(given.values()))])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


def test_gradients_agree_with_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: value.detach()[..., :4].double() for name, value in arguments().items() if name in "uABC"}
    given |= {"A": -torch.rand(D, N).double(), "delta": torch.rand(B, D, 4).double()}

    def loss(form, **changed: torch.Tensor) -> torch.Tensor:
        return (form(**(given | changed)) ** 2).sum()

    for name in given:
        assert torch.autograd.gradcheck(
            lambda v, n=name: loss(selective_scan_reference, **{n: v}), given[name].requires_grad_()
        )
        given[name] = given[name].detach()


def test_one_bar_by_hand() -> None:
    """h = exp(Δ A) h + Δ B u; y = C h + D u."""
    one = {"u": [[[2.0]]], "delta": [[[0.5]]], "A": [[-1.0]], "B": [[[3.0]]], "C": [[[4.0]]], "D": [10.0]}
    given = {name: torch.tensor(value) for name, value in one.items()}
    y, h = selective_scan(**given, initial_state=torch.tensor([[[7.0]]]), return_last_state=True)
    state = 7 * torch.exp(torch.tensor(-0.5)) + 0.5 * 3 * 2
    torch.testing.assert_close(h, state.reshape(1, 1, 1))
    torch.testing.assert_close(y, (4 * state + 10 * 2).reshape(1, 1, 1))


def test_halves_joined_by_the_state_are_the_whole() -> None:
    given = {name: value.detach() for name, value in arguments().items() if name not in ("initial_state", "z")}
    cut = {name: (v[..., :6], v[..., 6:]) if v.dim() == 3 else (v, v) for name, v in given.items()}
    whole = selective_scan(**given, delta_softplus=True)
    first, state = selective_scan(**{n: v[0] for n, v in cut.items()}, delta_softplus=True, return_last_state=True)
    second = selective_scan(**{n: v[1] for n, v in cut.items()}, delta_softplus=True, initial_state=state)
    torch.testing.assert_close(torch.cat([first, second], dim=-1), whole)


def test_memory_of_a_pass_does_not_grow_with_the_states() -> None:
    """MAM-08: between forward and backward only inputs, outputs and one state a block are kept."""
    shape = {"u": (2, 8, 4096), "delta": (2, 8, 4096), "B": (2, 64, 4096), "C": (2, 64, 4096)}
    given = {name: torch.rand(s).requires_grad_() for name, s in shape.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        selective_scan(A=-torch.rand(8, 64), **given)
    assert sum(kept) < 6 * sum(v.numel() for v in given.values())
    assert sum(kept) < 4096 * 2 * 8 * 64 / 2
