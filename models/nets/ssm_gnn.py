"""SSM-GNN: a state-space encoder per asset, then graph attention between the assets at every bar.

Sequential fusion (inventory HYB-12, HYB-15): S4D encoder → graph attention over the snapshot in force → heads. The
encoder carries time, the graph carries the cross-section, so a bar's forecast needs the other assets' states at that
bar only. Glossary: b chunks · l bars · n assets · d channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import elu

from models.layers.dropout import Dropout
from models.layers.message_passing import GraphAttention
from models.layers.s4d import S4D
from models.nets.forecast import Batch, Forecast, Heads
from models.nets.sequence import Encoder, State
from models.nets.spec import Spec


class SsmGnn(nn.Module):
    """Batch with a graph → Forecast; without one every asset hears only itself. Options: heads, and those of S4D."""

    def __init__(self, spec: Spec, n_features: int, n_horizons: int, heads: int = 2, **options: Any) -> None:
        super().__init__()
        self.encoder = Encoder(spec, n_features, lambda: S4D(spec.d_model, spec.d_state, **options), gated=True)
        self.attention = GraphAttention(spec.d_model, heads)
        self.dropout = Dropout(spec.dropout)
        self.norm = nn.LayerNorm(spec.d_model)
        self.heads = Heads(spec.d_model, n_horizons)

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar."""
        return self.encoder.initial_state(b, n)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar."""
        return self._exchange(self.encoder(batch), batch)

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it."""
        h, state = self.encoder.step(batch, state)
        return self._exchange(h, batch), state

    def _exchange(self, h: Tensor, batch: Batch) -> Forecast:
        """The heads' forecast after one round of messages between the assets of each bar."""
        if batch.graph is None:
            raise ValueError("the ssm_gnn network needs the graph snapshots of its bars; the batch has none")
        adjacency = batch.graph.at_bars(batch.mask)
        messages = self.attention(h.flatten(0, 1), adjacency.flatten(0, 1)).unflatten(0, h.shape[:2])
        return self.heads(self.norm(h + self.dropout(elu(messages))), batch.mask)
