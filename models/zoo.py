"""The zoo: all models by name. One line in ENTRIES adds a model.

An entry is a network or a trading rule. A network has a builder ``(spec, n_features, n_horizons, **options) → Module``,
and the module maps a Batch to a Forecast. An Estimator is fitted in one call, every other network by gradient descent.
A trading rule is a function from bars to portfolio weights; it has nothing to train.
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
from models.nets.sequence_layers import build_sequence_network
from models.nets.spec import Spec
from models.nets.ssm_gnn import LEARNED, build_ssm_gnn
from models.nets.tgn import Tgn
from models.panel import Panel

__all__ = [
    *("RNG_LOCK", "ENTRIES", "Entry", "Network", "TradingRule", "Spec", "UnknownModelError"),
    *("build", "find_entry", "graph_of", "find_network", "find_rule"),
]


class UnknownModelError(ValueError):
    """The zoo has no entry of that name, or the entry is a rule where a network is needed, or the reverse."""


@dataclass(frozen=True)
class Network:
    """A model that is trained or fitted.

    ``build``: its builder. ``summary``: one line for a list of models. ``graph``: name of the graph whose stored
    snapshots the network reads by default, None if it reads no stored graph; options can select another graph, see
    ``graph_of``. ``reads_events``: True if the network reads the market events between bars.
    """

    build: Callable[..., nn.Module]
    summary: str
    graph: str | None = None
    reads_events: bool = False


@dataclass(frozen=True)
class TradingRule:
    """A model without fitted parameters.

    ``compute_weights``: a function from a panel of t bars of n assets to target weights (t, n). ``summary``: as in
    Network. ``benchmark_only``: True if its panel contains only the benchmark of the universe.
    """

    compute_weights: Callable[[Panel], np.ndarray]
    summary: str
    benchmark_only: bool = False


Entry = Network | TradingRule
RNG_LOCK = threading.Lock()  # to be held by a thread that draws from torch's global generator or restores its state

ENTRIES: dict[str, Entry] = {
    "s4": Network(build_sequence_network, "structured state-space model: normal plus low rank, from HiPPO-LegS"),
    "s4d": Network(build_sequence_network, "diagonal state-space model with a learned step size"),
    "dss": Network(build_sequence_network, "diagonal state spaces, exponential or softmax form"),
    "s5": Network(build_sequence_network, "one diagonal state space with many inputs and outputs"),
    "mamba": Network(build_sequence_network, "selective state-space model"),
    "mamba_simplified": Network(build_sequence_network, "Mamba with one step size and one decay for all channels"),
    "mamba2": Network(build_sequence_network, "selective state-space model with heads of scalar decay"),
    "on_demand": Network(OnDemand, "S4D that runs only where a linear gate expects a move"),
    "lstm": Network(build_sequence_network, "long short-term memory, the baseline"),
    "gru": Network(build_sequence_network, "gated recurrent unit"),
    "transformer": Network(build_sequence_network, "causal attention over a window of bars"),
    "tcn": Network(build_sequence_network, "dilated causal convolutions"),
    "ssm_gnn": Network(build_ssm_gnn, "S4D per asset, then attention over the correlation graph", graph="correlation"),
    "ssm_gnn_mamba": Network(
        partial(build_ssm_gnn, layer="mamba"),
        "Mamba per asset, then attention over the correlation graph",
        "correlation",
    ),
    "ssm_gnn_interleaved": Network(
        partial(build_ssm_gnn, fusion="interleaved"),
        "S4D and attention over the correlation graph, alternating",
        "correlation",
    ),
    "ssm_gnn_messages_first": Network(
        partial(build_ssm_gnn, fusion="interleaved", order="gnn_ssm"),
        "attention over the correlation graph and S4D, alternating",
        "correlation",
    ),
    "ssm_gnn_parallel": Network(
        partial(build_ssm_gnn, fusion="parallel"), "S4D and messages between running means, in parallel", "correlation"
    ),
    "ssm_gnn_sector": Network(
        partial(build_ssm_gnn, graph="sector"), "S4D per asset, then attention within the sector", "sector"
    ),
    "ssm_gnn_attention": Network(
        partial(build_ssm_gnn, graph=LEARNED, top_k=8), "S4D per asset, then attention over learned edges"
    ),
    "ssm_gnn_pretrained": Network(
        partial(build_ssm_gnn, pretrained="ssm"), "ssm_gnn whose S4D is first fitted alone", "correlation"
    ),
    "ssm": Network(partial(build_ssm_gnn, parts="ssm"), "ssm_gnn without its messages", "correlation"),
    "gnn": Network(
        partial(build_ssm_gnn, parts="gnn"),
        "ssm_gnn without its sequence layer: reads the current bar alone",
        "correlation",
    ),
    "tgn": Network(
        partial(Tgn, aggregator="mean"),
        "temporal graph network: memory and attention",
        "correlation",
        reads_events=True,
    ),
    "tgat": Network(
        partial(Tgn, base="tgat"), "temporal graph attention, without memory", graph="correlation", reads_events=True
    ),
    "jodie": Network(
        partial(Tgn, base="jodie"), "recurrent memory, projected in time", graph="correlation", reads_events=True
    ),
    "dyrep": Network(
        partial(Tgn, base="dyrep"),
        "recurrent memory of the neighbours' embeddings",
        graph="correlation",
        reads_events=True,
    ),
    "tgn_links": Network(
        partial(Tgn, aggregator="mean", links="jointly"),
        "tgn that also learns to predict the next events",
        "correlation",
        reads_events=True,
    ),
    "tgn_pretrained": Network(
        partial(Tgn, aggregator="mean", links="first"),
        "tgn that first learns to predict the next events",
        "correlation",
        reads_events=True,
    ),
    "tgn_pairs": Network(
        partial(Tgn, aggregator="mean", together=True),
        "tgn that also forecasts which assets move in the same direction",
        "correlation",
        reads_events=True,
    ),
    "ridge": Network(Ridge, "linear and logistic regression with an L2 penalty, the baseline of every model"),
    "gradient_boosting": Network(GradientBoosting, "gradient-boosted trees, by LightGBM"),
    "garch": Network(Garch, "GARCH(1, 1): volatility of every asset by itself, no forecast of returns"),
    "buy_and_hold": TradingRule(baselines.buy_and_hold, "the benchmark, bought once", benchmark_only=True),
    "equal_weight": TradingRule(baselines.equal_weight, "1/n of every asset"),
    "momentum": TradingRule(
        baselines.momentum, "the quarter of the assets with the highest trailing return, if positive"
    ),
}


def find_entry(name: str) -> Entry:
    """The entry of that name. Raises UnknownModelError for a name that is not in the zoo."""
    try:
        return ENTRIES[name]
    except KeyError:
        raise UnknownModelError(f"unknown model {name!r}; the zoo has {', '.join(ENTRIES)}") from None


def find_network(name: str) -> Network:
    """The network of that name. Raises UnknownModelError, also for the name of a rule."""
    entry = find_entry(name)
    if not isinstance(entry, Network):
        raise UnknownModelError(f"model {name!r} is a rule: there is nothing to train")
    return entry


def find_rule(name: str) -> TradingRule:
    """The trading rule of that name. Raises UnknownModelError, also for the name of a network."""
    entry = find_entry(name)
    if not isinstance(entry, TradingRule):
        raise UnknownModelError(f"model {name!r} is a network: its weights come from its predictions")
    return entry


def graph_of(spec: Spec) -> str | None:
    """The name of the graph whose stored snapshots the network of ``spec`` reads; None if it reads no stored graph.

    The options of ``spec`` take precedence over the options preset by the entry, and these over the entry's ``graph``.
    Raises UnknownModelError.
    """
    network = find_network(spec.model)
    preset = network.build.keywords if isinstance(network.build, partial) else {}
    options = {"graph": network.graph, **preset, **spec.options}
    return None if options["graph"] == LEARNED or options.get("parts") == "ssm" else options["graph"]


def build(spec: Spec, n_features: int, n_horizons: int, seed: int = 0) -> nn.Module:
    """A new network. Its initial weights depend on its arguments alone, ``seed`` among them.

    The state of torch's global generator does not change. Several threads can call this at the same time. Raises
    UnknownModelError, and TypeError for an option that the builder does not have.
    """
    network = find_network(spec.model)
    with RNG_LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.build(spec, n_features, n_horizons, **spec.options)
