"""The settings of one fit; stored with every trial."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one fit.

    Batches: a chunk has ``chunk_bars`` bars. Its first ``burn_in_bars`` fill the network's state and have no loss, so
    successive chunks overlap by ``burn_in_bars``. A batch contains about ``batch_sequences`` (chunk, asset) pairs.

    Early stopping: the last ``validation_fraction`` of the training rows are validation rows. The weights of the epoch
    with the lowest validation loss are kept. The fit ends ``patience`` epochs after it, or after ``epochs`` epochs.

    Optimiser: ``lr`` is its learning rate; ``clip_norm`` bounds the norm of the gradient. The fields ``…_loss`` select
    a loss and the fields ``…_weight`` are the losses' weights in the sum, see models.training.losses.

    Inference: the network also reads the ``context_bars`` before the first bar that it forecasts.

    Raises ValueError for a burn-in outside [0, chunk_bars) and for a validation fraction outside (0, 1).
    """

    epochs: int = 8
    chunk_bars: int = 96
    burn_in_bars: int = 32
    context_bars: int = 64
    batch_sequences: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    patience: int = 3
    validation_fraction: float = 0.15
    seed: int = 0
    return_loss: Literal["huber", "mse"] = "huber"
    volatility_loss: Literal["gaussian", "mse"] = "gaussian"
    return_weight: float = 1.0
    volatility_weight: float = 0.5
    class_weight: float = 0.5
    sharpe_weight: float = 1.0
    link_weight: float = 0.5
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.burn_in_bars < self.chunk_bars:
            raise ValueError(
                f"burn_in_bars {self.burn_in_bars} must be at least 0 and below chunk_bars {self.chunk_bars}"
            )
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction {self.validation_fraction} must lie between 0 and 1")

    def to_json(self) -> dict[str, Any]:
        """Every field as a JSON value; ``TrainConfig(**config.to_json()) == config``."""
        return asdict(self)
