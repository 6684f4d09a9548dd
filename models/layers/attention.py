"""A Transformer layer that attends to a fixed window of past bars, so that its state has a fixed size.

Papers: Vaswani et al. 2017, 1706.03762 (section 3); a bias for every distance as in Raffel et al. 2020, 1910.10683
(section 2.1), starting from the slopes of Press et al. 2022, 2108.12409 (section 3).

Glossary: b sequences · l bars · d channels · a heads of c = d / a channels · w = window bars, with the current one ·
q = BLOCK_BARS queries that one block computes from their q + w − 1 keys · bias (a, w) of a key's distance.

    u = W_o · softmax_s(Q_t K_s / √c + bias[t − s]) V_s over t − w < s ≤ t        y = u + FF(norm(x + u))

State: the last w − 1 keys and values (b, w − 1, d), the newest last, and how many of them are real bars (b,).

Departs from the paper: the block around the layer normalises x and adds the first residual (pre-norm), so the
feed-forward part receives the normalised bar. Positions enter as distances only: the output does not depend on how long
the layer has run. Bars outside the window have a weight of exactly zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from models.layers.checks import check_bar, check_positive, check_sequence, check_state
from models.layers.errors import SizeError

BLOCK_BARS = 64
State = tuple[Tensor, ...]


class Attention(nn.Module):
    """(b, l, d) → (b, l, d). ``heads`` must divide d_model, by default 4, 2 or 1; feed-forward width ``expand`` · d."""

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
        """The state before the first bar: no keys."""
        empty = self.bias.new_zeros(batch, self.window - 1, self.d_model)
        return empty, empty, self.bias.new_zeros(batch)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, StateError."""
        check_sequence(x, self.d_model, weights=self.qkv.weight)
        batch, length, _ = x.shape
        state = self.initial_state(batch) if state is None else state
        check_state(state, self._shapes(batch))
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        keys, values = (torch.cat([old.to(x.dtype), new], dim=1) for old, new in zip(state, (key, value), strict=False))
        u = self.out_proj(self._attend(query, keys, values, state[2], 1 if length == 1 else BLOCK_BARS))
        y = u + self.narrow(gelu(self.widen(self.norm(x + u))))
        count = (state[2] + length).clamp(max=self.window - 1)
        return y, (keys[:, length:].to(state[0].dtype), values[:, length:].to(state[1].dtype), count)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it. Raises as forward."""
        check_bar(x, self.d_model, weights=self.qkv.weight)
        check_state(state, self._shapes(len(x)))
        y, state = self.forward(x[:, None], state)
        return y[:, 0], state

    def _shapes(self, batch: int) -> list[tuple[int, ...]]:
        cache = (batch, self.window - 1, self.d_model)
        return [cache, cache, (batch,)]

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, count: Tensor, q: int) -> Tensor:
        """The attention output (b, l, d) of every query (b, l, d) over keys and values (b, w − 1 + l, d).

        ``count`` (b,): how many of the first w − 1 keys are real bars; ``q``: queries of one block.
        """
        length = query.shape[1]
        heads = self.heads
        padding = -length % q
        span = q + self.window - 1
        query = pad(query, (0, 0, 0, padding)).unflatten(1, (-1, q)).unflatten(3, (heads, -1)).transpose(2, 3)
        keys, values = (  # (b, blocks, a, c, span)
            pad(v, (0, 0, 0, padding)).unfold(1, span, q).unflatten(2, (heads, -1)) for v in (keys, values)
        )
        first = torch.arange(0, length, q, device=query.device)[:, None] + torch.arange(span, device=query.device)
        absent = first < (self.window - 1 - count)[:, None, None]  # (b, blocks, span)
        scores = torch.matmul(query * query.shape[-1] ** -0.5, keys) + self._bias(q).to(query.dtype)
        weights = torch.softmax(scores.masked_fill(absent[:, :, None, None], -torch.inf), dim=-1)
        attended = torch.matmul(weights, values.transpose(3, 4))  # (b, blocks, a, q, c)
        return attended.transpose(2, 3).flatten(3).flatten(1, 2)[:, :length]

    def _bias(self, q: int) -> Tensor:
        """(a, q, q + w − 1): the bias of every key's distance, −∞ before the window and after the query."""
        query = torch.arange(q, device=self.bias.device)[:, None] + self.window - 1
        distance = query - torch.arange(q + self.window - 1, device=self.bias.device)
        inside = (distance >= 0) & (distance < self.window)
        return torch.where(inside, self.bias[:, distance.clamp(0, self.window - 1)], -torch.inf)
