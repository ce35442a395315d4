"""Making a program smaller while its verdict stays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from .judge import Verdict
from .program import Input, Program, Statement


def shrink(program: Program, judge: Callable[[Program], Verdict], steps: int = 400) -> Program:
    """Return a smaller program with the same verdict.

    Args:
        program: to start with.
        judge: how it is run.
        steps: how many programs to try at most.
    """
    wanted = judge(program)
    tries = itertools.count()
    while next(tries) < steps:
        for smaller in _smaller(program):
            if next(tries) > steps:
                return program
            if _cost(smaller) < _cost(program) and judge(smaller).like(wanted):
                program = smaller
                break
        else:
            break
    return program


def _cost(p: Program) -> tuple[int, ...]:
    elements = sum(torch.Size(i.physical_shape(p.sizes)).numel() for i in p.inputs)
    odd = sum((d or 0) + (d is not None) for i in p.inputs for d in i.dims) + sum(
        bool(i.order) + (i.dtype is not torch.float32) for i in p.inputs
    )
    return len(p.statements), len(p.inputs), len(p.sizes), len(p.returns), elements + odd + p.out_dim % 2


def _smaller(p: Program) -> Iterator[Program]:
    for k in reversed(range(len(p.statements))):
        yield _without_statement(p, k)
    mentioned = set().union(*(s.mentioned() for s in p.statements), p.returns)
    for k, i in enumerate(p.inputs):
        if i.name not in mentioned and len(p.inputs) > 1:
            yield replace(p, inputs=(*p.inputs[:k], *p.inputs[k + 1 :]))
    for k in range(len(p.sizes) if len(p.sizes) > 1 else 0):
        inputs = tuple(_input(i, dims=(*i.dims[:k], *i.dims[k + 1 :])) for i in p.inputs)
        if all(any(i.dims[n] is not None for i in inputs) for n in range(len(p.sizes) - 1)):
            yield replace(p, inputs=inputs, sizes=(*p.sizes[:k], *p.sizes[k + 1 :]))
    for name in p.returns if len(p.returns) > 1 else ():
        yield replace(p, returns=tuple(n for n in p.returns if n != name))
    for k, size in enumerate(p.sizes):
        for less in range(1, size):
            yield replace(p, sizes=(*p.sizes[:k], less, *p.sizes[k + 1 :]))
    for size in {n for i in p.inputs for n in i.shape}:
        for less in range(1, size):
            shapes = [tuple(less if n == size else n for n in i.shape) for i in p.inputs]
            yield replace(p, inputs=tuple(_input(i, shape=s) for i, s in zip(p.inputs, shapes, strict=True)))
    for k, i in enumerate(p.inputs):
        for other in _smaller_inputs(i):
            inputs = (*p.inputs[:k], other, *p.inputs[k + 1 :])
            if all(any(i.dims[n] is not None for i in inputs) for n in range(len(p.sizes))):
                yield replace(p, inputs=inputs)
    if p.out_dim:
        yield replace(p, out_dim=0)


def _input(i: Input, **changed: object) -> Input:
    new = replace(i, order=(), **changed)  # type: ignore[arg-type]
    rank = len(new.shape)
    dims = list(new.dims)
    for k in reversed(range(len(dims))):
        d = dims[k]
        if d is not None:
            dims[k] = min(d, rank)
            rank += 1
    order = i.order if len(i.order) == rank else ()
    return replace(new, dims=tuple(dims), order=order)


def _smaller_inputs(i: Input) -> Iterator[Input]:
    for k, d in enumerate(i.dims):
        if d is not None:
            yield _input(i, dims=(*i.dims[:k], None, *i.dims[k + 1 :]))
            if d:
                yield _input(i, dims=(*i.dims[:k], 0, *i.dims[k + 1 :]))
    if i.order:
        yield replace(i, order=())
    if i.dtype is not torch.float32 and not i.below:
        yield replace(i, dtype=torch.float32)
    for d in range(len(i.shape)):
        yield _input(i, shape=(*i.shape[:d], *i.shape[d + 1 :]))
        if i.shape[d] > 1:
            yield _input(i, shape=(*i.shape[:d], i.shape[d] - 1, *i.shape[d + 1 :]))


def _without_statement(p: Program, k: int) -> Program:
    """Leave out a statement, those that use what it makes, and what they return."""
    lost = set(p.statements[k].made())
    kept: list[Statement] = list(p.statements[:k])
    for s in p.statements[k + 1 :]:
        if s.mentioned() & lost:
            lost |= set(s.made())
        else:
            kept.append(s)
    returns = tuple(n for n in p.returns if n not in lost) or (p.inputs[0].name,)
    return replace(p, statements=tuple(kept), returns=returns)
