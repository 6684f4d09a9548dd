"""Average precision of link prediction on CollegeMsg, by negative strategy: ``python -m tests.benchmarks.links_table``.

Protocol: models/training/links.py, that of DyGLib (Yu et al. 2023, 2303.13047), where TGN reaches 92.34 on "UCI"
against random negatives, transductive (its table of average precision; the mean of five seeds). Rows: EdgeBank
(Poursafaei et al. 2022) unlimited and with a window as long as the test; the presets with the paper's decoder; and TGN
whose decoder also reads the pair's common past. Settings were chosen by validation average precision alone, of seed 0.
``--quick``: two epochs.
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
PUBLISHED, LR = 92.34, 3e-4
SIZES = Sizes(100, len(EVENT_KINDS), 100, longest=1e6, dropout=0.1)
# name: preset, parts that differ, whether the decoder reads the pair's past
ROWS = {
    "TGN, pairs": ("tgn", {"aggregator": "mean", "neighbours": 20}, True),
    "TGN": ("tgn", {"aggregator": "mean"}, False),
    "JODIE": ("jodie", {}, False),
    "DyRep": ("dyrep", {}, False),
    "TGAT": ("tgat", {"layers": 1}, False),
}


def messages() -> Events:
    """CollegeMsg."""
    return events_from_edges(*np.loadtxt(FILE, dtype=np.int64).T)


def edge_banks(split: Split, span: tuple[int, int], config: LinkConfig) -> Iterator[tuple[str, LinkMetrics]]:
    t = split.events.t
    for name, window in (("EdgeBank", None), ("EdgeBank, window", int(t[-1] - t[split.validation_stop]))):
        bank = EdgeBank(split.events, window)

        def score(src: np.ndarray, dst: np.ndarray, start: int, stop: int, bank: EdgeBank = bank) -> np.ndarray:
            return np.stack([bank.score(u, v, start) for u, v in zip(src, dst, strict=True)])

        yield name, link_metrics(score, split, span, config)


def trained(name: str, split: Split, config: LinkConfig) -> tuple[LinkPredictor, float]:
    """The fitted row of that name and its best validation average precision."""
    base, parts, pairs = ROWS[name]
    torch.manual_seed(config.seed)
    predictor = LinkPredictor(preset(base, **parts), SIZES, pairs)
    return predictor, fit_links(predictor, split, config)


def line(name: str, found: Sequence[LinkMetrics], notes: Sequence[str] = ()) -> str:
    """A row: the figures of one fit, or the mean of several ± their standard deviation."""
    columns = [(s, figure) for figure in ("ap", "new_ap") for s in STRATEGIES] + [("random", "auc")]
    cells = [words([100 * one[s][figure] for one in found]) for s, figure in columns]
    return f"| {name} | {' | '.join(cells)} | {', '.join(notes)} |"


def words(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two epochs a row")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="fits of every row; of several, mean ± sd")
    asked = parser.parse_args()
    tune_allocator()
    configs = [LinkConfig(epochs=2 if asked.quick else asked.epochs, lr=LR, seed=seed) for seed in asked.seeds]
    split = chronological(messages(), configs[0])
    span = (split.validation_stop, len(split.events))
    heads = [f"{kind} {s}" for kind in ("AP", "inductive AP") for s in STRATEGIES]
    print(f"| | {' | '.join(heads)} | AUC random | validation AP, time |\n|{'---|' * (len(heads) + 3)}")
    banks = [dict(edge_banks(split, span, config)) for config in configs]
    for name in banks[0]:
        print(line(name, [bank[name] for bank in banks]), flush=True)
    for name in asked.rows:
        started, found, validated = time.perf_counter(), [], []
        for config in configs:
            predictor, best = trained(name, split, config)
            found.append(evaluate(predictor, split, span, config))
            validated.append(100 * best)
        notes = words(validated), f"{(time.perf_counter() - started) / len(configs):.0f} s a fit"
        print(line(name, found, notes), flush=True)
    print(f"\nPublished: TGN {PUBLISHED}, AP against random negatives, transductive (DyGLib, UCI).")


if __name__ == "__main__":
    main()
