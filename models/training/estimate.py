"""Fits of estimators, which are not trained by gradient: one "epoch", with the same validation as for networks."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.features.scaling import Scaler
from models.nets.estimators import Estimator, TrainingRows
from models.panel import Panel
from models.training.data import FoldData
from models.training.losses import LOG_BOUND
from models.training.module import BestEpoch, FoldModule


def fit_estimator(
    network: Estimator, data: FoldData, features: Panel, horizons: tuple[int, ...], best: BestEpoch
) -> None:
    """Fits ``network`` and stores its weights and validation loss in ``best``.

    A fit takes seconds, so it writes no checkpoint: a killed fit starts over.
    """
    if not network.scaled:
        use_unscaled_features(data, features)
    network.fit_rows(training_rows(data, features.columns, horizons))
    best.loss = compute_validation_loss(FoldModule(network, data.config), data)
    best.epoch = 0
    best.epochs = 1
    best.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    if best.on_epoch is not None:
        best.on_epoch(best.epoch, best.loss)


def training_rows(data: FoldData, columns: tuple[str, ...], horizons: tuple[int, ...]) -> TrainingRows:
    """The fold's inputs and targets for an estimator; log-volatilities are bounded as in the loss."""
    train_span, validation_span = ((start - data.start, stop - data.start) for start, stop in data.spans)
    return TrainingRows(
        data.inputs.batch(torch.arange(len(data.inputs.x))[None]),
        data.targets.returns,
        data.targets.log_volatility.clamp(-LOG_BOUND, LOG_BOUND),
        data.targets.class_5,
        train_span,
        validation_span,
        columns,
        horizons,
        data.config.seed,
    )


def use_unscaled_features(data: FoldData, features: Panel) -> None:
    """Replaces the fold's scaled inputs by unscaled ones, and its scaler by the identity, which inference then uses
    too. The features of such estimators lie far inside the scaler's clipping bounds."""
    count = len(features.columns)
    data.scaler = Scaler(features.columns, (0.0,) * count, (1.0,) * count)
    panel = features.rows(data.start, data.start + len(data.inputs.x))
    data.inputs = replace(data.inputs, x=torch.from_numpy(data.scaler.transform(panel.values)))


def compute_validation_loss(module: FoldModule, data: FoldData) -> float:
    """The validation loss, computed over the chunks as after an epoch."""
    module.eval()
    module.on_validation_epoch_start()
    with torch.no_grad():
        for k, batch in enumerate(data.val_dataloader()):
            module.validation_step(batch, k)
    module.on_validation_epoch_end()
    return module.validation_loss
