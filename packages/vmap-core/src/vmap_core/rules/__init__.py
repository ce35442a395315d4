"""The core's own rules, a file per family of operators."""

from . import (
    cast,
    composite,
    dynamic,
    factory,
    fft,
    foreach,
    getitem,
    hooks,
    index,
    join,
    matmul,
    pointwise,
    properties,
    random,
    read,
    reduction,
    reshape,
    scatter,
    sorting,
    storage,
    tensor_methods,
    view,
)

packs = [
    module.pack
    for module in (
        cast,
        composite,
        dynamic,
        factory,
        fft,
        foreach,
        getitem,
        hooks,
        index,
        join,
        matmul,
        pointwise,
        properties,
        random,
        read,
        reduction,
        reshape,
        scatter,
        sorting,
        storage,
        tensor_methods,
        view,
    )
]
