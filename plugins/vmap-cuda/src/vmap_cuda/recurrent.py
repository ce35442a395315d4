"""cuDNN's recurrent layers and PyTorch's fused cells: with shared weights the mapped dim joins N."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vmap_core.extend import Level, RulePack, UnsupportedError, aten, user_location

from ._merge import Call, contiguous, merge_dims, split_dims

pack = RulePack("cuda.recurrent")
RNN = aten._cudnn_rnn.default
RNN_BACKWARD = aten._cudnn_rnn_backward.default


def _fold(info: Level, call: Call, rows: tuple[str, ...], states: tuple[str, ...]) -> Any:
    """Call an operator of cuDNN's once.

    (T, N, *) -> (T, B N, *), (L, N, H) -> (L, B N, H). Of a packed sequence (rows, I), each row is followed by the same
    row of the other samples; so are its states.

    Returns:
        The outputs, and functions that take rows and states apart again.
    """
    size, steps = info.batch_size, call.values["batch_sizes"]
    changes: dict[str, Any] = {"batch_sizes": [n * size for n in steps]}
    row_dim = 0 if steps or call.values["batch_first"] else 1
    for names, dim in ((rows, row_dim), (states, 1)):
        for name in names:
            x = call.front(name, size)
            if x is not None:  # cuDNN asks for contiguous states
                changes[name] = contiguous(x.movedim(0, dim + bool(steps)).flatten(dim, dim + 1))

    def apart(dim: int) -> Any:
        if steps:
            return lambda x: (x.unflatten(dim, (x.shape[dim] // size, size)), dim + 1) if _there(x) else (x, None)
        return lambda x: split_dims(size, x, dim) if _there(x) else (x, None)

    return call.run(**changes), apart(row_dim), apart(1)


def _there(x: Any) -> bool:
    """Tell a tensor from what cuDNN returns in the place of a cell state of layers without one."""
    return x is not None and x.ndim > 1


def _dropout(call: Call) -> bool:
    v = call.values
    return bool(v["dropout"] and v["train"] and v["num_layers"] > 1)


@pack.rule(RNN)
def cudnn_rnn(info: Level, in_dims: Any, *args: Any) -> Any:
    """(T, N, I), weights, (L, N, H), (L, N, H) -> (T, N, H), (L, N, H), (L, N, H), cuDNN's memory, the weights as one.

    That memory is of the whole call: the backward call wants it as it is.
    """
    call = Call(RNN, in_dims, args, {})
    if _dropout(call):
        info.require_randomness(RNN)
        if info.randomness == "same":
            raise UnsupportedError(
                f"vmap: cuDNN's dropout between recurrent layers draws on, from a state in memory, so samples cannot be "
                f"given the same numbers, at {user_location()}. Instead: randomness='different', or dropout=0 and dropout "
                f"between layers of your own."
            )
    elif not any(map(call.batched, call.dims)):
        return call.run(), None
    own = any(map(call.batched, ("weight", "weight_buf", "dropout_state")))
    if not info.batch_size or own:
        return call.looped(info, warn=bool(info.batch_size))
    (out, hy, cy, reserve, buffer), row, state = _fold(info, call, ("input",), ("hx", "cx"))
    outs, dims = zip(row(out), state(hy), state(cy), strict=True)
    return (*outs, reserve, buffer), (*dims, None, None)


@pack.rule(RNN_BACKWARD)
def cudnn_rnn_backward(info: Level, in_dims: Any, *args: Any) -> Any:
    """Gradients of the input (T, N, I), the states (L, N, H) and the weights."""
    call = Call(RNN_BACKWARD, in_dims, args, {})
    if not info.batch_size:
        dims = in_dims[1] if isinstance(in_dims[1], list | tuple) else [None] * len(args[1])
        each = [
            w.new_empty(0, *(n for k, n in enumerate(w.shape) if k != d)) for w, d in zip(args[1], dims, strict=True)
        ]
        empty = [call.empty(name) for name in ("input", "hx", "cx")]
        return (*empty, each if call.values["output_mask"][3] else []), 0
    of_all = call.batched("output") and not call.batched("reserve")
    if not of_all:
        return call.looped(info, function=_backward_of_one)
    if call.batched("weight") or call.batched("weight_buf") or call.values["output_mask"][3]:
        # a gradient of the weights for each sample: the kernel adds over N, and cuDNN's memory cannot be split
        if _dropout(call):
            raise UnsupportedError(
                f"vmap: gradients of shared weights for each sample, through cuDNN's recurrent layers with dropout, at "
                f"{user_location()}: the kernel adds over all samples. Instead: map over the weights too."
            )
        return call.looped(info, function=_forward_and_backward_of_one)
    rows, states = ("input", "output", "grad_output"), ("hx", "cx", "grad_hy", "grad_cy")
    (dx, dhx, dcx, dweight), row, state = _fold(info, call, rows, states)
    outs, dims = zip(row(dx), state(dhx), state(dcx), strict=True)
    return (*outs, dweight), (*dims, [None] * len(dweight))


def _backward_of_one(*args: Any) -> Any:
    """The backward call of one sample, which uses up cuDNN's memory: on a copy of it."""
    *rest, reserve, mask = args
    return RNN_BACKWARD(*rest, reserve.clone(), mask)


def _forward_and_backward_of_one(*args: Any) -> Any:
    """The backward call of one sample, after a forward call of its own."""
    call = Call(RNN_BACKWARD, (None,) * len(args), args, {})
    given = [call.values[a.name] for a in RNN._schema.arguments]
    *_, reserve, buffer = RNN(*given)
    return call.run(reserve=reserve, weight_buf=buffer)


# Fused cells: gates (N, G H) of the input and of the hidden state, states (N, H), biases (G H).


def _cell(op: Any, outputs: int) -> Any:
    def cell(info: Level, in_dims: Any, *args: Any) -> Any:
        """(N, G H), (N, G H), (N, H), (G H), (G H) -> (N, H)... and what the backward call wants, (N, *)."""
        call = Call(op, in_dims, args, {})
        size = info.batch_size
        if not size:
            return call.looped(info, warn=False)
        changes: dict[str, Any] = {}
        for gates, bias in (("input_gates", "input_bias"), ("hidden_gates", "hidden_bias")):
            if call.batched("input_bias") or call.batched("hidden_bias"):  # the kernel takes both or none
                total = call.front(gates, size) + call.front(bias, size).unsqueeze(1)
                none = total.new_zeros(total.shape[-1])  # not None, at which PyTorch's shape function fails
                changes |= {gates: total.flatten(0, 1), bias: none}
        names = [n for n in ("input_gates", "hidden_gates", "cx", "hx") if n not in changes]
        return split_dims(size, merge_dims(info, call, dict.fromkeys(names, 0), **changes), (0,) * outputs)

    return cell


pack.add(aten._thnn_fused_lstm_cell.default, _cell(aten._thnn_fused_lstm_cell.default, 3))
pack.add(aten._thnn_fused_gru_cell.default, _cell(aten._thnn_fused_gru_cell.default, 2))


@pack.rule(aten._thnn_fused_lstm_cell_backward_impl.default)
def lstm_cell_backward(info: Level, in_dims: Any, *args: Any) -> Any:
    """(N, H), (N, H), (N, H), (N, H), (N, 4 H) -> gradients (N, 4 H), (N, H), (4 H)."""
    call = Call(aten._thnn_fused_lstm_cell_backward_impl.default, in_dims, args, {})
    if not info.batch_size:
        return call.looped(info, warn=False)
    (gates, state, _), dims = _cell_gradients(info, call, ("grad_hy", "grad_cy", "cx", "cy", "workspace"), 2)
    bias = _bias(call, gates)
    return (gates, state, bias), (*dims, None if bias is None else 0)


@pack.rule(aten._thnn_fused_gru_cell_backward.default)
def gru_cell_backward(info: Level, in_dims: Any, *args: Any) -> Any:
    """(N, H), (N, 5 H) -> gradients (N, 3 H), (N, 3 H), (N, H), (3 H), (3 H)."""
    call = Call(aten._thnn_fused_gru_cell_backward.default, in_dims, args, {})
    if not info.batch_size:
        return call.looped(info, warn=False)
    (given, hidden, state, *_), dims = _cell_gradients(info, call, ("grad_hy", "workspace"), 3)
    bias_dim = 0 if call.values["has_bias"] else None
    return (given, hidden, state, _bias(call, given), _bias(call, hidden)), (*dims, bias_dim, bias_dim)


def _cell_gradients(info: Level, call: Call, names: tuple[str, ...], outputs: int) -> Any:
    """Call the kernel without biases, whose gradients it would add over all samples."""
    out = merge_dims(info, call, dict.fromkeys(names, 0), has_bias=False)
    apart, dims = split_dims(info.batch_size, out[:outputs], (0,) * outputs)
    return (*apart, *out[outputs:]), dims


def _bias(call: Call, gates: Tensor | None) -> Tensor | None:
    """(B, N, G H) -> (B, G H)."""
    return gates.sum(1) if gates is not None and call.values["has_bias"] else None
