"""The windowed Transformer layer equals its defining sum (S4-48; ids: .github/sources.md)."""

import pytest
import torch
from torch.nn.functional import gelu

from models.layers import attention
from models.layers.attention import Attention, State
from models.layers.errors import DtypeError, ShapeError, SizeError, StateError

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
D_MODEL = 8


def make_layer(dtype: torch.dtype = torch.float32, **sizes: int) -> Attention:
    """A layer of D_MODEL channels with random biases; 2 heads and a window of 7 bars, unless ``sizes`` changes them."""
    torch.manual_seed(0)
    layer = Attention(D_MODEL, **({"heads": 2, "window": 7} | sizes)).to(dtype)
    torch.nn.init.normal_(layer.bias)
    return layer


def run_definition(layer: Attention, x: torch.Tensor) -> torch.Tensor:
    """The layer's output, computed one query, one head and one sequence at a time."""
    batch, length, d = x.shape
    c = d // layer.heads
    query, key, value = layer.qkv(x).chunk(3, dim=-1)
    attended = torch.zeros_like(x)
    for b in range(batch):
        for head in range(layer.heads):
            channels = slice(head * c, (head + 1) * c)
            for t in range(length):
                window_bars = range(max(0, t - layer.window + 1), t + 1)
                scores = [
                    query[b, t, channels] @ key[b, s, channels] / c**0.5 + layer.bias[head, t - s] for s in window_bars
                ]
                weights = torch.softmax(torch.stack(scores), dim=0)
                attended[b, t, channels] = sum(
                    w * value[b, s, channels] for w, s in zip(weights, window_bars, strict=True)
                )
    u = layer.out_proj(attended)
    return u + layer.narrow(gelu(layer.widen(layer.norm(x + u))))


def run_by_step(layer: Attention, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    """y (b, l, d) and the last state, from one call of ``step`` per bar."""
    outputs = []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Asserts that no error exceeds TOLERANCE, times the largest absolute expected value if that exceeds 1."""
    tolerance = TOLERANCE[actual.dtype] * max([1.0, *expected.detach().abs().flatten().tolist()])
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [1, 2, 7, 50])
@pytest.mark.parametrize("block_bars", [4, 64])
def test_blocks_equal_the_definition(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, window: int, block_bars: int
) -> None:
    monkeypatch.setattr(attention, "BLOCK_BARS", block_bars)
    layer = make_layer(dtype, window=window)
    x = torch.randn(2, 18, 8, dtype=dtype)
    with torch.no_grad():
        assert_near(layer(x)[0], run_definition(layer, x))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [1, 7, 50])
def test_one_step_per_bar_equals_one_call_of_forward(dtype: torch.dtype, window: int) -> None:
    layer = make_layer(dtype, window=window)
    x = torch.randn(2, 30, 8, dtype=dtype)
    whole, last = layer(x)
    stepwise, last_of_steps = run_by_step(layer, x, layer.initial_state(2))
    for actual, expected in zip((stepwise, *last_of_steps), (whole, *last), strict=True):
        assert_near(actual, expected)
    _, _, n_real = last_of_steps
    assert n_real.tolist() == [min(30, window - 1)] * 2


def test_two_calls_joined_by_the_state_equal_one_call() -> None:
    layer = make_layer()
    x = torch.randn(2, 90, 8)
    whole, last = layer(x)
    for n_first_bars in (1, 3, 65, 89):
        first, state = layer(x[:, :n_first_bars])
        second, after = layer(x[:, n_first_bars:], state)
        for actual, expected in zip((torch.cat([first, second], dim=1), *after), (whole, *last), strict=True):
            assert_near(actual, expected)


def test_sequences_with_histories_of_different_length_share_a_batch() -> None:
    layer = make_layer()
    x = torch.randn(1, 12, 8)
    _, after_six_bars = layer(x[:, :6])
    _, after_two_bars = layer(x[:, 4:6])
    states = [after_six_bars, after_two_bars, layer.initial_state(1)]
    joined_state = tuple(torch.cat(tensors) for tensors in zip(*states, strict=True))
    y, _ = layer(x[:, 6:].expand(3, -1, -1), joined_state)
    for sequence, start in enumerate((0, 4, 6)):
        expected, _ = layer(x[:, start:])
        assert_near(y[sequence : sequence + 1], expected[:, 6 - start :])


def test_an_output_depends_only_on_the_bars_in_its_window_and_their_distances() -> None:
    layer = make_layer()
    x = torch.randn(1, 40, 8)
    last_outputs = layer(x)[0][:, 30:]  # with a window of 7, the output of bar 30 depends on bars 24 … 30
    assert_near(layer(x[:, 24:])[0][:, 6:], last_outputs)
    changed = x.clone()
    changed[:, :24] = 9.0
    assert torch.equal(layer(changed)[0][:, 30:], last_outputs)
    changed[:, 24] = 9.0
    assert not torch.equal(layer(changed)[0][:, 30:], last_outputs)


def test_later_bars_leave_earlier_outputs_bit_identical() -> None:
    layer = make_layer()
    x = torch.randn(3, 150, 8)
    changed = x.clone()
    changed[:, 85:] = 50.0
    assert torch.equal(layer(x)[0][:, :85], layer(changed)[0][:, :85])
    assert not torch.equal(layer(x)[0][:, 85:], layer(changed)[0][:, 85:])
    torch.testing.assert_close(layer(x[:, :85])[0], layer(x)[0][:, :85])


def test_every_parameter_learns_and_gradients_equal_finite_differences() -> None:
    layer = make_layer(torch.float64, window=3, expand=1)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)

    def output(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(output, (x, *values))
    layer(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in values)


def test_invalid_input_is_refused() -> None:
    layer = make_layer()
    x = torch.randn(2, 5, 8)
    for misshapen in (x[:, :0], x[..., :4], x[:, 0]):
        with pytest.raises(ShapeError):
            layer(misshapen)
    with pytest.raises(DtypeError):
        layer(x.int())
    for call in (lambda: layer(x, layer.initial_state(3)), lambda: layer.step(x[:, 0], layer.initial_state(2)[:2])):
        with pytest.raises(StateError):
            call()
    for sizes in ({"heads": 3}, {"window": 0}, {"heads": 0}):
        with pytest.raises(SizeError):
            Attention(8, **sizes)
