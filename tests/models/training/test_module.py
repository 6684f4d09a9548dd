"""Weight decay of the optimiser, and one thread per fit."""

from pathlib import Path

import pytest
import torch

from models.training.config import TrainConfig
from models.training.fit import fit_fold
from models.training.module import FoldModule
from models.zoo import Spec, build


@pytest.mark.parametrize("model", ["s4d", "mamba", "ssm_gnn"])
def test_vectors_and_parameters_of_time_scales_have_no_weight_decay(model: str) -> None:
    network = build(Spec(model, d_model=8, d_state=4), 3, 2)
    optimiser = FoldModule(network, TrainConfig(weight_decay=0.1)).configure_optimizers()
    decay_by_id = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    decay = {name: decay_by_id[id(p)] for name, p in network.named_parameters()}
    assert len(decay_by_id) == len(decay)
    assert [value for name, value in decay.items() if name.endswith("embedding.linear.weight")] == [0.1]
    undecayed = {name for name, value in decay.items() if value == 0}
    assert {name for name in decay if name.endswith("bias")} <= undecayed
    time_scales = {n for n in decay if n.rpartition(".")[2] in ("log_decay", "frequency", "log_dt", "A_log")}
    assert time_scales
    assert time_scales <= undecayed


def test_a_fit_uses_one_thread_whatever_the_process_was_set_to(market, tmp_path: Path) -> None:
    thread_counts: list[int] = []
    hashes = set()
    for n_threads in (2, 1):
        torch.set_num_threads(n_threads)
        fitted = fit_fold(
            **market.arguments("mamba"),
            artifact=tmp_path / f"{n_threads}.safetensors",
            on_epoch=lambda epoch, loss: thread_counts.append(torch.get_num_threads()),
        )
        hashes.add(fitted.sha256)
    n_epochs = market.arguments()["config"].epochs
    assert thread_counts == [1] * (2 * n_epochs)
    assert len(hashes) == 1
