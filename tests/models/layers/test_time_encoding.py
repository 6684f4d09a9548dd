"""Encodings of elapsed time: functional, Time2Vec and several scales.

Ids such as TGN-17: .github/sources.md.
"""

from __future__ import annotations

import pytest
import torch

from models.layers.errors import SizeError
from models.layers.time_encoding import SCALES_SECONDS, Functional, MultiScale, Time2Vec, make_time_encoding


def test_functional_encodings_have_norm_one_and_products_that_depend_only_on_the_time_difference() -> None:
    """TGN-17."""
    encoding = Functional(16, 1.0, 1e4)
    t = torch.tensor([0.0, 3.0, 500.0])
    assert (encoding(t) @ encoding(t).T).diagonal().tolist() == pytest.approx([1.0] * 3)
    products = [float((encoding(t_i + 7.0) * encoding(t_i)).sum().detach()) for t_i in t]
    assert products == pytest.approx([products[0]] * 3, abs=1e-4)


def test_the_functional_gradient_equals_torchs_autograd() -> None:
    encoding = Functional(8, 1.0, 100.0)
    t = torch.rand(4, 3) * 50
    weights = torch.randn(4, 3, 8)
    results = []
    for encode in (encoding.forward, encoding.reference):
        encoding.zero_grad()
        y = encode(t)
        (y * weights).sum().backward()
        assert encoding.log_frequency.grad is not None
        results.append((y.detach(), encoding.log_frequency.grad.clone()))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_the_functional_encoding_is_accurate_from_milliseconds_to_a_century() -> None:
    encoding = Functional(16, 1.0, 1e6)
    t = torch.tensor([0.0, 1e-3, 1.0, 86400.0, 3e9])  # seconds; 3e9 are 95 years
    angle = (t[:, None] * encoding.frequency).double()
    exact = torch.cat([angle.cos(), angle.sin()], dim=-1) * encoding.scale
    torch.testing.assert_close(encoding(t).double(), exact, rtol=0, atol=1e-6)


def test_a_scalar_time_has_a_gradient() -> None:
    encoding = Functional(8)
    grads = []
    for encode in (encoding, encoding.reference):
        encoding.zero_grad()
        encode(torch.tensor(3.0)).sum().backward()
        grads.append(encoding.log_frequency.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_float64_is_computed_in_float64() -> None:
    encoding = Functional(8, 1.0, 1e6).double()
    t = torch.tensor([0.5, 3.0, 86400.0])
    grads = []
    for encode in (encoding, encoding.reference):
        encoding.zero_grad()
        encode(t).sum().backward()
        grads.append(encoding.log_frequency.grad.clone())
    assert torch.equal(encoding(t), encoding.reference(t))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_time2vec_is_one_linear_term_and_sines() -> None:
    """TGN-18."""
    encoding = Time2Vec(4, 1.0, 100.0)
    with torch.no_grad():
        encoding.phase.zero_()
        encoding.log_frequency.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
    y = encoding(torch.tensor([0.5])).detach()[0]
    # the linear term is t / longest, 0.5 / 100
    assert y.tolist() == pytest.approx([0.005, *torch.sin(torch.tensor([0.5, 1.0, 1.5])).tolist()])


def test_every_scale_receives_time_in_its_unit() -> None:
    """TGN-19: checked for two of the five scales, hour and day."""
    encoding = MultiScale(20)
    assert encoding.scales == SCALES_SECONDS
    day = torch.tensor([86400.0])
    hour = torch.tensor([3600.0])
    for scale, t in ((3, hour), (4, day)):
        numbers = encoding(t)[0].split(4)[scale]  # four numbers a scale
        torch.testing.assert_close(numbers, encoding.encodings[scale](torch.ones(1))[0])


@pytest.mark.parametrize("kind", ["functional", "time2vec", "multi_scale"])
@pytest.mark.parametrize("d", [8, 100])
def test_every_encoding_has_d_numbers_that_differ_between_times(kind: str, d: int) -> None:
    y = make_time_encoding(kind, d, 0.1, 1000.0)(torch.tensor([0.0, 1.0, 90.0]))
    assert y.shape == (3, d)
    assert torch.isfinite(y).all()
    assert float((y[0] - y[2]).detach().abs().max()) > 1e-3


def test_invalid_sizes_and_periods_are_refused() -> None:
    constructors = (lambda: Functional(7), lambda: MultiScale(8), lambda: Time2Vec(1), lambda: Functional(8, 5.0, 1.0))
    for construct in constructors:
        with pytest.raises(SizeError):
            construct()
    with pytest.raises(SizeError, match="encoding is 'clock'"):
        make_time_encoding("clock", 8, 1.0, 2.0)
