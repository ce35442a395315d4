"""The core's own rules, a file per family of operators."""

from . import pointwise, tensor_methods

packs = [pointwise.pack, tensor_methods.pack]
