"""The error tree of ``models.training``.

TrainingError
├── FitError                    a fold that cannot be fitted
│   ├── EmptyFoldError          its slice leaves no row to train on or to validate on
│   └── DivergedFitError        no epoch reached a finite loss
├── ArtifactError               a model file that cannot be used
│   ├── MissingArtifactError    no file at the path
│   ├── DamagedArtifactError    the file's contents are not what was written
│   └── ForeignArtifactError    an undamaged file for other features or symbols, or from a newer program
└── ExportError                 a network that has no ONNX form, or whose ONNX form computes something else
"""


class TrainingError(Exception):
    """A fit or a prediction has failed."""


class FitError(TrainingError):
    """A fold cannot be fitted."""


class EmptyFoldError(FitError):
    """The fold's training slice holds no usable row, or none is left to validate on."""


class DivergedFitError(FitError):
    """The loss was not finite in any epoch."""


class ArtifactError(TrainingError):
    """A model file cannot be used."""


class MissingArtifactError(ArtifactError):
    """There is no model file at the path."""


class DamagedArtifactError(ArtifactError):
    """The file is truncated, altered, or not a model file."""


class ForeignArtifactError(ArtifactError):
    """The file is undamaged but does not fit the data it should predict."""


class ExportError(TrainingError):
    """A network cannot be written as ONNX, or the written graph computes something else."""
