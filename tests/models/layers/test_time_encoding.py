"""Encodings of elapsed time."""

from __future__ import annotations

import pytest
import torch

from models.layers.errors import SizeError
from models.layers.time_encoding import MILLISECOND_TO_DAY, Functional, MultiScale, Time2Vec, time_encoding


def test_the_functional_encoding_has_length_one_and_knows_only_differences() -> None:
    encoding = Functional(16, 1.0, 1e4)
    t = torch.tensor([0.0, 3.0, 500.0])
    assert (encoding(t) @ encoding(t).T).diagonal().tolist() == pytest.approx([1.0] * 3)
    apart = [float((encoding(a + 7.0) * encoding(a)).sum().detach()) for a in t]
    assert apart == pytest.approx([apart[0]] * 3, abs=1e-4)


def test_its_gradient_is_the_one_torch_finds() -> None:
    encoding, t = Functional(8, 1.0, 100.0), torch.rand(4, 3) * 50
    weights, found = torch.randn(4, 3, 8), []
    for form in (encoding.forward, encoding.reference):
        encoding.zero_grad()
        y = form(t)
        (y * weights).sum().backward()
        assert encoding.log_frequency.grad is not None
        found.append((y.detach(), encoding.log_frequency.grad.clone()))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_after_a_second_or_a_century_the_waves_are_those_of_the_angle() -> None:
    encoding, t = Functional(16, 1.0, 1e6), torch.tensor([0.0, 1e-3, 1.0, 86400.0, 3e9])
    angle = (t[:, None] * encoding.frequency).double()
    exact = torch.cat([angle.cos(), angle.sin()], dim=-1) * encoding.scale
    torch.testing.assert_close(encoding(t).double(), exact, rtol=0, atol=1e-6)


def test_a_single_time_has_its_gradient_too() -> None:
    encoding, grads = Functional(8), []
    for form in (encoding, encoding.reference):
        encoding.zero_grad()
        form(torch.tensor(3.0)).sum().backward()
        grads.append(encoding.log_frequency.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_in_double_precision_nothing_is_rounded_to_single() -> None:
    encoding, t, grads = Functional(8, 1.0, 1e6).double(), torch.tensor([0.5, 3.0, 86400.0]), []
    for form in (encoding, encoding.reference):
        encoding.zero_grad()
        form(t).sum().backward()
        grads.append(encoding.log_frequency.grad.clone())
    assert torch.equal(encoding(t), encoding.reference(t))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_time2vec_is_one_line_and_waves() -> None:
    encoding = Time2Vec(4, 1.0, 100.0)
    with torch.no_grad():
        encoding.phase.zero_()
        encoding.log_frequency.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
    y = encoding(torch.tensor([0.5])).detach()[0]
    assert y.tolist() == pytest.approx([0.005, *torch.sin(torch.tensor([0.5, 1.0, 1.5])).tolist()])


def test_every_scale_sees_time_in_its_own_unit() -> None:
    encoding = MultiScale(20)
    assert encoding.scales == MILLISECOND_TO_DAY
    day, hour = torch.tensor([86400.0]), torch.tensor([3600.0])
    parts = encoding(day)[0].split(4), encoding(hour)[0].split(4)
    torch.testing.assert_close(parts[0][4], encoding.encodings[4](torch.ones(1))[0])
    torch.testing.assert_close(parts[1][3], encoding.encodings[3](torch.ones(1))[0])


@pytest.mark.parametrize("kind", ["functional", "time2vec", "multi_scale"])
@pytest.mark.parametrize("d", [8, 100])
def test_every_encoding_has_d_numbers_and_tells_times_apart(kind: str, d: int) -> None:
    y = time_encoding(kind, d, 0.1, 1000.0)(torch.tensor([0.0, 1.0, 90.0]))
    assert y.shape == (3, d)
    assert torch.isfinite(y).all()
    assert float((y[0] - y[2]).detach().abs().max()) > 1e-3


def test_sizes_and_periods_that_make_no_sense_are_refused() -> None:
    for wrong in (lambda: Functional(7), lambda: MultiScale(8), lambda: Time2Vec(1), lambda: Functional(8, 5.0, 1.0)):
        with pytest.raises(SizeError):
            wrong()
    with pytest.raises(SizeError, match="encoding is 'clock'"):
        time_encoding("clock", 8, 1.0, 2.0)
