"""PyTorch's control-flow operators: torch.cond, while_loop, scan and map, as the sample has them.

Only the samples that take a branch run it, so the gradient of the other one is not asked for; a loop runs as long as any of its
samples does. Nothing is traced: the functions run as Python, once for each group of samples.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from vmap_core import vmap
from vmap_core.extend import (
    RulePack,
    UnsupportedError,
    map_leaves,
    narrow,
    physical_with_dims,
    rows_level,
    rows_of,
    taken_off,
    user_location,
)

from ._torch import higher_order
from .fork import Fork, one_answer, results

pack = RulePack("control_flow.operators")


@pack.logical(higher_order.cond)
def cond(info, pred, true_fn, false_fn, operands=()):
    """``true_fn(*operands)`` for the samples where ``pred`` is true, ``false_fn(*operands)`` for the others."""
    answer = one_answer(pred, "torch.cond")
    if answer is not None:
        with info.pushed():
            return (true_fn if answer else false_fn)(*operands)
    fork = Fork(info, pred, "torch.cond")
    groups = []
    with taken_off(fork.outer):
        hits = _hits(fork.all, pred)
        for function, places in ((true_fn, hits.nonzero()[:, 0]), (false_fn, hits.logical_not().nonzero()[:, 0])):
            level = rows_level([fork.all], [places])
            given = map_leaves(partial(narrow, level), operands)
            with level.pushed():
                out = function(*given)
            groups.append((places, results(level, out)))
        return fork.joined(groups, "torch.cond")


@pack.logical(higher_order.while_loop)
def while_loop(info, cond_fn, body_fn, carried_inputs, additional_inputs=()):
    """``body_fn`` on the carried tensors while ``cond_fn`` is true of them: for each sample as often as it says."""
    state = list(carried_inputs)
    with info.pushed():
        answer = cond_fn(*state, *additional_inputs)
        while known := one_answer(answer, "while_loop"):
            state = list(body_fn(*state, *additional_inputs))
            answer = cond_fn(*state, *additional_inputs)
    if known is False:
        return tuple(state)
    fork = Fork(info, answer, "while_loop")
    groups = []
    with taken_off(fork.outer):
        level = fork.all
        places = torch.arange(level.batch_size)
        while True:
            hits = _hits(level, answer)
            done, going = hits.logical_not().nonzero()[:, 0], hits.nonzero()[:, 0]
            if len(done) or not len(going):
                groups.append((places[done], [rows_of(level, x)[done] for x in state]))
                if not len(going):
                    return tuple(fork.joined(groups, "while_loop"))
                level, places = rows_level([level], [going]), places[going]
                state = map_leaves(partial(narrow, level), state)
            with level.pushed():
                state = list(body_fn(*state, *additional_inputs))
                answer = cond_fn(*state, *additional_inputs)


def _hits(level: Any, answer: Any) -> Any:
    """Return which of a level's samples a condition holds for."""
    answer = answer if isinstance(answer, torch.Tensor) else torch.tensor(answer)
    hits, dims = physical_with_dims(rows_of(level, answer).reshape(level.batch_size) != 0)
    if any(bdim is not None for _, bdim in dims):
        raise UnsupportedError(
            f"vmap: the condition of a while_loop, at {user_location()}, depends on the samples of an outer vmap, which it did not at "
            f"first. Instead: let it depend on them from the start (0 * outer)."
        )
    return hits


@pack.logical(higher_order.scan)
def scan(info, combine_fn, init, xs, additional_inputs=()):
    """``combine_fn`` on the carried tensors and one slice of ``xs`` after the other: the last carried ones, and what else it gives."""
    with info.pushed():
        carried, outputs = list(init), []
        for i in range(xs[0].shape[0]):
            out = list(combine_fn(*carried, *(x[i] for x in xs), *additional_inputs))
            carried = out[: len(init)]
            outputs.append(out[len(init) :])
        return [*carried, *(torch.stack(column) for column in zip(*outputs, strict=True))]


@pack.logical(higher_order.map_impl)
def map_impl(info, f, xs, pos_args, mutated_arg_indices=()):
    """``f`` on each slice of ``xs``: a vmap. PyTorch 2.15 tells which arguments the function writes to."""
    if mutated_arg_indices:
        raise UnsupportedError(
            f"vmap: the function of a map, at {user_location()}, writes to its arguments. Instead: let it return what it computes."
        )
    in_dims = (0,) * len(xs) + (None,) * len(pos_args)
    with info.pushed():
        return vmap(f, in_dims, randomness="error" if info.randomness == "error" else "different")(*xs, *pos_args)
