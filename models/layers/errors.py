"""Errors of the layers and networks.

LayerError (ValueError)
├── ShapeError        an input's shape, length or feature count is not the layer's
├── DtypeError        an input is not of a floating type that the layer computes in
├── NotFiniteError    NaN or infinity where a bar is said to be there
├── StateError        a state that this layer did not make, or made for another batch
├── SizeError         a layer cannot be built with these sizes or options
└── NotCausalError    a layer that reads the future was asked to forecast
"""

from __future__ import annotations


class LayerError(ValueError):
    """Something a layer or network cannot work with."""


class ShapeError(LayerError):
    """An input's shape, length or feature count is not the layer's."""


class DtypeError(LayerError):
    """An input is not of a floating type that the layer computes in."""


class NotFiniteError(LayerError):
    """NaN or infinity where a bar is said to be there."""


class StateError(LayerError):
    """A state that this layer did not make, or made for another batch."""


class SizeError(LayerError):
    """A layer cannot be built with these sizes or options."""


class NotCausalError(LayerError):
    """A layer that reads the future was asked to forecast."""
