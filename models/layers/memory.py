"""The memory of every node as flat tensors, and the modules that update it from events.

An event joins two nodes, its source and its destination; each event gives one message to each of the two nodes.

Paper: Rossi et al. 2020, 2006.10637, section 3.1 (message function, aggregator, memory updater).

Glossary: n nodes · w width of a memory · d numbers of a memory that embeddings read, w or w / 2 · r ends of events, one
for each of its two nodes, sorted by node and time · g nodes with an end among the r · m width of a message · s memory
vector · e features of an event · λ decay rate · φ time encoding · Δt time since the node's last event.

Departs from the paper: a memory decays by exp(−λΔt) before it is read (TGN-13); the "last" aggregator takes the mean of
simultaneous newest messages, so that their order does not matter.

Ids such as TGN-13: .github/sources.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.layers.checks import check_choice
from models.layers.kernels.gru_cpu import GRUCell
from models.layers.neighbours import Groups

AGGREGATORS = ("last", "mean", "sum", "attention", "lstm")
UPDATERS = ("gru", "lstm", "rnn", "attention", "decay")


class Memory(NamedTuple):
    """The memory of n nodes. ``vector`` (n, w); ``updated`` (n,) float64, time of the node's last event, 0 before its
    first; ``event_count`` (n,) int64, events so far; ``decay`` (n,), the node's factor in λ = decay · rate."""

    vector: Tensor
    updated: Tensor
    event_count: Tensor
    decay: Tensor


def empty_memory(n: int, w: int, like: Tensor) -> Memory:
    """The memory of n nodes before any event: zeros, with decay 1; ``like`` gives dtype and device."""
    event_count = torch.zeros(n, dtype=torch.int64, device=like.device)
    return Memory(like.new_zeros(n, w), like.new_zeros(n, dtype=torch.float64), event_count, like.new_ones(n))


class Fading(nn.Module):
    """s exp(−λΔt): the decayed memory vectors (m, w) of ``nodes`` (m,) at the times ``t`` (m,); λ = decay · rate.

    The rate is learned; its initial value is ln 2 / ``half_life``, with ``half_life`` in the unit of t.
    """

    def __init__(self, half_life: float) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor([math.log(2) / half_life]).log())

    def forward(self, memory: Memory, nodes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The decayed vectors, and Δt (m,) float32 since each node's last event."""
        factor, elapsed = self.decay_factor(memory, nodes, t)
        return memory.vector.index_select(0, nodes) * factor[:, None], elapsed

    def decay_factor(self, memory: Memory, nodes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """exp(−λΔt) (m,) and Δt (m,) float32; Δt is 0 where t is before the node's last event."""
        elapsed = (t - memory.updated.index_select(0, nodes)).clamp(min=0).float()
        rate = memory.decay.index_select(0, nodes) * self.log_rate.exp()
        return torch.exp(-rate * elapsed), elapsed


class Identity(nn.Module):
    """The message is its raw content [s_node, s_other, φ(Δt), e], (r, m) → (r, m)."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.out_features = m

    def forward(self, content: Tensor, is_source: Tensor) -> Tensor:
        """``content``, unchanged."""
        return content


class Mlp(nn.Module):
    """Two linear layers with a ReLU between them, (r, m) → (r, out), that compress the raw content (TGN-14).

    Source and destination of an event have layers of their own.
    """

    def __init__(self, m: int, out: int) -> None:
        super().__init__()
        self.out_features = out
        self.ends = nn.ModuleList(nn.Sequential(nn.Linear(m, out), nn.ReLU(), nn.Linear(out, out)) for _ in range(2))

    def forward(self, content: Tensor, is_source: Tensor) -> Tensor:
        """The messages (r, out); ``is_source`` (r,) is True where the node is the event's source."""
        source_layers, destination_layers = self.ends
        return torch.where(is_source[:, None], source_layers(content), destination_layers(content))


class Mean(nn.Module):
    """The mean of each node's messages, (r, m) → (g, m); with ``divide`` False their sum."""

    def __init__(self, divide: bool = True) -> None:
        super().__init__()
        self.divide = divide

    def forward(self, messages: Tensor, groups: Groups) -> Tensor:
        """One message for each group."""
        if len(messages) == len(groups.node):
            return messages
        total = messages.new_zeros(len(groups.node), messages.shape[1]).index_add(0, groups.group_index, messages)
        return total / groups.size[:, None] if self.divide else total


class AttentionOverMessages(nn.Module):
    """Σ αᵢ mᵢ with α = softmax(a · mᵢ / √m) over each node's messages, (r, m) → (g, m); a is learned."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.randn(m) / m**0.5)

    def forward(self, messages: Tensor, groups: Groups) -> Tensor:
        """One message for each group."""
        scores = pad_groups((messages @ self.score)[:, None], groups, -torch.inf)[..., 0]
        return (torch.softmax(scores, dim=1)[:, None] @ pad_groups(messages, groups))[:, 0]


class LstmOverMessages(nn.Module):
    """The last output of an LSTM over each node's messages, oldest first, (r, m) → (g, m)."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(m, m, batch_first=True)

    def forward(self, messages: Tensor, groups: Groups) -> Tensor:
        """One message for each group."""
        outputs, _ = self.lstm(pad_groups(messages, groups))
        last = (groups.size - 1)[:, None, None].expand(-1, 1, outputs.shape[2])
        return outputs.gather(1, last)[:, 0]


class Gru(nn.Module):
    """s ← GRU(message, s). A message may be a tuple of tensors, which are concatenated."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(m, d)
        self.width = d

    def forward(self, message: Tensor | tuple[Tensor, ...], s: Tensor, decay_factor: Tensor) -> Tensor:
        """The new memory (g, w)."""
        cell = self.cell
        pieces = message if isinstance(message, tuple) else (message,)
        if s.device.type == "cpu" and s.dtype == torch.float32:
            return GRUCell.apply(s, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, *pieces)
        return cell(torch.cat(pieces, dim=1), s)


class Rnn(nn.Module):
    """s ← tanh(W message + U s + b), as in JODIE and DyRep."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.cell = nn.RNNCell(m, d)
        self.width = d

    def forward(self, message: Tensor, s: Tensor, decay_factor: Tensor) -> Tensor:
        """The new memory (g, w)."""
        return self.cell(message, s)


class Lstm(nn.Module):
    """[h, c] ← LSTM(message, [h, c]); messages and embeddings read h, the first half of the memory."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(m, d)
        self.width = 2 * d

    def forward(self, message: Tensor, s: Tensor, decay_factor: Tensor) -> Tensor:
        """The new memory (g, 2d)."""
        h, c = s.chunk(2, dim=1)
        return torch.cat(self.cell(message, (h.contiguous(), c.contiguous())), dim=1)


class AttentionUpdate(nn.Module):
    """s ← LayerNorm(s + attention of s over s and the message) (TGN-11)."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.lift = nn.Linear(m, d)
        self.query = nn.Linear(d, d)
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        self.width = d

    def forward(self, message: Tensor, s: Tensor, decay_factor: Tensor) -> Tensor:
        """The new memory (g, d)."""
        inputs = torch.stack([s, self.lift(message)], dim=1)
        scores = (self.key(inputs) @ self.query(s)[..., None])[..., 0] / s.shape[1] ** 0.5
        return self.norm(s + (torch.softmax(scores, dim=1)[:, None] @ self.value(inputs))[:, 0])


class DecayUpdate(nn.Module):
    """s ← s + (1 − decay_factor) tanh(W message): the longer the pause, the larger the change (TGN-12)."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.lift = nn.Linear(m, d)
        self.width = d

    def forward(self, message: Tensor, s: Tensor, decay_factor: Tensor) -> Tensor:
        """The new memory (g, d). The caller has already multiplied ``s`` by ``decay_factor`` (g,)."""
        return s + (1 - decay_factor)[:, None] * torch.tanh(self.lift(message))


def make_aggregator(name: str, m: int) -> nn.Module:
    """The aggregator called ``name`` for messages (r, m). Raises SizeError for another name.

    "last" is a mean of the newest messages of every node: the caller passes only the newest messages.
    """
    check_choice("aggregator", name, AGGREGATORS)
    if name in ("attention", "lstm"):
        return {"attention": AttentionOverMessages, "lstm": LstmOverMessages}[name](m)
    return Mean(divide=name != "sum")


def make_updater(name: str, m: int, d: int) -> Any:
    """The updater called ``name`` for messages (g, m). Raises SizeError for another name.

    Embeddings read the first d numbers of the memory that the updater returns.
    """
    check_choice("updater", name, UPDATERS)
    updaters = {"gru": Gru, "lstm": Lstm, "rnn": Rnn, "attention": AttentionUpdate, "decay": DecayUpdate}
    return updaters[name](m, d)


def pad_groups(rows: Tensor, groups: Groups, fill: float = 0.0) -> Tensor:
    """(r, m) → (g, c, m): the rows of each group in their order, then ``fill``; c is the size of the largest group."""
    largest = int(groups.size.max()) if len(groups.size) else 0
    out = rows.new_full((len(groups.size) * largest, rows.shape[1]), fill)
    return out.index_copy(0, groups.group_index * largest + groups.position, rows).view(-1, largest, rows.shape[1])
