"""Operators that are not clean in every mode, and why. The sweep fails on anything else, and on what is no longer so.

Nothing may ever differ from the loop without being named here, and what is named as differing says which of the two is right.
"""

from __future__ import annotations

from typing import Any, NamedTuple

TORCH = "2.13."  # what is listed was seen with this version; with another, an entry may no longer occur


class Known(NamedTuple):
    """A verdict that is known.

    Attributes:
        verdict: ``error``, ``differs`` or ``fallback``.
        error: the name of the error's class, exactly; empty where there is none.
        text: a part of the detail.
    """

    verdict: str
    error: str
    text: str


class Entry(NamedTuple):
    """What is known of an operator.

    Attributes:
        reason: why it is so.
        modes: for each mode, what occurs with the samples that CI takes; it fails if any does not.
        rare: the same, of what only the sweep of every sample meets.
    """

    reason: str
    modes: dict[str, tuple[Known, ...]]
    rare: dict[str, tuple[Known, ...]] = {}  # noqa: RUF012


def unknown(name: str, result: dict[str, Any]) -> list[str]:
    """Return what the sweep found of an operator that is not known."""
    entry = KNOWN.get(name, Entry("", {}))
    return [
        f"{mode}: {verdict}: {detail}"
        for mode, r in result.items()
        for verdict, detail in r["seen"]
        if not any(_is(k, verdict, detail) for k in (*entry.modes.get(mode, ()), *entry.rare.get(mode, ())))
    ]


def not_seen(name: str, result: dict[str, Any]) -> list[str]:
    """Return what is known of an operator and has not been found."""
    entry = KNOWN.get(name, Entry("", {}))
    return [
        f"{mode}: {k.verdict}"
        for mode, known in entry.modes.items()
        for k in known
        if not any(_is(k, verdict, detail) for verdict, detail in result.get(mode, {"seen": ()})["seen"])
    ]


def _is(known: Known, verdict: str, detail: str) -> bool:
    found = detail.partition(": ")[0] if verdict == "error" else ""
    return (known.verdict, known.error) == (verdict, found) and known.text in detail


def modes(names: str, *known: Known) -> dict[str, tuple[Known, ...]]:
    """Return the same verdicts for several modes."""
    return dict.fromkeys(names.split(), known)


def _loops(*operators: str) -> Known:
    return Known("fallback", "", ", ".join(operators))


ITEM = Known("error", "DataDependentError", "calling .item() on a Tensor")
CONTROL = Known("error", "DataDependentError", "data-dependent control flow")
SHAPE = Known("error", "DataDependentError", "can output dynamic shape")
STATISTICS = Known("error", "InplaceError", "would update running statistics")
SHARED = Known("error", "InplaceError", "has more elements than `self`")
LAYOUT = Known("differs", "", "Tensor-likes are not equal!")
VALUES = Known("differs", "", "Tensor-likes are not close")

DYNAMIC = "its result has as many elements as the values say: a precise error, with what to do instead"
READ = "gives a Python value, or reads one on the way, that differs from sample to sample: a precise error"
RUNNING = "updates running statistics that the samples share"
SPARSE = "makes or takes sparse tensors, which have no batch dim of their own here"
GAPS = "the result keeps gaps that its input has in memory; ours has none (docs/design.md, How samples lie in memory)"
IHFFT = "PyTorch writes something else to out= than it returns (dim=0); ours writes the result"

KNOWN: dict[str, Entry] = {
    "_batch_norm_with_update": Entry(
        "updates running statistics that the samples share; else a loop",
        modes("forward sizes jvp", _loops("aten._batch_norm_with_update.default"))
        | modes("one_argument", SHARED)
        | modes("mixed nested layout", SHARED, _loops("aten._batch_norm_with_update.default")),
    ),
    "_native_batch_norm_legit": Entry(
        RUNNING, modes("one_argument mixed layout out", STATISTICS) | modes("nested", SHARED, STATISTICS)
    ),
    "allclose": Entry(READ, modes("one_argument nested layout", CONTROL)),
    "argwhere": Entry(
        DYNAMIC + "; PyTorch's kernel lays it out by columns", modes("sizes", SHAPE) | modes("layout", LAYOUT)
    ),
    "as_strided_scatter": Entry(
        "PyTorch's backward gives the overwritten elements of self a gradient, and reads a gradient that is a view at the wrong offset; ours gives the derivative",
        modes("gradient vjp", VALUES),
    ),
    "bincount": Entry(
        "its length is the greatest value plus one, which an empty batch does not have",
        modes("sizes", Known("differs", "", "shape")),
    ),
    "diagonal_scatter": Entry(GAPS, modes("layout", LAYOUT)),
    "equal": Entry(READ, modes("one_argument nested layout", CONTROL)),
    "fft.ihfft2": Entry(IHFFT, {}, modes("out", VALUES)),
    "fft.ihfftn": Entry(IHFFT, modes("out", VALUES)),
    "hash_tensor": Entry(
        "a checksum of bits: the kernel has no batch dim",
        modes("forward nested sizes layout out", _loops("aten.hash_tensor.default")),
    ),
    "histogram": Entry(
        "the kernel has no batch dim", modes("forward nested sizes layout out", _loops("aten.histogram.bin_ct"))
    ),
    "histogramdd": Entry(
        "the kernel has no batch dim",
        modes(
            "forward mixed nested sizes layout",
            _loops("aten._histogramdd_bin_edges.default", "aten._histogramdd_from_bin_cts.default"),
            _loops("aten._histogramdd_from_bin_tensors.default"),
        )
        | modes("one_argument", _loops("aten._histogramdd_from_bin_tensors.default")),
    ),
    "index_put": Entry(
        "through a batched boolean mask with a value for each true element: how many differs",
        modes("sizes inplace", SHAPE),
    ),
    "istft": Entry(
        "of an empty batch PyTorch's code asks whether the window is zero somewhere, and there is no value to answer with",
        {},
        modes("sizes", Known("error", "RuntimeError", "The tensor has a non-zero number of elements, but its data")),
    ),
    "item": Entry(READ, modes("forward nested sizes layout", ITEM)),
    "masked_select": Entry(DYNAMIC + " (an unbatched mask works)", modes("sizes out", SHAPE)),
    "narrow": Entry(
        "a view at a place of each sample's own is gathered, and has the strides of a new tensor (docs/contract.md)",
        modes("layout", LAYOUT),
    ),
    "native_batch_norm": Entry(
        RUNNING, modes("one_argument mixed layout out", STATISTICS) | modes("nested", SHARED, STATISTICS)
    ),
    "native_group_norm": Entry(
        "PyTorch's kernel reads a weight or bias that is not contiguous as if it were; ours gives the right values",
        modes("layout", VALUES),
    ),
    "nn.functional.batch_norm": Entry(
        RUNNING, modes("one_argument mixed layout", STATISTICS) | modes("nested", SHARED, STATISTICS)
    ),
    "nn.functional.instance_norm": Entry(RUNNING, modes("one_argument mixed nested layout", SHARED)),
    "nn.functional.linear_cross_entropy.chunked": Entry(
        "where all targets are ignored the mean is nan; PyTorch's chunks give it a gradient of nan, its reference and ours 0",
        {},
        modes("gradient vjp", VALUES),
    ),
    "nn.functional.linear_cross_entropy.chunked_none": Entry(
        "PyTorch's own backward writes in place", modes("vectors", SHARED)
    ),
    "nn.functional.one_hot": Entry(
        "without num_classes an empty batch has no number of classes",
        modes("sizes", Known("error", "RuntimeError", "Can not infer total number of classes from empty tensor.")),
    ),
    "nonzero": Entry(DYNAMIC, modes("sizes out", SHAPE)),
    "resize_": Entry(
        "leaves values undefined; a loop serves it. The tensor shows the new shape, the mapped input keeps its own",
        modes("inplace", Known("differs", "", "shape")),
    ),
    "select_scatter": Entry(GAPS, modes("layout", LAYOUT)),
    "slice_scatter": Entry(GAPS, modes("layout", LAYOUT)),
    "sparse.mm.reduce": Entry(
        SPARSE,
        modes("forward mixed nested sizes layout gradient vjp", _loops("aten._sparse_mm_reduce_impl.default"))
        | modes("vectors", _loops("aten._sparse_mm_reduce_impl_backward.default")),
    ),
    "sparse.sampled_addmm": Entry(
        "a CSR tensor for each sample: PyTorch has no batch of those with its own places",
        modes("sizes", Known("error", "UnsupportedError", "aten.sparse_sampled_addmm.default on an empty batch gives"))
        | modes("layout", Known("error", "UnsupportedError", "a torch.sparse_csr tensor for each sample"))
        | modes(
            "vectors",
            Known("error", "UnsupportedError", "a torch.sparse_csr tensor for each sample"),
            Known("error", "UnsupportedError", "aten.sparse_mask.default on an empty batch gives no sparse"),
        ),
    ),
    "tensor_split": Entry(
        "places to split at that differ from sample to sample give pieces of different sizes", modes("sizes", ITEM)
    ),
    "unique": Entry(DYNAMIC, modes("sizes", SHAPE)),
    "unique_consecutive": Entry(DYNAMIC, modes("sizes", SHAPE)),
}
