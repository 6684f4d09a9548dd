"""The error tree of ``models.training``.

TrainingError
├── FitError                    a fold that cannot be fitted
│   ├── EmptyFoldError          it has no training row or no validation row
│   └── DivergedFitError        no epoch has a finite validation loss
├── ArtifactError               a model file that cannot be used
│   ├── MissingArtifactError    no file at the path
│   ├── DamagedArtifactError    a file that is truncated, altered, or not a model file
│   └── ForeignArtifactError    an undamaged file for other features or symbols, or from a newer program
└── ExportError                 a network without an ONNX form, or whose ONNX form computes other numbers
"""


class TrainingError(Exception):
    """A fit or a prediction has failed."""


class FitError(TrainingError):
    """A fold cannot be fitted."""


class EmptyFoldError(FitError):
    """The fold has no training row or no validation row with a known label, or no asset has a bar in it."""


class DivergedFitError(FitError):
    """No epoch has a finite validation loss."""


class ArtifactError(TrainingError):
    """A model file cannot be used."""


class MissingArtifactError(ArtifactError):
    """There is no model file at the path."""


class DamagedArtifactError(ArtifactError):
    """The file is truncated, altered, or not a model file."""


class ForeignArtifactError(ArtifactError):
    """The file is undamaged but is for other features or symbols, or was written by a newer program."""


class ExportError(TrainingError):
    """A network cannot be written as ONNX, or the written file computes other numbers."""
