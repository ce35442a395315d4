"""`torch.autograd.grad` inside a mapped function.

Autograd records the physical operations, below vmap. So a gradient inside is an ordinary gradient of physical tensors,
and what is to be decided is only how the samples are kept apart:

- batched outputs, batched inputs: they are apart already, one physical backward pass serves all samples;
- unbatched graph, batched ``grad_outputs`` (rows of a Jacobian): the engine runs once, on lowered vectors;
- batched outputs, an input shared by all samples: one lowered vector per sample picks that sample's outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import BatchedTensor, Level, RulePack, run_lowered, unwrap, user_location, wrap

pack = RulePack("autograd.grad")


@pack.logical(torch.autograd.grad)
def grad(
    info: Level,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor | None] | Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """Per-sample gradients: (outputs, inputs, grad_outputs), each batched or not -> gradients of the inputs."""
    outputs, inputs = _tuple(outputs), _tuple(inputs)
    vectors = _tuple(grad_outputs) if grad_outputs is not None else (None,) * len(outputs)
    options: dict[str, Any] = {
        "create_graph": create_graph,
        "allow_unused": allow_unused,
        "materialize_grads": materialize_grads,
    }
    if is_grads_batched:
        options["is_grads_batched"] = True
    keep = create_graph if retain_graph is None else retain_graph
    out_values, out_dims, outputs_batched = unwrap(info, outputs)
    in_values, in_dims, inputs_batched = unwrap(info, inputs)
    if not outputs_batched and not inputs_batched:
        return _through_shared_graph(info, out_values, in_values, vectors, keep, options)
    lead = 1 if is_grads_batched else 0
    seeds = [_seed(info, o, d, v, lead) for o, d, v in zip(out_values, out_dims, vectors, strict=True)]
    shared = [i for i, d in enumerate(in_dims) if d is None]
    own = [i for i, d in enumerate(in_dims) if d is not None]
    results: list[Any] = [None] * len(inputs)
    if own:
        grads = torch.autograd.grad(
            out_values, [in_values[i] for i in own], seeds, retain_graph=keep or bool(shared), **options
        )
        for i, g in zip(own, grads, strict=True):
            results[i] = wrap(info, g, in_dims[i] + lead if g is not None else None)
    if shared:
        grads = _of_shared_inputs(info, out_values, out_dims, [in_values[i] for i in shared], seeds, keep, options)
        for i, g in zip(shared, grads, strict=True):
            results[i] = g
    return tuple(results)


def _tuple(x: Any) -> tuple[Any, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


def _seed(info: Level, output: Any, bdim: int | None, vector: Any, lead: int) -> Any:
    """Return the physical vector for one physical output."""
    if vector is None:
        samples = 1 if bdim is None else output.shape[bdim]
        if samples and output.numel() // samples != 1:
            raise RuntimeError("grad can be implicitly created only for scalar outputs")
        return torch.ones_like(output)
    (value,), (v_dim,), _ = unwrap(info, (vector,))
    if bdim is None:
        if v_dim is not None:
            raise RuntimeError(
                f"vmap: torch.autograd.grad at {user_location()} mixes batched outputs with a batched vector for an "
                f"unbatched output; split it into two calls"
            )
        return value
    target = bdim + lead
    return (
        value.unsqueeze(target).expand(*value.shape[:target], info.batch_size, *value.shape[target:])
        if (v_dim is None)
        else value.movedim(v_dim, target)
    )


def _through_shared_graph(
    info: Level, outputs: Any, inputs: Any, vectors: Any, keep: bool, options: dict[str, Any]
) -> tuple[Any, ...]:
    """Run the engine once, with all samples' vectors: its formulas reach us through the dispatcher."""

    def engine(*lowered: Any) -> Any:
        return torch.autograd.grad(outputs, inputs, lowered, retain_graph=keep, **options)

    grads = run_lowered(info, engine, tuple(vectors), {}, mode=False)
    return tuple(g if type(g) is BatchedTensor or g is None else wrap(info, g, None) for g in grads)


def _of_shared_inputs(
    info: Level, outputs: Any, out_dims: Any, inputs: Any, seeds: Any, keep: bool, options: dict[str, Any]
) -> tuple[Any, ...]:
    """Per-sample gradients of inputs that all samples share: vector ``i`` is zero but for sample ``i``."""
    warnings.warn(
        f"vmap: torch.autograd.grad at {user_location()} differentiates with respect to a tensor from outside the "
        f"mapped function. This takes one vector per sample; `w = w.detach().requires_grad_()` inside the function, "
        f"before it is used, makes per-sample gradients cost one backward pass.",
        stacklevel=2,
    )
    eye = torch.eye(info.batch_size, dtype=torch.bool, device=outputs[0].device)
    vectors = []
    for output, bdim, seed in zip(outputs, out_dims, seeds, strict=True):
        if bdim is None:  # every sample has this output, and its whole gradient
            vectors.append(seed)
            continue
        mask = eye.reshape(info.batch_size, *(info.batch_size if d == bdim else 1 for d in range(output.ndim)))
        vectors.append(BatchedTensor(torch.where(mask, seed, torch.zeros_like(seed)), 0, info))
    return _through_shared_graph(info, outputs, inputs, vectors, keep, options)
