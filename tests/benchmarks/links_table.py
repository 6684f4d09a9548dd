"""Average precision of link prediction on CollegeMsg, by negative strategy: ``python -m tests.benchmarks.links_table``.

Protocol: models/training/links.py, that of DyGLib (Yu et al. 2023, 2303.13047), where TGN reaches 92.34 on "UCI"
against random negatives, transductive (its table of average precision; the mean of five seeds). Rows: EdgeBank
(Poursafaei et al. 2022) unlimited and with a window as long as the test; the presets with the paper's decoder; and TGN
with a decoder that also reads the pair's history. Settings were selected by the validation average precision of seed 0
alone. ``--quick``: two epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from models.graphs.events import EVENT_KINDS, Events, events_from_edges
from models.graphs.negatives import STRATEGIES, EdgeBank
from models.nets.link import LinkPredictor
from models.nets.temporal_graph import Sizes, preset
from models.training.allocator import tune_allocator
from models.training.links import LinkConfig, LinkMetrics, Split, chronological, evaluate, fit_links, link_metrics

FILE = Path(__file__).parents[3] / "shared/data/temporal_graphs/CollegeMsg.txt.gz"
PUBLISHED = 92.34
LR = 3e-4
SIZES = Sizes(100, len(EVENT_KINDS), 100, longest=1e6, dropout=0.1)
# name: preset, parts that differ, whether the decoder reads the pair's history
ROWS = {
    "TGN, pairs": ("tgn", {"aggregator": "mean", "neighbours": 20}, True),
    "TGN": ("tgn", {"aggregator": "mean"}, False),
    "JODIE": ("jodie", {}, False),
    "DyRep": ("dyrep", {}, False),
    "TGAT": ("tgat", {"layers": 1}, False),
}


def messages() -> Events:
    """The messages of CollegeMsg as events."""
    return events_from_edges(*np.loadtxt(FILE, dtype=np.int64).T)


def edge_banks(split: Split, span: tuple[int, int], config: LinkConfig) -> Iterator[tuple[str, LinkMetrics]]:
    """The name and metrics of each EdgeBank on the events of ``span``."""
    t = split.events.t
    for name, window in (("EdgeBank", None), ("EdgeBank, window", int(t[-1] - t[split.validation_stop]))):
        bank = EdgeBank(split.events, window)

        def score(src: np.ndarray, dst: np.ndarray, start: int, stop: int, bank: EdgeBank = bank) -> np.ndarray:
            return np.stack([bank.score(u, v, start) for u, v in zip(src, dst, strict=True)])

        yield name, link_metrics(score, split, span, config)


def fit_row(name: str, split: Split, config: LinkConfig) -> tuple[LinkPredictor, float]:
    """The fitted network of a row, and its best validation average precision."""
    base, parts, pairs = ROWS[name]
    torch.manual_seed(config.seed)
    predictor = LinkPredictor(preset(base, **parts), SIZES, pairs)
    return predictor, fit_links(predictor, split, config)


def row_text(name: str, by_seed: Sequence[LinkMetrics], notes: Sequence[str] = ()) -> str:
    """A row: the metrics of one fit, or the mean of several ± their standard deviation."""
    columns = [(s, metric) for metric in ("ap", "new_ap") for s in STRATEGIES] + [("random", "auc")]
    cells = [mean_and_deviation([100 * metrics[s][metric] for metrics in by_seed]) for s, metric in columns]
    return f"| {name} | {' | '.join(cells)} | {', '.join(notes)} |"


def mean_and_deviation(values: Sequence[float]) -> str:
    """The mean, and ± the standard deviation if there are several values."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two epochs a row")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="fits of every row; for several, mean ± standard deviation"
    )
    arguments = parser.parse_args()
    tune_allocator()
    configs = [
        LinkConfig(epochs=2 if arguments.quick else arguments.epochs, lr=LR, seed=seed) for seed in arguments.seeds
    ]
    split = chronological(messages(), configs[0])
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
