"""The core's own rules, a file per family of operators."""

from . import cast, getitem, index, join, matmul, pointwise, read, reduction, scatter, sorting, tensor_methods, view

packs = [
    module.pack
    for module in (
        cast,
        getitem,
        index,
        join,
        matmul,
        pointwise,
        read,
        reduction,
        scatter,
        sorting,
        tensor_methods,
        view,
    )
]
