"""Average precision of link prediction on CollegeMsg, by negative strategy: ``python -m tests.benchmarks.links_table``.

Protocol: models/training/links.py, that of DyGLib (Yu et al. 2023, 2303.13047), where TGN reaches 92.34 on "UCI"
against random negatives, transductive (its table of average precision; the mean of five seeds). Rows: EdgeBank
(Poursafaei et al. 2022) unlimited and with a window as long as the test; the presets with the paper's decoder; and TGN
whose decoder also reads the pair's common past. Settings were chosen by validation average precision alone.
``--quick``: two epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from models.graphs.events import KINDS, Events, from_contacts
from models.graphs.negatives import STRATEGIES, EdgeBank
from models.nets.link import LinkPredictor
from models.nets.temporal_graph import Sizes, preset
from models.training.allocator import tune_allocator
from models.training.links import Figures, LinkConfig, Split, chronological, evaluate, figures, fit_links

FILE = Path(__file__).parents[3] / "shared/data/temporal_graphs/CollegeMsg.txt.gz"
PUBLISHED, LR = 92.34, 3e-4
SIZES = Sizes(100, len(KINDS), 100, longest=1e6, dropout=0.1)
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
    return from_contacts(*np.loadtxt(FILE, dtype=np.int64).T)


def edge_banks(split: Split, span: tuple[int, int], config: LinkConfig) -> Iterator[tuple[str, Figures]]:
    t = split.events.t
    for name, window in (("EdgeBank", None), ("EdgeBank, window", int(t[-1] - t[split.validation_stop]))):
        bank = EdgeBank(split.events, window)

        def score(src: np.ndarray, dst: np.ndarray, start: int, stop: int, bank: EdgeBank = bank) -> np.ndarray:
            return np.stack([bank.score(u, v, start) for u, v in zip(src, dst, strict=True)])

        yield name, figures(score, split, span, config)


def trained(name: str, split: Split, config: LinkConfig) -> tuple[LinkPredictor, float]:
    """The fitted row of that name and its best validation average precision."""
    base, parts, pairs = ROWS[name]
    torch.manual_seed(config.seed)
    predictor = LinkPredictor(preset(base, **parts), SIZES, pairs)
    return predictor, fit_links(predictor, split, config)


def line(name: str, found: Figures, note: str = "") -> str:
    cells = [f"{100 * found[s][figure]:.1f}" for figure in ("ap", "new_ap") for s in STRATEGIES]
    return f"| {name} | {' | '.join(cells)} | {100 * found['random']['auc']:.1f} | {note} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two epochs a row")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    asked = parser.parse_args()
    tune_allocator()
    config = LinkConfig(epochs=2 if asked.quick else asked.epochs, lr=LR)
    split = chronological(messages(), config)
    span = (split.validation_stop, len(split.events))
    heads = [f"{kind} {s}" for kind in ("AP", "inductive AP") for s in STRATEGIES]
    print(f"| | {' | '.join(heads)} | AUC random | validation AP, time |\n|{'---|' * (len(heads) + 3)}")
    for name, found in edge_banks(split, span, config):
        print(line(name, found), flush=True)
    for name in asked.rows:
        started = time.perf_counter()
        predictor, validated = trained(name, split, config)
        found = evaluate(predictor, split, span, config)
        print(line(name, found, f"{100 * validated:.1f}, {time.perf_counter() - started:.0f} s"), flush=True)
    print(f"\nPublished: TGN {PUBLISHED}, AP against random negatives, transductive (DyGLib, UCI).")


if __name__ == "__main__":
    main()
