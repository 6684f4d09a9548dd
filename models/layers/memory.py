"""What every node remembers of its events: flat tensors, and how events change them.

Paper: Rossi et al. 2020, 2006.10637, section 3.1 (message function, aggregator, memory updater).
Glossary: n nodes · w numbers a node remembers · r ends of events, two an event, sorted by node and time · g nodes with
an end among them · m numbers of a message · s memory · λ decay · φ time encoding.
Departs from the paper: a memory fades by exp(−λΔt) before it is read (inventory TGN-13); of simultaneous newest
messages the "last" aggregator takes the mean, so that their order does not matter.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.layers.checks import check_choice
from models.layers.kernels.gru_cpu import Gated
from models.layers.neighbours import Groups

AGGREGATORS = ("last", "mean", "sum", "attention", "lstm")
UPDATERS = ("gru", "lstm", "rnn", "attention", "decay")


class Memory(NamedTuple):
    """``vector`` (n, w); ``updated`` (n,) float64, time of the last event; ``event_count`` (n,) int64, events so far;
    ``decay`` (n,), by how much faster than the others a node forgets."""

    vector: Tensor
    updated: Tensor
    event_count: Tensor
    decay: Tensor


def empty_memory(n: int, w: int, like: Tensor) -> Memory:
    """Nothing has happened yet, and all nodes forget alike."""
    event_count = torch.zeros(n, dtype=torch.int64, device=like.device)
    return Memory(like.new_zeros(n, w), like.new_zeros(n, dtype=torch.float64), event_count, like.new_ones(n))


class Fading(nn.Module):
    """s exp(−λΔt): what is left of the vectors of ``nodes`` (m,) at the times ``t`` (m,), (m, w); λ = decay · rate.

    ``half_life``: in the unit of t, where the rate, which is learned, starts.
    """

    def __init__(self, half_life: float) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor([math.log(2) / half_life]).log())

    def forward(self, memory: Memory, nodes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The faded vectors, and Δt (m,) float32 since each node's last event."""
        left, elapsed = self.decay_factor(memory, nodes, t)
        return memory.vector.index_select(0, nodes) * left[:, None], elapsed

    def decay_factor(self, memory: Memory, nodes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """exp(−λΔt) (m,) and Δt."""
        elapsed = (t - memory.updated.index_select(0, nodes)).clamp(min=0).float()
        rate = memory.decay.index_select(0, nodes) * self.log_rate.exp()
        return torch.exp(-rate * elapsed), elapsed


class Identity(nn.Module):
    """The message is what there is to say: [s_node, s_other, φ(Δt), e], (r, m) → (r, m)."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.out_features = m

    def forward(self, said: Tensor, sent: Tensor) -> Tensor:
        """``said`` itself."""
        return said


class Mlp(nn.Module):
    """Two layers that squeeze what there is to say, one pair for an event's source, one for its destination."""

    def __init__(self, m: int, out: int) -> None:
        super().__init__()
        self.out_features = out
        self.ends = nn.ModuleList(nn.Sequential(nn.Linear(m, out), nn.ReLU(), nn.Linear(out, out)) for _ in range(2))

    def forward(self, said: Tensor, sent: Tensor) -> Tensor:
        """The messages (r, out); ``sent`` (r,) is True where the node is the event's source."""
        source, destination = (end(said) for end in self.ends)
        return torch.where(sent[:, None], source, destination)


class Mean(nn.Module):
    """The mean of each node's messages, (r, m) → (g, m); of all, or with ``divide`` False their sum."""

    def __init__(self, divide: bool = True) -> None:
        super().__init__()
        self.divide = divide

    def forward(self, messages: Tensor, groups: Groups) -> Tensor:
        """One message a group."""
        if len(messages) == len(groups.node):
            return messages
        total = messages.new_zeros(len(groups.node), messages.shape[1]).index_add(0, groups.of, messages)
        return total / groups.size[:, None] if self.divide else total


class AttentionOverMessages(nn.Module):
    """Σ αᵢ mᵢ with α = softmax(a · mᵢ / √m) over each node's messages, (r, m) → (g, m); a is learned."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.randn(m) / m**0.5)

    def forward(self, messages: Tensor, groups: Groups) -> Tensor:
        """One message a group."""
        scores = padded((messages @ self.score)[:, None], groups, -torch.inf)[..., 0]
        return (torch.softmax(scores, dim=1)[:, None] @ padded(messages, groups))[:, 0]


class LstmOverMessages(nn.Module):
    """What an LSTM says after each node's messages in the order of time, (r, m) → (g, m)."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(m, m, batch_first=True)

    def forward(self, messages: Tensor, groups: Groups) -> Tensor:
        """One message a group."""
        every, _ = self.lstm(padded(messages, groups))
        last = (groups.size - 1)[:, None, None].expand(-1, 1, every.shape[2])
        return every.gather(1, last)[:, 0]


class Gru(nn.Module):
    """s ← GRU(message, s); the message may come in pieces that stand side by side."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.cell, self.width = nn.GRUCell(m, d), d

    def forward(self, message: Tensor | tuple[Tensor, ...], s: Tensor, kept: Tensor) -> Tensor:
        """The new memory (g, w)."""
        cell, pieces = self.cell, message if isinstance(message, tuple) else (message,)
        if s.device.type == "cpu" and s.dtype == torch.float32:
            return Gated.apply(s, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, *pieces)
        return cell(torch.cat(pieces, dim=1), s)


class Rnn(nn.Module):
    """s ← tanh(W message + U s + b), as in JODIE and DyRep."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.cell, self.width = nn.RNNCell(m, d), d

    def forward(self, message: Tensor, s: Tensor, kept: Tensor) -> Tensor:
        """The new memory (g, w)."""
        return self.cell(message, s)


class Lstm(nn.Module):
    """[h, c] ← LSTM(message, [h, c]); others read h, the first half of the memory."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.cell, self.width = nn.LSTMCell(m, d), 2 * d

    def forward(self, message: Tensor, s: Tensor, kept: Tensor) -> Tensor:
        """The new memory (g, 2d)."""
        h, c = s.chunk(2, dim=1)
        return torch.cat(self.cell(message, (h.contiguous(), c.contiguous())), dim=1)


class AttentionUpdate(nn.Module):
    """s ← s + V · softmax attention of s over itself and the message (inventory TGN-11), normed."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.lift, self.query = nn.Linear(m, d), nn.Linear(d, d)
        self.key, self.value = nn.Linear(d, d, bias=False), nn.Linear(d, d)
        self.norm, self.width = nn.LayerNorm(d), d

    def forward(self, message: Tensor, s: Tensor, kept: Tensor) -> Tensor:
        """The new memory (g, d)."""
        seen = torch.stack([s, self.lift(message)], dim=1)
        scores = (self.key(seen) @ self.query(s)[..., None])[..., 0] / s.shape[1] ** 0.5
        return self.norm(s + (torch.softmax(scores, dim=1)[:, None] @ self.value(seen))[:, 0])


class DecayUpdate(nn.Module):
    """s ← s + (1 − kept) tanh(W message): what has faded since the last event makes room (inventory TGN-12)."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.lift, self.width = nn.Linear(m, d), d

    def forward(self, message: Tensor, s: Tensor, kept: Tensor) -> Tensor:
        """The new memory (g, d); ``s`` has faded by ``kept`` (g,) already."""
        return s + (1 - kept)[:, None] * torch.tanh(self.lift(message))


def aggregator(name: str, m: int) -> nn.Module:
    """The aggregator of that name for messages of m numbers; "last" is handed the newest only. Raises SizeError."""
    check_choice("aggregator", name, AGGREGATORS)
    if name in ("attention", "lstm"):
        return {"attention": AttentionOverMessages, "lstm": LstmOverMessages}[name](m)
    return Mean(divide=name != "sum")


def updater(name: str, m: int, d: int) -> Any:
    """The updater of that name from messages of m numbers to a memory that others read d numbers of. SizeError."""
    check_choice("updater", name, UPDATERS)
    made = {"gru": Gru, "lstm": Lstm, "rnn": Rnn, "attention": AttentionUpdate, "decay": DecayUpdate}
    return made[name](m, d)


def padded(rows: Tensor, groups: Groups, fill: float = 0.0) -> Tensor:
    """(r, m) → (g, c, m), each group's rows in order and ``fill`` after them; c is the largest group's size."""
    most = int(groups.size.max()) if len(groups.size) else 0
    out = rows.new_full((len(groups.size) * most, rows.shape[1]), fill)
    return out.index_copy(0, groups.of * most + groups.place, rows).view(-1, most, rows.shape[1])
