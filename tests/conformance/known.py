"""Operators that are not clean in every mode, and why. The sweep fails on anything else.

An entry is ``name: (verdicts it may have, reason)``; a verdict of one mode only is ``"mode:verdict"``. Nothing may ever differ from the loop without being named here, and
what is named as differing says which of the two is right.
"""

DYNAMIC = "its result has as many elements as the values say: a precise error, with what to do instead"
READ = "gives a Python value, or reads one on the way, that differs from sample to sample: a precise error"
VIEW = "views its input, and a sample of it that lies across the batch cannot be viewed so, nor can it in PyTorch"
SPARSE = "makes or takes sparse tensors, which have no batch dim of their own here"

KNOWN: dict[str, tuple[set[str], str]] = {
    "__getitem__": ({"error"}, DYNAMIC + ": a batched boolean mask"),
    "_batch_norm_with_update": (
        {"error", "fallback"},
        "updates running statistics that the samples share; else a loop",
    ),
    "allclose": ({"error"}, READ),
    "argwhere": ({"error"}, DYNAMIC),
    "as_strided_scatter": (
        {"gradient:differs", "vjp:differs"},
        "PyTorch's backward gives the overwritten elements of self a gradient, and reads "
        "a gradient that is a view at the wrong offset; ours gives the derivative",
    ),
    "bincount": ({"sizes:differs"}, "its length is the greatest value plus one, which an empty batch does not have"),
    "bool": ({"error"}, READ),
    "clamp": (
        {"gradient:error"},
        "PyTorch's own backward fails when a bound has more dims than the tensor and all three require grad",
    ),
    "cov": ({"error"}, "PyTorch's own code asks whether the batched weights are positive"),
    "equal": ({"error"}, READ),
    "fft.ihfft2": (
        {"out:differs"},
        "PyTorch writes something else to out= than it returns (dim=0); ours writes the result",
    ),
    "fft.ihfftn": (
        {"out:differs"},
        "PyTorch writes something else to out= than it returns (dim=0); ours writes the result",
    ),
    "hash_tensor": ({"fallback"}, "a checksum of bits: the kernel has no batch dim"),
    "histogram": ({"fallback"}, "the kernel has no batch dim"),
    "histogramdd": ({"fallback", "error"}, "the kernel has no batch dim"),
    "index_put": ({"error"}, "through a batched boolean mask with a value for each true element: how many differs"),
    "istft": ({"error"}, "PyTorch's own code asks whether the batched window is zero somewhere"),
    "item": ({"error"}, READ),
    "masked_select": ({"error"}, DYNAMIC + " (an unbatched mask works)"),
    "max_pool2d_with_indices_backward": ({"error"}, "the decomposition does not take an empty batch"),
    "_native_batch_norm_legit": ({"error"}, "updates running statistics that the samples share"),
    "native_batch_norm": ({"error"}, "updates running statistics that the samples share"),
    "nn.functional.linear_cross_entropy.chunked": (
        {"gradient:differs", "vjp:differs"},
        "where all targets are ignored the mean is nan; PyTorch's chunks give it a gradient of nan, its reference and ours 0",
    ),
    "nn.functional.linear_cross_entropy.chunked_none": ({"vectors:error"}, "PyTorch's own backward writes in place"),
    "nn.functional.batch_norm": ({"error"}, "updates running statistics that the samples share"),
    "nn.functional.embedding_bag": (
        {"gradient:fallback", "vjp:fallback", "vjp:differs", "vectors:error"},
        "scale_grad_by_freq counts over all indices of a call, so each sample has a call; a sparse gradient is given dense",
    ),
    "nn.functional.instance_norm": ({"error"}, "updates running statistics that the samples share"),
    "nn.functional.one_hot": ({"error"}, "without num_classes an empty batch has no number of classes"),
    "nonzero": ({"error"}, DYNAMIC),
    "repeat_interleave": (
        {"sizes:differs"},
        "its length is the sum of the repeats, which an empty batch does not have",
    ),
    "resize_": (
        {"fallback", "error", "inplace:differs"},
        "leaves values undefined; a loop serves it. The tensor shows the new shape, the mapped input keeps its own",
    ),
    "resize_as_": ({"fallback", "error"}, "leaves values undefined; a loop serves it"),
    "sparse.mm.reduce": ({"fallback"}, SPARSE),
    "sparse.sampled_addmm": ({"fallback", "error"}, SPARSE),
    "take_along_dim": ({"mixed:error", "out:error"}, VIEW),
    "tensor_split": ({"error"}, "places to split at that differ from sample to sample give pieces of different sizes"),
    "to_sparse": ({"fallback", "error"}, SPARSE),
    "unique": ({"error"}, DYNAMIC),
    "unique_consecutive": ({"error"}, DYNAMIC),
    "view": ({"mixed:error"}, VIEW),
    "view_copy": ({"mixed:error", "out:error"}, VIEW),
}
