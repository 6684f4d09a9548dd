"""Fits of models that are not trained by gradient: the fold's rows in, one "epoch" out, validated as every network."""

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
    """Fits ``network`` and leaves its weights and validation loss in ``best``.

    It takes seconds, so there is nothing to resume from: a killed fit begins again.
    """
    if not network.scaled:
        leave_unscaled(data, features)
    network.fit_rows(rows_of(data, features.columns, horizons))
    best.loss, best.epoch, best.epochs = validated(FoldModule(network, data.config), data), 0, 1
    best.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    if best.on_epoch is not None:
        best.on_epoch(best.epoch, best.loss)


def rows_of(data: FoldData, columns: tuple[str, ...], horizons: tuple[int, ...]) -> TrainingRows:
    """What the fold lets a model see; log-volatilities are bounded as in the loss."""
    learned, held_out = ((start - data.start, stop - data.start) for start, stop in data.spans)
    return TrainingRows(
        data.inputs.batch(torch.arange(len(data.inputs.x))[None]),
        data.targets.returns,
        data.targets.log_volatility.clamp(-LOG_BOUND, LOG_BOUND),
        data.targets.class_5,
        learned,
        held_out,
        columns,
        horizons,
        data.config.seed,
    )


def leave_unscaled(data: FoldData, features: Panel) -> None:
    """Gives the fold's bars as they are, and a scaler that does so at inference: nothing is moved, and the features
    are far from where it clips."""
    count = len(features.columns)
    data.scaler = Scaler(features.columns, (0.0,) * count, (1.0,) * count)
    panel = features.rows(data.start, data.start + len(data.inputs.x))
    data.inputs = replace(data.inputs, x=torch.from_numpy(data.scaler.transform(panel.values)))


def validated(module: FoldModule, data: FoldData) -> float:
    """The validation loss, summed over chunks as after an epoch."""
    module.eval()
    module.on_validation_epoch_start()
    with torch.no_grad():
        for k, batch in enumerate(data.val_dataloader()):
            module.validation_step(batch, k)
    module.on_validation_epoch_end()
    return module.validation_loss
