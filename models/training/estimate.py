"""Fits of estimators: models that are not trained by gradient descent.

An estimator is validated as a network is, and its whole fit counts as one epoch.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from models.features.scaling import Scaler
from models.nets.estimators import Estimator, TrainingRows
from models.panel import Panel
from models.training.data import FoldData
from models.training.losses import MAX_ABS_LOG_RATIO
from models.training.module import BestEpoch, FoldModule


def fit_estimator(
    network: Estimator, data: FoldData, features: Panel, horizons: tuple[int, ...], best: BestEpoch
) -> None:
    """Fits ``network`` on ``data`` and stores its weights and validation loss in ``best``.

    ``features`` is the whole panel, from which an estimator that needs unscaled features reads them. A fit takes
    seconds, so it writes no checkpoint: a killed fit starts over.
    """
    if not network.reads_scaled:
        use_unscaled_features(data, features)
    network.fit_rows(training_rows(data, features.columns, horizons))
    best.loss = compute_validation_loss(FoldModule(network, data.config), data)
    best.epoch = 0
    best.n_epochs = 1
    best.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    if best.on_epoch is not None:
        best.on_epoch(best.epoch, best.loss)


def training_rows(data: FoldData, columns: tuple[str, ...], horizons: tuple[int, ...]) -> TrainingRows:
    """The fold's inputs and targets as one chunk of all its bars; log volatilities are clipped as in the loss.

    The ranges of training and validation are positions in this chunk. ``columns`` are the names of the features.
    """
    training_start, training_stop = data.training_range
    validation_start, validation_stop = data.validation_range
    return TrainingRows(
        batch=data.inputs.batch(torch.arange(len(data.inputs.x))[None]),
        returns=data.targets.returns,
        log_volatility=data.targets.log_volatility.clamp(-MAX_ABS_LOG_RATIO, MAX_ABS_LOG_RATIO),
        class_5=data.targets.class_5,
        training_range=(training_start - data.start, training_stop - data.start),
        validation_range=(validation_start - data.start, validation_stop - data.start),
        feature_names=columns,
        horizons=horizons,
        seed=data.config.seed,
    )


def use_unscaled_features(data: FoldData, features: Panel) -> None:
    """Replaces the scaled inputs of ``data`` by the unscaled features, and its scaler by the identity.

    The model file then contains the identity, so inference reads unscaled features, too. The identity still clips, but
    the features of these estimators lie far inside its bounds.
    """
    n_features = len(features.columns)
    data.scaler = Scaler(features.columns, centre=(0.0,) * n_features, scale=(1.0,) * n_features)
    panel = features.slice_bars(data.start, data.start + len(data.inputs.x))
    data.inputs = replace(data.inputs, x=torch.from_numpy(data.scaler.transform(panel.values)))


def compute_validation_loss(module: FoldModule, data: FoldData) -> float:
    """The loss over all validation chunks, computed as after an epoch of a network."""
    module.eval()
    module.on_validation_epoch_start()
    with torch.no_grad():
        for index, batch in enumerate(data.val_dataloader()):
            module.validation_step(batch, index)
    module.on_validation_epoch_end()
    return module.validation_loss
