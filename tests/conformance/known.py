"""Operators that are not clean in every mode, and why. The sweep fails on anything else.

An entry is ``name: (verdicts it may have, reason)``; a verdict of one mode only is ``"mode:verdict"``. Nothing may ever differ from the loop without being named here, and
what is named as differing says which of the two is right.
"""

DYNAMIC = "its result has as many elements as the values say: a precise error, with what to do instead"
READ = "gives a Python value, or reads one on the way, that differs from sample to sample: a precise error"
VIEW = "views its sample, and a sample that lies across the batch cannot be viewed so, nor can it in PyTorch"
SPARSE = "makes or takes sparse tensors, which have no batch dim of their own here"

KNOWN: dict[str, tuple[set[str], str]] = {
    "__getitem__": ({"error"}, DYNAMIC + ": a batched boolean mask"),
    "_batch_norm_with_update": (
        {"error", "fallback"},
        "updates running statistics that the samples share; else a loop",
    ),
    "_native_batch_norm_legit": (
        {"error", "fallback", "gradient:differs"},
        "updates running statistics that the samples share; else a loop. PyTorch's gradient leaves the saved statistics "
        "out, the decomposition does not",
    ),
    "_segment_reduce.lengths": ({"fallback"}, "segments of other lengths in every sample: no batched algorithm yet"),
    "_segment_reduce.offsets": ({"fallback"}, "segments of other lengths in every sample: no batched algorithm yet"),
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
    "native_batch_norm": (
        {"error", "sizes:differs", "out:differs"},
        "updates running statistics that the samples share; in evaluation mode an empty batch saves statistics, "
        "which one sample does not",
    ),
    "nn.functional.batch_norm": ({"error"}, "updates running statistics that the samples share"),
    "nn.functional.ctc_loss": ({"fallback"}, "the kernel reads its lengths on the CPU"),
    "nn.functional.embedding": (
        {"error"},
        "max_norm writes to the weight that samples share; scale_grad_by_freq counts",
    ),
    "nn.functional.embedding_bag": (
        {"fallback", "error"},
        "bags of other lengths in every sample: no batched algorithm yet; max_norm writes to the weight that samples share",
    ),
    "nn.functional.gaussian_nll_loss": ({"error"}, "PyTorch's own code asks whether the batched variance is negative"),
    "nn.functional.nll_loss": (
        {"jvp:differs"},
        "PyTorch's forward mode leaves out the tangent of the class weights; with batched weights ours gives the derivative",
    ),
    "nn.functional.instance_norm": ({"error"}, "updates running statistics that the samples share"),
    "nn.functional.linear_cross_entropy.chunked": (
        {"fallback", "sizes:error"},
        "a custom operator of PyTorch, whose own vmap rule loops and does not take an empty batch",
    ),
    "nn.functional.linear_cross_entropy.chunked_none": (
        {"fallback", "sizes:error", "vectors:error"},
        "a custom operator of PyTorch, whose own vmap rule loops and does not take an empty batch",
    ),
    "nn.functional.multi_head_attention_forward": ({"one_argument:error"}, VIEW),
    "nn.functional.one_hot": ({"error"}, "without num_classes an empty batch has no number of classes"),
    "nn.functional.rrelu": ({"fallback"}, "the in-place form writes its noise too"),
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
