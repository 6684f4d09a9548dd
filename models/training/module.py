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

    Every epoch starts from a seed of its own, so it does not matter whether those before it ran in this process.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.network, self.config = network, config
        self.validation_loss = math.nan
        self._sums = [0.0, 0.0]

    def on_train_epoch_start(self) -> None:
        """Reseeds what dropout draws from."""
        reseed(self.network, self.config.seed, self.current_epoch)

    def training_step(self, batch: tuple[Batch, Targets], index: int) -> Tensor:
        """The loss of one batch."""
        inputs, targets = batch
        return forecast_loss(self.network(inputs), targets, self.config)

    def on_validation_epoch_start(self) -> None:
        """Forgets the last epoch's validation."""
        self._sums = [0.0, 0.0]

    def validation_step(self, batch: tuple[Batch, Targets], index: int) -> None:
        """Adds one batch to the validation loss, weighted by its known returns."""
        inputs, targets = batch
        known = float((~torch.isnan(targets.returns)).sum())
        self._sums[0] += known * float(forecast_loss(self.network(inputs), targets, self.config))
        self._sums[1] += known

    def on_validation_epoch_end(self) -> None:
        """The mean over all validation batches."""
        self.validation_loss = self._sums[0] / max(self._sums[1], 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; no weight decay on vectors, nor on what a layer names in ``undecayed``."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        spared = {id(p) for m in self.network.modules() for p in getattr(m, "undecayed", tuple)()}
        spared |= {id(p) for p in parameters if p.dim() < 2}
        groups = [
            {"params": [p for p in parameters if id(p) not in spared], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.config.lr)


class BestEpoch(lightning.Callback):
    """Holds the weights of the epoch with the least validation loss, stops ``patience`` epochs after it, and writes a
    checkpoint after every epoch, from which a killed fit goes on to the same end."""

    def __init__(self, patience: int, checkpoint: Path | None, on_epoch: OnEpoch | None) -> None:
        self.patience, self.checkpoint, self.on_epoch = patience, checkpoint, on_epoch
        self.loss, self.epoch, self.epochs = math.inf, -1, 0
        self.weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops at once when the checkpoint resumed from was the last there is to do."""
        trainer.should_stop = self._done

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Judges the epoch that has just been validated."""
        assert isinstance(pl_module, FoldModule)
        loss, epoch = pl_module.validation_loss, trainer.current_epoch
        self.epochs = epoch + 1
        if loss < self.loss or not math.isfinite(self.loss):
            self.loss, self.epoch = loss, epoch
            self.weights = {k: v.detach().cpu().clone() for k, v in pl_module.network.state_dict().items()}
        trainer.should_stop = self._done
        if self.checkpoint is not None:
            partial = self.checkpoint.with_suffix(".partial")
            trainer.save_checkpoint(partial)
            partial.replace(self.checkpoint)
        if self.on_epoch is not None:
            self.on_epoch(epoch, loss)

    @property
    def _done(self) -> bool:
        return self.epochs - 1 - self.epoch >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps of this callback."""
        return {"loss": self.loss, "epoch": self.epoch, "epochs": self.epochs, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what the checkpoint kept."""
        self.loss, self.epoch, self.epochs = (state_dict[k] for k in ("loss", "epoch", "epochs"))
        self.weights = state_dict["weights"]
