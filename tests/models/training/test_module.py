"""What the optimiser is told, and one thread a fit."""

from pathlib import Path

import pytest
import torch

from models.training.config import TrainConfig
from models.training.fit import fit_fold
from models.training.module import FoldModule
from models.zoo import Spec, build


@pytest.mark.parametrize("model", ["s4d", "mamba", "ssm_gnn"])
def test_weight_decay_spares_vectors_and_what_sets_time_scales(model: str) -> None:
    network = build(Spec(model, d_model=8, d_state=4), 3, 2)
    optimiser = FoldModule(network, TrainConfig(weight_decay=0.1)).configure_optimizers()
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    named = {name: decay[id(p)] for name, p in network.named_parameters()}
    assert [value for name, value in named.items() if name.endswith("embedding.linear.weight")] == [0.1]
    spared = {name for name, value in named.items() if value == 0}
    assert {name for name in named if name.endswith("bias")} <= spared
    scales = [n for n in named if n.rpartition(".")[2] in ("log_decay", "frequency", "log_dt", "A_log")]
    assert scales and set(scales) <= spared
    assert len(decay) == len(named)


def test_a_fit_takes_one_thread_whatever_the_process_had(market, tmp_path: Path) -> None:
    seen, hashes = [], []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        fitted = fit_fold(
            **market.arguments("mamba"),
            artifact=tmp_path / f"{threads}.safetensors",
            on_epoch=lambda epoch, loss: seen.append(torch.get_num_threads()),
        )
        hashes.append(fitted.sha256)
    assert seen == [1] * 6
    assert hashes[0] == hashes[1]
