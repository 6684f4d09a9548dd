"""The training room's error tree.

TrainingError
├── FitError                    a fold that has no network
│   ├── EmptyFoldError          its slice leaves nothing to learn from or to stop by
│   └── DivergedFitError        no epoch came to a finite loss
├── ArtifactError               a model file that cannot be used
│   ├── MissingArtifactError    no such file
│   ├── DamagedArtifactError    not the file that was written
│   └── ForeignArtifactError    a whole file, but of other features, symbols or a newer program
└── ExportError                 a network that has no ONNX form, or whose ONNX form says something else
"""


class TrainingError(Exception):
    """A fit or a prediction that could not be made."""


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
    """The file is cut, altered, or never was a model file."""


class ForeignArtifactError(ArtifactError):
    """The file is whole but does not fit what it is asked to predict."""


class ExportError(TrainingError):
    """A network cannot be written as ONNX, or what was written does not compute the same."""
