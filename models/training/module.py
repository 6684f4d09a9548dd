"""The LightningModule of every network, and the callback that keeps its best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from models.layers.dropout import reseed
from models.nets.forecast import Batch
from models.training.config import TrainConfig
from models.training.data import Targets
from models.training.losses import forecast_loss

OnEpoch = Callable[[int, float], None]


class FoldModule(lightning.LightningModule):
    """A network, its loss and its optimiser.

    Every epoch starts from its own seed, so a resumed fit gives the same numbers as an uninterrupted one.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.validation_loss = math.nan
        self._sums = [0.0, 0.0]

    def on_train_epoch_start(self) -> None:
        """Reseeds the generators of the dropout layers."""
        reseed(self.network, self.config.seed, self.current_epoch)

    def training_step(self, batch: tuple[Batch, Targets], index: int) -> Tensor:
        """The loss of one batch."""
        inputs, targets = batch
        return forecast_loss(self.network(inputs), targets, self.config)

    def on_validation_epoch_start(self) -> None:
        """Resets the sums of the last epoch's validation."""
        self._sums = [0.0, 0.0]

    def validation_step(self, batch: tuple[Batch, Targets], index: int) -> None:
        """Adds one batch to the validation loss, weighted by its known returns."""
        inputs, targets = batch
        known_returns = float((~torch.isnan(targets.returns)).sum())
        self._sums[0] += known_returns * float(forecast_loss(self.network(inputs), targets, self.config))
        self._sums[1] += known_returns

    def on_validation_epoch_end(self) -> None:
        """Sets ``validation_loss`` to the mean over all validation batches."""
        self.validation_loss = self._sums[0] / max(self._sums[1], 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, without weight decay on vectors and on the parameters that a layer lists in ``undecayed``."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        undecayed = {id(p) for m in self.network.modules() for p in getattr(m, "undecayed", tuple)()}
        undecayed |= {id(p) for p in parameters if p.dim() < 2}
        groups = [
            {"params": [p for p in parameters if id(p) not in undecayed], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if id(p) in undecayed], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.config.lr)


class BestEpoch(lightning.Callback):
    """Keeps the weights of the epoch with the lowest validation loss, stops ``patience`` epochs after it, and writes a
    checkpoint after every epoch. A killed fit that resumes from the checkpoint gives the same result.

    ``loss`` and ``epoch`` are those of the best epoch; ``epochs`` counts the epochs that were run.
    """

    def __init__(self, patience: int, checkpoint: Path | None, on_epoch: OnEpoch | None) -> None:
        self.patience = patience
        self.checkpoint = checkpoint
        self.on_epoch = on_epoch
        self.loss = math.inf
        self.epoch = -1
        self.epochs = 0
        self.weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops immediately when the checkpoint was written after the last epoch to run."""
        trainer.should_stop = self._is_done

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compares the epoch that has just been validated with the best one, and writes the checkpoint."""
        assert isinstance(pl_module, FoldModule)
        loss = pl_module.validation_loss
        epoch = trainer.current_epoch
        self.epochs = epoch + 1
        if loss < self.loss or not math.isfinite(self.loss):
            self.loss = loss
            self.epoch = epoch
            self.weights = {k: v.detach().cpu().clone() for k, v in pl_module.network.state_dict().items()}
        trainer.should_stop = self._is_done
        if self.checkpoint is not None:
            partial = self.checkpoint.with_suffix(".partial")
            trainer.save_checkpoint(partial)
            partial.replace(self.checkpoint)
        if self.on_epoch is not None:
            self.on_epoch(epoch, loss)

    @property
    def _is_done(self) -> bool:
        return self.epochs - 1 - self.epoch >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """The state of this callback that the checkpoint contains."""
        return {"loss": self.loss, "epoch": self.epoch, "epochs": self.epochs, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state from a checkpoint."""
        self.loss, self.epoch, self.epochs = (state_dict[k] for k in ("loss", "epoch", "epochs"))
        self.weights = state_dict["weights"]
