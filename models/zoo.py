"""All models by name: the one place to add a model.

A network is a builder ``(spec, n_features, n_horizons, **options) → Module``. The module's forward maps a Batch to a
Forecast; it is trained by gradient or, if it is an Estimator, fitted in one call. A rule is a function from bars to
weights. One line in ENTRIES registers either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from models.nets import baselines
from models.nets.boosting import GradientBoosting
from models.nets.garch import Garch
from models.nets.on_demand import OnDemand
from models.nets.ridge import Ridge
from models.nets.sequence_layers import sequence
from models.nets.spec import Spec
from models.nets.ssm_gnn import LEARNED, ssm_gnn
from models.nets.tgn import Tgn
from models.panel import Panel

__all__ = [
    *("RNG_LOCK", "ENTRIES", "Entry", "Network", "TradingRule", "Spec", "UnknownModelError"),
    *("build", "entry", "graph_of", "network", "rule"),
]


class UnknownModelError(ValueError):
    """A name that is not in the zoo, or that names the other kind of entry."""


@dataclass(frozen=True)
class Network:
    """A trained entry. ``graph``: the graph whose snapshots it reads unless its options name another or none, see
    ``graph_of``. ``events``: it reads the market events between its bars."""

    build: Callable[..., nn.Module]
    summary: str
    graph: str | None = None
    events: bool = False


@dataclass(frozen=True)
class TradingRule:
    """An entry without parameters: ``weights(bars) → (t, n)``. ``benchmark_only``: it trades the benchmark alone."""

    weights: Callable[[Panel], np.ndarray]
    summary: str
    benchmark_only: bool = False


Entry = Network | TradingRule
RNG_LOCK = threading.Lock()  # held while code draws from torch's global generator or restores it

ENTRIES: dict[str, Entry] = {
    "s4": Network(sequence, "structured state-space model: normal plus low rank, from HiPPO-LegS"),
    "s4d": Network(sequence, "diagonal state-space model with a learned step size"),
    "dss": Network(sequence, "diagonal state spaces, exponential or softmax form"),
    "s5": Network(sequence, "one diagonal state space with many inputs and outputs"),
    "mamba": Network(sequence, "selective state-space model"),
    "mamba_simplified": Network(sequence, "Mamba with one step size and one decay for all channels"),
    "mamba2": Network(sequence, "selective state-space model with heads of scalar decay"),
    "on_demand": Network(OnDemand, "S4D that runs only where a linear gate expects a move"),
    "lstm": Network(sequence, "long short-term memory, the baseline"),
    "gru": Network(sequence, "gated recurrent unit"),
    "transformer": Network(sequence, "causal attention over a window of bars"),
    "tcn": Network(sequence, "dilated causal convolutions"),
    "ssm_gnn": Network(ssm_gnn, "S4D per asset, then attention over the correlation graph", graph="correlation"),
    "ssm_gnn_mamba": Network(
        partial(ssm_gnn, layer="mamba"), "Mamba per asset, then attention over the correlation graph", "correlation"
    ),
    "ssm_gnn_interleaved": Network(
        partial(ssm_gnn, fusion="interleaved"),
        "S4D and attention over the correlation graph, alternating",
        "correlation",
    ),
    "ssm_gnn_messages_first": Network(
        partial(ssm_gnn, fusion="interleaved", order="gnn_ssm"), "the same, messages before S4D", "correlation"
    ),
    "ssm_gnn_parallel": Network(
        partial(ssm_gnn, fusion="parallel"), "S4D and messages between running means, side by side", "correlation"
    ),
    "ssm_gnn_sector": Network(
        partial(ssm_gnn, graph="sector"), "S4D per asset, then attention within the sector", "sector"
    ),
    "ssm_gnn_attention": Network(
        partial(ssm_gnn, graph=LEARNED, top_k=8), "S4D per asset, then attention over learned edges"
    ),
    "ssm_gnn_pretrained": Network(
        partial(ssm_gnn, pretrained="ssm"), "ssm_gnn whose S4D is first fitted alone", "correlation"
    ),
    "ssm": Network(partial(ssm_gnn, parts="ssm"), "ssm_gnn without its messages", "correlation"),
    "gnn": Network(
        partial(ssm_gnn, parts="gnn"), "ssm_gnn without its sequence layer: reads the current bar alone", "correlation"
    ),
    "tgn": Network(
        partial(Tgn, aggregator="mean"), "temporal graph network: memory and attention", "correlation", events=True
    ),
    "tgat": Network(
        partial(Tgn, base="tgat"), "temporal graph attention, without memory", graph="correlation", events=True
    ),
    "jodie": Network(
        partial(Tgn, base="jodie"), "recurrent memory, projected in time", graph="correlation", events=True
    ),
    "dyrep": Network(
        partial(Tgn, base="dyrep"), "recurrent memory of the neighbours' embeddings", graph="correlation", events=True
    ),
    "tgn_links": Network(
        partial(Tgn, aggregator="mean", links="jointly"),
        "tgn that also learns to predict the next events",
        "correlation",
        True,
    ),
    "tgn_pretrained": Network(
        partial(Tgn, aggregator="mean", links="first"),
        "tgn that first learns to predict the next events",
        "correlation",
        True,
    ),
    "tgn_pairs": Network(
        partial(Tgn, aggregator="mean", together=True),
        "tgn that also forecasts which assets move together",
        "correlation",
        True,
    ),
    "ridge": Network(Ridge, "linear and logistic regression with a penalty, the baseline of every model"),
    "gradient_boosting": Network(GradientBoosting, "gradient-boosted trees, by LightGBM"),
    "garch": Network(Garch, "GARCH(1, 1): volatility of every asset by itself, no view on returns"),
    "buy_and_hold": TradingRule(baselines.buy_and_hold, "the benchmark, bought once", benchmark_only=True),
    "equal_weight": TradingRule(baselines.equal_weight, "1/n of every asset"),
    "momentum": TradingRule(baselines.momentum, "the best quarter by trailing return, those that rose"),
}


def entry(name: str) -> Entry:
    """The entry of that name. Raises UnknownModelError."""
    try:
        return ENTRIES[name]
    except KeyError:
        raise UnknownModelError(f"unknown model {name!r}; the zoo has {', '.join(ENTRIES)}") from None


def network(name: str) -> Network:
    """The trained entry of that name. Raises UnknownModelError."""
    named = entry(name)
    if not isinstance(named, Network):
        raise UnknownModelError(f"model {name!r} is a rule: there is nothing to train")
    return named


def rule(name: str) -> TradingRule:
    """The rule of that name. Raises UnknownModelError."""
    named = entry(name)
    if not isinstance(named, TradingRule):
        raise UnknownModelError(f"model {name!r} is a network: its weights come from its predictions")
    return named


def graph_of(spec: Spec) -> str | None:
    """Name of the graph whose stored snapshots the network of ``spec`` reads: its options', else its entry's; None for
    none. Raises UnknownModelError."""
    trained = network(spec.model)
    preset = trained.build.keywords if isinstance(trained.build, partial) else {}
    options = {"graph": trained.graph, **preset, **spec.options}
    return None if options["graph"] == LEARNED or options.get("parts") == "ssm" else options["graph"]


def build(spec: Spec, n_features: int, n_horizons: int, seed: int = 0) -> nn.Module:
    """A new network whose weights depend on ``seed`` alone; the state of torch's global generator does not change.

    Safe to call from several threads. Raises UnknownModelError, and TypeError for an option that its builder does not
    have.
    """
    trained = network(spec.model)
    with RNG_LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return trained.build(spec, n_features, n_horizons, **spec.options)
