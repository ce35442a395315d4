"""Calls that an operator refuses: mapped, they must raise, too. ``python -m tests.conformance.refusals --samples 0``.

They are made from OpInfo: its ``error_inputs``, and its samples with one tensor spoiled: of a rank more or less, with a
size off, of another dtype. What the loop raises on, vmap must raise on.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from vmap_core.testing import loop, mapped

from .cases import _function, function_of
from .sweep import dtype_of, entries, full_name, implementation, is_random

DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.complex64)


def spoiled(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors like one, each with one thing changed, and what that is."""
    yield "a dim more in front", x.unsqueeze(0)
    yield "a dim more at the end", x.unsqueeze(-1)
    if x.ndim:
        yield "a dim less", x.select(0, 0) if x.shape[0] else x.new_zeros(x.shape[1:])
        for d in {0, x.ndim - 1}:
            yield f"dim {d} longer", torch.cat([x, x.narrow(d, 0, 1)], d) if x.shape[d] else x.new_zeros(*x.shape, 1)
            if x.shape[d] > 1:
                yield f"dim {d} shorter", x.narrow(d, 0, x.shape[d] - 1)
    for dtype in DTYPES:
        if dtype != x.dtype:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield f"{dtype}", x.to(dtype)


def calls(op: Any, limit: int | None, seed: int) -> Iterator[tuple[str, Any, list[Tensor]]]:
    """Yield calls that may be refused: a label, the function of its tensors, and one sample's tensors.

    Args:
        op: an OpInfo entry.
        limit: how many of them, drawn at random; None: all.
        seed: for the draw.
    """
    torch.manual_seed(0)
    found = []
    for k, sample in enumerate(op.sample_inputs("cpu", dtype_of(op), requires_grad=False)):
        taken = _taken(op, sample)
        if taken is None or k >= MOST:
            continue
        function, tensors = taken
        for i, x in enumerate(tensors):
            found += [
                (f"sample {k}, tensor {i}: {how}", function, [*tensors[:i], bad, *tensors[i + 1 :]])
                for how, bad in spoiled(x)
            ]
    try:
        errors = list(op.error_inputs("cpu")) if op.error_inputs_func else []
    except Exception:  # some need a GPU
        errors = []
    for k, error in enumerate(errors):
        taken = _taken(op, error.sample_input)
        if taken is not None:
            found.append((f"error input {k}", *taken))
    yield from found if limit is None else random.Random(seed).sample(found, min(limit, len(found)))


OUT_OF_BOUNDS = {"lu_unpack"}  # PyTorch itself writes out of bounds where the pivots are not its own: no call is made
# Calls that are permitted though the loop refuses them, and why: a part of the label and of the loop's error.
PERMITTED = {
    "index_put": (
        "INTERNAL ASSERT",
        "PyTorch's own fault: a mask without dims that is False is no error in its words, and the values say which it is",
    ),
}
MOST = 40  # samples of one entry, whose shapes repeat


def _taken(op: Any, sample: Any) -> tuple[Any, list[Tensor]] | None:
    leaves, spec = tree_flatten(((sample.input, *sample.args), dict(sample.kwargs)))
    places = [i for i, a in enumerate(leaves) if isinstance(a, Tensor) and a.layout == torch.strided]
    tensors = [leaves[i].detach().clone() for i in places]
    if not places or any(t.device.type != "cpu" for t in tensors):
        return None
    return _function(function_of(op), spec, leaves, places), tensors


def permitted(vmap: Any, function: Any, sample: list[Tensor]) -> str | None:
    """Return how a call returned values where the loop raises; an empty string if none did, None if the loop takes it."""
    n = len(sample)
    all_mapped: tuple[int | None, ...] = (0,) * n
    choices = dict.fromkeys([all_mapped, *(tuple(0 if j == k else None for j in range(n)) for k in range(n))])
    try:
        loop(function, [torch.stack([t, t]) for t in sample], [all_mapped])
    except Exception as error:
        refusal = error
    else:
        return None
    for dims in choices:
        tensors = [t.clone() if d is None else torch.stack([t, t]) for t, d in zip(sample, dims, strict=True)]
        try:
            got = mapped(vmap, function, tensors, [dims], randomness="different")
        except Exception:
            continue
        shapes = [(str(t.dtype)[6:], *t.shape) for t in sample]
        return f"in_dims {dims}, {shapes}: {[tuple(g.shape) for g in got]}; the loop: {refusal!r:.150}"
    return ""


def refusals_of(op: Any, limit: int | None, seed: int = 0, impl: str = "vmap_core") -> tuple[int, list[str]]:
    """Return how many calls of an entry the loop refuses, and those that vmap permits."""
    vmap, count, bad = implementation(impl), 0, []
    if dtype_of(op) is None or full_name(op) in OUT_OF_BOUNDS or is_random(op):
        return 0, []
    for label, function, sample in calls(op, limit, seed):
        found = permitted(vmap, function, sample)
        count += found is not None
        if found:
            bad.append(f"{label}, {found}")
    return count, bad


def apart(seconds: int, *args: Any) -> tuple[int, list[str]]:
    """Do what `refusals_of` does in a process of its own: where PyTorch itself leaves a tensor's memory, that dies.

    Raises:
        RuntimeError: it did, or took longer, or raised something.
    """
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        try:
            signal.alarm(seconds)
            said = json.dumps(refusals_of(*args))
        except BaseException as error:
            said = json.dumps([-1, [repr(error)[:300]]])
        with open(send, "w") as pipe:
            pipe.write(said)
        os._exit(0)
    os.close(send)
    with open(receive) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    count, bad = json.loads(said) if said and not status else (-1, [f"the process died: {status}"])
    if count < 0:
        raise RuntimeError(bad[0])
    return count, bad


def main() -> None:
    """Run the sweep and print what is permitted, and how many calls there were."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ops", default="", help="regular expression on names")
    parser.add_argument("--samples", type=int, default=0, help="invalid calls of each entry (default 0: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=60, help="time an entry may take")
    parser.add_argument("--impl", default="vmap_core", choices=["vmap_core", "torch"])
    parser.add_argument("--share", default="0/1", help="k/n: only every n-th entry, from the k-th")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    implementation(options.impl)(torch.sin)(torch.ones(2))  # what is loaded at the first use need not be by each child

    k, n = map(int, options.share.split("/"))
    total: collections.Counter[str] = collections.Counter()
    for op in entries(options.ops)[k::n]:
        print(full_name(op), file=sys.stderr)
        try:
            count, bad = apart(options.seconds, op, options.samples or None, options.seed, options.impl)
        except Exception as error:
            print(f"{full_name(op)}: not run: {error!r:.200}")
            continue
        total.update(operators=1, refused=count, permitted=len(bad), operators_that_permit=bool(bad))
        if bad:
            print(f"{full_name(op)}: {len(bad)} of {count}: {bad[0]}", flush=True)
    print(dict(total))


if __name__ == "__main__":
    main()
