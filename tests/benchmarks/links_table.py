"""Average precision of link prediction on CollegeMsg, by strategy of the negative pairs.

``python -m tests.benchmarks.links_table``. The protocol of models/training/links.py is that of DyGLib (Yu et al. 2023,
2303.13047). There TGN reaches an average precision of 92.34 on this data ("UCI") with random negatives, transductive,
as a mean of five seeds. The rows of the table are: EdgeBank (Poursafaei et al. 2022), with unlimited memory and with a
window as long as the test set; the presets of our network with the paper's decoder; and TGN with a decoder that also
reads the pair's history. The settings were selected by the validation average precision of seed 0 alone. ``--quick``
fits two epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.graphs.events import EVENT_KINDS, Events, events_from_edges
from models.graphs.negatives import STRATEGIES, EdgeBank
from models.nets.link import LinkPredictor
from models.nets.temporal_graph import Sizes, preset
from models.training.allocator import tune_allocator
from models.training.links import (
    LinkConfig,
    LinkMetrics,
    Split,
    evaluate,
    fit_links,
    link_metrics,
    split_chronologically,
)

FILE = Path(__file__).parents[3] / "shared/data/temporal_graphs/CollegeMsg.txt.gz"
PUBLISHED = 92.34  # average precision of TGN in DyGLib, %
LR = 3e-4
SIZES = Sizes(100, len(EVENT_KINDS), 100, longest=1e6, dropout=0.1)
# rows by name: preset, parts that differ from it, and whether the decoder reads the pair's history
ROWS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "TGN, pairs": ("tgn", {"aggregator": "mean", "neighbours": 20}, True),
    "TGN": ("tgn", {"aggregator": "mean"}, False),
    "JODIE": ("jodie", {}, False),
    "DyRep": ("dyrep", {}, False),
    "TGAT": ("tgat", {"layers": 1}, False),
}


def messages() -> Events:
    """The messages of CollegeMsg as events."""
    src, dst, seconds = np.loadtxt(FILE, dtype=np.int64).T
    return events_from_edges(src, dst, seconds)


def edge_banks(split: Split, span: tuple[int, int], config: LinkConfig) -> Iterator[tuple[str, LinkMetrics]]:
    """The name and metrics of each EdgeBank on the events of ``span``, positions [start, stop)."""
    t = split.events.t
    test_us = int(t[-1] - t[split.validation_stop])
    for name, window_us in (("EdgeBank", None), ("EdgeBank, window", test_us)):
        bank = EdgeBank(split.events, window_us)

        def score(src: np.ndarray, dst: np.ndarray, start: int, stop: int, bank: EdgeBank = bank) -> np.ndarray:
            return np.stack([bank.score(u, v, start) for u, v in zip(src, dst, strict=True)])

        yield name, link_metrics(score, split, span, config)


def fit_row(name: str, split: Split, config: LinkConfig) -> tuple[LinkPredictor, float]:
    """The fitted network of a row of ROWS, and its best validation average precision."""
    preset_name, parts, reads_history = ROWS[name]
    torch.manual_seed(config.seed)
    predictor = LinkPredictor(preset(preset_name, **parts), SIZES, pairs=reads_history)
    return predictor, fit_links(predictor, split, config)


def row_text(name: str, by_seed: Sequence[LinkMetrics], notes: Sequence[str] = ()) -> str:
    """A line of the Markdown table: the metrics of one fit, or the mean of several fits ± their standard deviation."""
    columns = [(s, metric) for metric in ("ap", "new_ap") for s in STRATEGIES] + [("random", "auc")]
    cells = [mean_and_deviation([100 * metrics[s][metric] for metrics in by_seed]) for s, metric in columns]
    return f"| {name} | {' | '.join(cells)} | {', '.join(notes)} |"


def mean_and_deviation(values: Sequence[float]) -> str:
    """The mean, and ± the standard deviation if there are several values."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two epochs per fit")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="one fit per seed; for several, mean ± standard deviation"
    )
    arguments = parser.parse_args()
    tune_allocator()
    configs = [
        LinkConfig(epochs=2 if arguments.quick else arguments.epochs, lr=LR, seed=seed) for seed in arguments.seeds
    ]
    split = split_chronologically(messages(), configs[0])
    span = (split.validation_stop, len(split.events))
    heads = [f"{kind} {s}" for kind in ("AP", "inductive AP") for s in STRATEGIES]
    print(f"| | {' | '.join(heads)} | AUC random | validation AP, time |\n|{'---|' * (len(heads) + 3)}")
    banks = [dict(edge_banks(split, span, config)) for config in configs]
    for name in banks[0]:
        print(row_text(name, [bank[name] for bank in banks]), flush=True)
    for name in arguments.rows:
        started = time.perf_counter()
        by_seed = []
        validation = []
        for config in configs:
            predictor, best = fit_row(name, split, config)
            by_seed.append(evaluate(predictor, split, span, config))
            validation.append(100 * best)
        notes = mean_and_deviation(validation), f"{(time.perf_counter() - started) / len(configs):.0f} s a fit"
        print(row_text(name, by_seed, notes), flush=True)
    print(f"\nPublished: TGN {PUBLISHED}, AP against random negatives, transductive (DyGLib, UCI).")


if __name__ == "__main__":
    main()
