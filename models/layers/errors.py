"""The errors that layers and networks raise.

LayerError (ValueError)
├── ShapeError        an input's shape, length or feature count does not fit the layer
├── DtypeError        an input does not have a floating type that the layer computes in
├── NotFiniteError    a value of a real bar, or a gap, is NaN or infinite; or a gap is negative
├── StateError        a state belongs to another layer or batch size, or is not float32 or float64
├── SizeError         a layer cannot be built with these sizes or options
└── NotCausalError    a layer that reads later bars is used for a forecast
"""

from __future__ import annotations


class LayerError(ValueError):
    """An input or option that a layer or network cannot work with."""


class ShapeError(LayerError):
    """An input's shape, length or feature count does not fit the layer."""


class DtypeError(LayerError):
    """An input does not have a floating type that the layer computes in."""


class NotFiniteError(LayerError):
    """A value of a real bar, or a gap, is NaN or infinite; or a gap is negative."""


class StateError(LayerError):
    """A state belongs to another layer or batch size, or is not float32 or float64."""


class SizeError(LayerError):
    """A layer cannot be built with these sizes or options."""


class NotCausalError(LayerError):
    """A layer that reads later bars is used for a forecast."""
