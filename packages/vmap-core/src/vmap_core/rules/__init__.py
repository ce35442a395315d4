"""The core's own rules, a file per family of operators."""

from . import join, matmul, pointwise, reduction, sorting, tensor_methods, view

packs = [pointwise.pack, tensor_methods.pack, view.pack, join.pack, reduction.pack, sorting.pack, matmul.pack]
