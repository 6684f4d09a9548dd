"""SSM-GNN: sequence layers run along the bars of every asset, message passing runs between the assets of every bar.

The two halves are the state-space model (ssm: the sequence layers) and the graph network (gnn: the messages). They are
combined in one of three fusions (HYB-12 to HYB-14; ids: .github/sources.md). All are causal: no bar reads a later bar.
sequential   embedding → [layer over time] × n_layers → [messages] × hops → norm → heads
interleaved  embedding → [layer over time → messages] × n_layers → norm → heads; in the other order messages come first
parallel     embedding → [layer over time] × n_layers, and embedding → running mean → [messages] × hops;
             their outputs, concatenated → MLP → norm → heads
With ``parts`` "ssm" or "gnn" the network consists of that half alone, which measures its contribution (HYB-31 to
HYB-33). An asset without a bar sends no messages.

Departure: the source article takes the mean over the whole series, which would read the future; this network takes the
running mean.

Glossary: b chunks · l bars · n assets · d channels · A (b, l, n, n) adjacency at every bar, the weight of the edge from
j to i at [i, j].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from models.graphs.snapshot import Snapshot
from models.layers.checks import check_choice, check_positive
from models.layers.dropout import Dropout
from models.layers.errors import NotCausalError, ShapeError, SizeError, StateError
from models.layers.learned_edges import LearnedEdges
from models.layers.message_passing import ATTENTION_KINDS, MESSAGE_LAYERS, attend_in_chunks
from models.nets import sequence_layers
from models.nets.forecast import Batch, Embedding, Forecast, Heads
from models.nets.pretraining import PretrainingPhase, load_pretrained
from models.nets.sequence import Block, RunningMean, State
from models.nets.spec import Spec

LEARNED = "attention"  # name of the graph that the network learns
WEIGHT_DECIMALS = 6  # of stored learned weights, because ``step`` and ``forward`` differ in the last digits


@dataclass(frozen=True)
class Hybrid:
    """How the two halves are combined.

    ``layer``: a name in SEQUENCE_LAYERS. ``message_passing``: a name in MESSAGE_LAYERS. ``graph``: the name of the
    stored snapshots that the network reads, or LEARNED for edges that it computes from the assets' embeddings.
    ``top_k``: the number of heaviest learned edges to each asset that are used, None for all.
    ``fusion``: "sequential", "interleaved" or "parallel". ``order``: "ssm_gnn" or "gnn_ssm", of the interleaved fusion.
    ``parts``: "both", "ssm" or "gnn". ``heads``: number of attention heads. ``hops``: rounds of messages; the
    interleaved fusion ignores it and has one round for each layer.
    ``pooling``: what the messages contain if no sequence layer runs before them (the parallel fusion and "gnn" alone):
    "last" the bar, "mean" the mean of all bars so far. None is "mean" in the parallel fusion and "last" otherwise.
    ``pretrained``: the half that is first fitted by itself, "ssm" or "gnn". ``frozen``: True if its weights then stay
    fixed. Raises SizeError for unknown values and for options that contradict each other.
    """

    layer: str = "s4d"
    message_passing: str = "gat"
    graph: str | None = "correlation"
    fusion: str = "sequential"
    order: str = "ssm_gnn"
    parts: str = "both"
    heads: int = 2
    top_k: int | None = None
    hops: int = 1
    pooling: str | None = None
    pretrained: str | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        check_choice("message_passing", self.message_passing, MESSAGE_LAYERS)
        check_choice("fusion", self.fusion, ("sequential", "interleaved", "parallel"))
        check_choice("order", self.order, ("ssm_gnn", "gnn_ssm"))
        check_choice("parts", self.parts, ("both", "ssm", "gnn"))
        check_choice("pooling", self.pooling or "last", ("last", "mean"))
        check_choice("pretrained", self.pretrained or "ssm", ("ssm", "gnn"))
        check_positive(hops=self.hops)
        if self.learns_edges and self.message_passing == "sage":
            raise SizeError(
                "sage reads no edge weights, so it cannot learn any; choose gcn, gat or gatv2 for learned edges"
            )
        if self.frozen and self.pretrained is None:
            raise SizeError("frozen parts must have learned something; say which is pretrained, ssm or gnn")
        if self.pretrained and self.parts != "both":
            raise SizeError(f"parts is {self.parts!r}: there is no other part to fit after the pretrained one")

    @property
    def learns_edges(self) -> bool:
        """True if the network learns its graph."""
        return self.graph == LEARNED and self.parts != "ssm"

    @property
    def has_running_mean(self) -> bool:
        """True if the messages contain the mean of all bars so far."""
        if self.parts == "ssm" or (self.parts == "both" and self.fusion != "parallel"):
            return False
        return (self.pooling or ("mean" if self.fusion == "parallel" else "last")) == "mean"


class MessageBlock(nn.Module):
    """h + dropout(ELU(messages(norm(h)))), (b, l, n, d) → (b, l, n, d), between the assets of every bar."""

    edges: Any

    def __init__(self, d_model: int, dropout: float, hybrid: Hybrid) -> None:
        super().__init__()
        learns_edges = hybrid.learns_edges
        options: dict[str, Any] = {}
        if hybrid.message_passing in ATTENTION_KINDS:
            # a gain of 1 lets the loss change learned edge weights from the start; stored ones begin without effect
            options = {"heads": hybrid.heads, "gain": float(learns_edges)}
        if hybrid.message_passing == "gat":
            options["dense"] = learns_edges and hybrid.top_k is None
        self.norm = nn.LayerNorm(d_model)
        self.messages = MESSAGE_LAYERS[hybrid.message_passing](d_model, **options)
        self.edges = LearnedEdges(d_model, hybrid.heads, hybrid.top_k) if learns_edges else None
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor, adjacency_or_mask: Tensor, learned_adjacency: Tensor | None = None) -> Tensor:
        """The assets (b, l, n, d) after one round of messages.

        ``adjacency_or_mask``: A for stored edges, the mask (b, l, n) bool for learned edges. ``learned_adjacency``:
        (b, l, n, n) if the caller has already computed it.
        """
        x = self.norm(h).flatten(0, 1)
        flat_input = adjacency_or_mask.flatten(0, 1)
        if self.edges is None or learned_adjacency is not None:
            adjacency = flat_input if learned_adjacency is None else learned_adjacency.flatten(0, 1)
            messages = self.messages(x, adjacency)
        else:
            messages = attend_in_chunks(self._learned_messages, x, flat_input, self.edges.heads * x.shape[1] ** 2)
        return h + self.dropout(elu(messages.unflatten(0, h.shape[:2])))

    def learned_adjacency(self, h: Tensor, mask: Tensor) -> Tensor:
        """The learned adjacency at every bar (b, l, n, n), from the assets h (b, l, n, d) and the mask (b, l, n)."""
        x = self.norm(h).flatten(0, 1)
        has_bar = mask.flatten(0, 1)
        return attend_in_chunks(self.edges, x, has_bar, self.edges.heads * x.shape[1] ** 2).unflatten(0, h.shape[:2])

    def _learned_messages(self, x: Tensor, has_bar: Tensor) -> Tensor:
        """The messages between the assets x over learned edges; ``has_bar``: False for an asset that sends none."""
        return self.messages(x, self.edges(x, has_bar))


class SsmGnn(nn.Module):
    """Batch → Forecast, by the halves and the fusion of ``hybrid``.

    In evaluation the forecast contains ``edges`` if the network learns its graph. ``options``: options of the layer
    and of Heads. State: first the part of the running mean, if there is one, then one part for each sequence layer.
    """

    blocks: Any
    exchanges: Any

    def __init__(self, spec: Spec, n_features: int, n_horizons: int, hybrid: Hybrid, **options: Any) -> None:
        super().__init__()
        check_positive(n_layers=spec.n_layers)
        layer_entry = sequence_layers.sequence_layer(hybrid.layer)
        make_layer = layer_entry.layer_factory(spec, options)
        n_blocks = 0 if hybrid.parts == "gnn" else spec.n_layers
        n_exchanges = spec.n_layers if hybrid.fusion == "interleaved" else hybrid.hops
        if hybrid.parts == "ssm":
            n_exchanges = 0
        d = spec.d_model
        self.hybrid = hybrid
        self.embedding = Embedding(n_features, d)
        self.blocks = nn.ModuleList(Block(make_layer(), d, spec.dropout, layer_entry.adds_glu) for _ in range(n_blocks))
        self.exchanges = nn.ModuleList(MessageBlock(d, spec.dropout, hybrid) for _ in range(n_exchanges))
        self.pool = RunningMean() if hybrid.has_running_mean else None
        is_parallel = hybrid.fusion == "parallel" and hybrid.parts == "both"
        self.join = nn.Sequential(nn.Linear(2 * d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)) if is_parallel else None
        self.norm = nn.LayerNorm(d)
        self.heads = Heads(d, n_horizons, **options)
        if not all(getattr(block.layer, "causal", True) for block in self.blocks):
            raise NotCausalError("this network would read bars that are still to come; leave bidirectional out")
        if hybrid.frozen and hybrid.pretrained:
            for module in self.modules_of_half(hybrid.pretrained).values():
                module.requires_grad_(False)

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar."""
        mean_state = () if self.pool is None else (self.pool.initial_state(b * n, self.norm.weight),)
        return *mean_state, *(block.layer.initial_state(b * n) for block in self.blocks)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar. Raises ShapeError for a batch without the graph that the network reads."""

        def run_all_bars(module: nn.Module, h: Tensor) -> Tensor:
            b, n_bars, n, d = h.shape
            y = module(h.transpose(1, 2).reshape(b * n, n_bars, d))
            if isinstance(module, Block):
                y, _ = y
            return y.reshape(b, n, n_bars, d).transpose(1, 2)

        return self._run(batch, run_all_bars)

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it.

        Raises StateError for a state with another number of parts, and the errors of ``forward``.
        """
        n_parts = len(self.blocks) + (self.pool is not None)
        if len(state) != n_parts:
            raise StateError(f"the state has {len(state)} parts, this network {n_parts}; use its own initial_state")
        module_states = iter(state)
        next_state = []

        def run_one_bar(module: Any, h: Tensor) -> Tensor:
            step = module if isinstance(module, Block) else module.step
            y, module_state = step(h.flatten(0, 2), next(module_states))
            next_state.append(module_state)
            return y.reshape(h.shape)

        return self._run(batch, run_one_bar), tuple(next_state)

    @property
    def pretraining(self) -> PretrainingPhase | None:
        """How the pretrained half is fitted by itself; None for a network without pretraining."""
        if self.hybrid.pretrained is None:
            return None
        return PretrainingPhase({"parts": self.hybrid.pretrained, "pretrained": None, "frozen": False})

    def modules_of_half(self, half: str) -> dict[str, nn.Module]:
        """The modules of the half "ssm" or "gnn" by name; the embedding belongs to both halves."""
        if half == "ssm":
            return {"embedding": self.embedding, "blocks": self.blocks}
        return {"embedding": self.embedding, "exchanges": self.exchanges}

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Loads the pretrained half from the state dict of a network of that half alone, or of the sequence network
        with the same layer. Raises StateError if the weights do not fit this half."""
        half = self.hybrid.pretrained
        assert half is not None
        half_weights = {name.removeprefix("encoder."): value for name, value in weights.items()}
        load_pretrained(self.modules_of_half(half), half_weights, half)

    def _run(self, batch: Batch, over_time: Callable[[nn.Module, Tensor], Tensor]) -> Forecast:
        """The forecast of every bar; ``over_time(module, h)`` runs a module along the bars of every asset."""
        x = self.embedding(batch)
        adjacency_or_mask = self._adjacency_or_mask(batch) if self.exchanges else None
        h = x if self.pool is None else over_time(self.pool, x)
        edges = None
        for stage in self._stages():
            if not isinstance(stage, MessageBlock):
                h = over_time(stage, h)
                continue
            if self.hybrid.learns_edges and not self.training and stage is self.exchanges[-1]:
                edges = stage.learned_adjacency(h, batch.mask)
            h = stage(h, adjacency_or_mask, edges)
        if self.join is not None:
            for block in self.blocks:
                x = over_time(block, x)
            h = self.join(torch.cat([x, h], dim=-1))
        return replace(self.heads(self.norm(h), batch.mask), edges=edges)

    def _stages(self) -> list[nn.Module]:
        """The modules in the order in which they run; in the parallel fusion, the message blocks alone."""
        if self.join is not None:
            return [*self.exchanges]
        if self.hybrid.fusion == "sequential" or self.hybrid.parts != "both":
            return [*self.blocks, *self.exchanges]
        if self.hybrid.order == "ssm_gnn":
            stage_pairs = zip(self.blocks, self.exchanges, strict=True)
        else:
            stage_pairs = zip(self.exchanges, self.blocks, strict=True)
        return list(chain.from_iterable(stage_pairs))

    def _adjacency_or_mask(self, batch: Batch) -> Tensor:
        """The graph input of the message blocks: A for stored edges, the mask (b, l, n) for learned edges.

        Raises ShapeError for a batch without a graph.
        """
        if self.hybrid.learns_edges:
            return batch.mask
        if batch.graph is None:
            raise ShapeError(f"this network reads the {self.hybrid.graph} graph of its bars; the batch has none")
        return batch.graph.at_bars(batch.mask)


def build_ssm_gnn(spec: Spec, n_features: int, n_horizons: int, **options: Any) -> SsmGnn:
    """The network of ``spec``.

    ``options``: fields of Hybrid, options of the layer and options of Heads. Raises SizeError, NotCausalError, and
    TypeError for an option that none of the three has.
    """
    hybrid_options = {f.name: options.pop(f.name) for f in fields(Hybrid) if f.name in options}
    return SsmGnn(spec, n_features, n_horizons, Hybrid(**hybrid_options), **options)


def learned_snapshot(name: str, adjacency: np.ndarray, as_of: np.datetime64, nodes: tuple[str, ...]) -> Snapshot:
    """The directed snapshot of a learned adjacency (n, n) of the assets ``nodes``, in effect from ``as_of``.

    Weights are rounded to WEIGHT_DECIMALS; weights that become 0, and self loops, are dropped. Edges are
    sorted by source, then by destination. ``window_start`` is NaT, because no window of bars defines the graph.
    """
    edge_weights = np.round(adjacency, WEIGHT_DECIMALS) * ~np.eye(len(nodes), dtype=bool)
    dst, src = np.nonzero(edge_weights)
    order = np.lexsort((dst, src))
    src = src[order]
    dst = dst[order]
    return Snapshot(name, as_of, np.datetime64("NaT", "us"), src, dst, edge_weights[dst, src], nodes, directed=True)
