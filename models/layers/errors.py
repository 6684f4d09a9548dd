"""The errors that layers and networks raise.

LayerError (ValueError)
├── ShapeError        an input's shape, length or feature count does not fit the layer
├── DtypeError        an input does not have a floating type that the layer computes in
├── NotFiniteError    NaN or infinity in a bar that is not padding
├── StateError        a state of another layer, or of another batch size
├── SizeError         a layer cannot be built with these sizes or options
└── NotCausalError    a layer that reads the future is used for a forecast
"""

from __future__ import annotations


class LayerError(ValueError):
    """An input or option that a layer or network cannot work with."""


class ShapeError(LayerError):
    """An input's shape, length or feature count does not fit the layer."""


class DtypeError(LayerError):
    """An input does not have a floating type that the layer computes in."""


class NotFiniteError(LayerError):
    """NaN or infinity in a bar that is not padding."""


class StateError(LayerError):
    """A state of another layer, or of another batch size."""


class SizeError(LayerError):
    """A layer cannot be built with these sizes or options."""


class NotCausalError(LayerError):
    """A layer that reads the future is used for a forecast."""
