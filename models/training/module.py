"""The LightningModule of a network that is trained by gradient descent, and the callback that keeps its best epoch."""

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

OnEpoch = Callable[[int, float], None]  # (epoch, validation loss)


class FoldModule(lightning.LightningModule):
    """A network, its loss and its optimiser.

    ``validation_loss``: the loss of the last validated epoch, NaN before the first one. Every epoch has its own seed,
    so a resumed fit gives the same numbers as an uninterrupted fit.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.validation_loss = math.nan
        self._weighted_loss = 0.0
        self._n_returns = 0.0

    def on_train_epoch_start(self) -> None:
        """Reseeds the generators of the dropout layers."""
        reseed(self.network, self.config.seed, self.current_epoch)

    def training_step(self, batch: tuple[Batch, Targets], index: int) -> Tensor:
        """The loss of one batch."""
        inputs, targets = batch
        return forecast_loss(self.network(inputs), targets, self.config)

    def on_validation_epoch_start(self) -> None:
        """Resets the sums of the validation."""
        self._weighted_loss = 0.0
        self._n_returns = 0.0

    def validation_step(self, batch: tuple[Batch, Targets], index: int) -> None:
        """Adds the loss of one batch to the validation loss; its weight is its number of known returns."""
        inputs, targets = batch
        n_returns = float((~torch.isnan(targets.returns)).sum())
        self._weighted_loss += n_returns * float(forecast_loss(self.network(inputs), targets, self.config))
        self._n_returns += n_returns

    def on_validation_epoch_end(self) -> None:
        """Sets ``validation_loss`` to the weighted mean of the losses of all validation batches."""
        self.validation_loss = self._weighted_loss / max(self._n_returns, 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """An AdamW optimiser of the trainable parameters.

        Vectors, and the parameters that a layer lists in its method ``undecayed``, have no weight decay.
        """
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        undecayed = {id(p) for m in self.network.modules() for p in getattr(m, "undecayed", tuple)()}
        undecayed |= {id(p) for p in parameters if p.dim() < 2}
        groups = [
            {"params": [p for p in parameters if id(p) not in undecayed], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if id(p) in undecayed], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.config.lr)


class BestEpoch(lightning.Callback):
    """Keeps the weights of the epoch with the lowest finite validation loss and stops ``patience`` epochs after it.

    It also writes a checkpoint after every epoch, if ``checkpoint`` is not None. A killed fit that resumes from the
    checkpoint gives the same result. ``loss``, ``epoch`` (from 0) and ``weights`` (the network's state dict on the CPU)
    belong to the best epoch, or to the last epoch until an epoch has a finite loss. ``n_epochs`` counts the epochs that
    were run.
    """

    def __init__(self, patience: int, checkpoint: Path | None, on_epoch: OnEpoch | None) -> None:
        self.patience = patience
        self.checkpoint = checkpoint
        self.on_epoch = on_epoch
        self.loss = math.inf
        self.epoch = -1
        self.n_epochs = 0
        self.weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops at once if the fit was resumed from the checkpoint of its last epoch."""
        trainer.should_stop = self._is_done

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compares the epoch that has just been validated with the best one, and writes the checkpoint."""
        assert isinstance(pl_module, FoldModule)
        loss = pl_module.validation_loss
        epoch = trainer.current_epoch
        self.n_epochs = epoch + 1
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
        """True if ``patience`` epochs have run since the best one."""
        return self.n_epochs - 1 - self.epoch >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """The part of the checkpoint that this callback restores."""
        return {"loss": self.loss, "epoch": self.epoch, "epochs": self.n_epochs, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state from a checkpoint."""
        self.loss = state_dict["loss"]
        self.epoch = state_dict["epoch"]
        self.n_epochs = state_dict["epochs"]
        self.weights = state_dict["weights"]
