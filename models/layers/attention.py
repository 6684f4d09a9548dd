"""A Transformer layer that attends to a fixed window of past bars, so that its state has a fixed size.

Papers: Vaswani et al. 2017, 1706.03762 (section 3). Raffel et al. 2020, 1910.10683 (section 2.1) for one learned bias
per head and distance. Press et al. 2022, 2108.12409 (section 3) for the initial values of the bias.

Glossary: b sequences · l bars · d channels · a heads of c = d / a channels each · w = window, the number of bars that a
query attends to, including its own bar · q queries per block, which attend to q + w − 1 keys · t bar of the query ·
s bar of the key · bias (a, w), indexed by the distance t − s.

    u_t = W_o · Σ_s softmax_s(Q_t · K_s / √c + bias[t − s]) V_s over t − w < s ≤ t        y = u + FF(norm(x + u))

State: the last w − 1 keys (b, w − 1, d), the last w − 1 values (b, w − 1, d), and the number of them that belong to
real bars (b,), as a float. The newest bar is last; unused entries are zeros at the front.

Departs from the paper: the network block around this layer normalises x and adds the first residual (pre-norm), so
the feed-forward part receives the normalised bar. The position of a bar enters only as its distance from the query, so
the output does not depend on how many bars the layer has processed before. Bars outside the window have a weight of
exactly zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from models.layers.checks import check_bar, check_positive, check_sequence, check_state
from models.layers.errors import SizeError

BLOCK_BARS = 64  # queries per block of a whole sequence
State = tuple[Tensor, ...]


class Attention(nn.Module):
    """(b, l, d) → (b, l, d).

    ``heads`` must divide d_model; the default is the largest of 4, 2 and 1 that does. ``window`` is in bars and
    includes the current one. The feed-forward part has ``expand`` · d channels. Raises SizeError.
    """

    def __init__(self, d_model: int, heads: int | None = None, window: int = 128, expand: int = 4) -> None:
        super().__init__()
        self.d_model = d_model
        self.window = window
        self.heads = math.gcd(d_model, 4) if heads is None else heads
        check_positive(d_model=d_model, heads=self.heads, window=window, expand=expand)
        if d_model % self.heads:
            raise SizeError(f"d_model {d_model} does not split into {self.heads} heads; choose heads that divide it")
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model)
        slopes = 2.0 ** (-8 * torch.arange(1, self.heads + 1) / self.heads)
        self.bias = nn.Parameter(-slopes[:, None] * torch.arange(window))
        self.norm = nn.LayerNorm(d_model)
        self.widen = nn.Linear(d_model, expand * d_model)
        self.narrow = nn.Linear(expand * d_model, d_model)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.bias]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros, with 0 real bars."""
        empty = self.bias.new_zeros(batch, self.window - 1, self.d_model)
        return empty, empty, self.bias.new_zeros(batch)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, StateError."""
        check_sequence(x, self.d_model, weights=self.qkv.weight)
        batch, length, _ = x.shape
        state = self.initial_state(batch) if state is None else state
        check_state(state, self._state_shapes(batch))
        old_keys, old_values, n_old = state
        query, new_keys, new_values = self.qkv(x).chunk(3, dim=-1)
        keys = torch.cat([old_keys.to(x.dtype), new_keys], dim=1)
        values = torch.cat([old_values.to(x.dtype), new_values], dim=1)
        u = self.out_proj(self._attend(query, keys, values, n_old, 1 if length == 1 else BLOCK_BARS))
        y = u + self.narrow(gelu(self.widen(self.norm(x + u))))
        n_real = (n_old + length).clamp(max=self.window - 1)
        return y, (keys[:, length:].to(old_keys.dtype), values[:, length:].to(old_values.dtype), n_real)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it. Raises as forward."""
        check_bar(x, self.d_model, weights=self.qkv.weight)
        check_state(state, self._state_shapes(len(x)))
        y, state = self.forward(x[:, None], state)
        return y[:, 0], state

    def _state_shapes(self, batch: int) -> list[tuple[int, ...]]:
        keys_or_values = (batch, self.window - 1, self.d_model)
        return [keys_or_values, keys_or_values, (batch,)]

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, n_old: Tensor, q: int) -> Tensor:
        """The attention output (b, l, d) of every query (b, l, d) over keys and values (b, w − 1 + l, d).

        ``n_old`` (b,): the number of the first w − 1 keys that belong to real bars; ``q``: queries per block.
        """
        length = query.shape[1]
        n_heads = self.heads
        n_padding = -length % q
        n_block_keys = q + self.window - 1
        query = pad(query, (0, 0, 0, n_padding)).unflatten(1, (-1, q)).unflatten(3, (n_heads, -1)).transpose(2, 3)
        keys, values = (  # (b, blocks, a, c, n_block_keys)
            pad(v, (0, 0, 0, n_padding)).unfold(1, n_block_keys, q).unflatten(2, (n_heads, -1)) for v in (keys, values)
        )
        first_keys = torch.arange(0, length, q, device=query.device)
        key_positions = first_keys[:, None] + torch.arange(n_block_keys, device=query.device)
        is_unused = key_positions < (self.window - 1 - n_old)[:, None, None]  # (b, blocks, n_block_keys)
        scores = torch.matmul(query * query.shape[-1] ** -0.5, keys) + self._block_bias(q).to(query.dtype)
        weights = torch.softmax(scores.masked_fill(is_unused[:, :, None, None], -torch.inf), dim=-1)
        attended = torch.matmul(weights, values.transpose(3, 4))  # (b, blocks, a, q, c)
        return attended.transpose(2, 3).flatten(3).flatten(1, 2)[:, :length]

    def _block_bias(self, q: int) -> Tensor:
        """The bias (a, q, q + w − 1) of every query and key of a block; −∞ for a key outside the query's window."""
        query_positions = torch.arange(q, device=self.bias.device)[:, None] + self.window - 1
        distance = query_positions - torch.arange(q + self.window - 1, device=self.bias.device)
        is_in_window = (distance >= 0) & (distance < self.window)
        return torch.where(is_in_window, self.bias[:, distance.clamp(0, self.window - 1)], -torch.inf)
