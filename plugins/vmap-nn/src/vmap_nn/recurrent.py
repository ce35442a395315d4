"""RNN, GRU, LSTM: with shared weights the mapped dim is folded into N; members' own weights step with one bmm each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import DataDependentError, Level, RulePack, aten, ensure_bdim, logical_rank, user_location

from ._torch import dual_level

pack = RulePack("nn.recurrent")

State = tuple[Tensor, ...]


def _lstm(gates: Tensor, state: State) -> State:
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(given: Tensor, hidden: Tensor, state: State) -> State:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = given.chunk(3, -1), hidden.chunk(3, -1)
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return ((state[0] - n) * (x_z + h_z).sigmoid() + n,)


@dataclass(frozen=True)
class Cell:
    """One kind of recurrent layer.

    Attributes:
        name: as in ATen.
        gates: number of gates, whose weights lie one after the other.
        states: number of hidden states.
        step: what the gates (B, N, gates * H) and the old state make of the state. GRU's takes the gates of the input
            and those of the hidden state apart, all others their sum.
    """

    name: str
    gates: int
    states: int
    step: Callable[..., State]

    def given(self, x: Tensor, params: Sequence[Any]) -> Tensor:
        """(B, rows, I) -> the input's part of the gates; all biases are in it if the parts are summed."""
        w_ih, _, b_ih, b_hh, _ = params
        return _affine(x, w_ih.mT, b_ih if b_ih is None or self.step is _gru else b_ih + b_hh)

    def next(self, given: Tensor, state: State, params: Sequence[Any]) -> State:
        """Take one step: (B, N, gates * H), (B, N, H) -> (B, N, H). The hidden weights are (B, H, gates * H) here."""
        _, w_hh, _, b_hh, projection = params
        if self.step is _gru:
            new = self.step(given, _affine(state[0], w_hh, b_hh), state)
        else:
            new = self.step(torch.baddbmm(given, state[0], w_hh), state)
        return new if projection is None else (new[0] @ projection.mT, *new[1:])


CELLS = (
    Cell("lstm", 4, 2, _lstm),
    Cell("gru", 3, 1, _gru),
    Cell("rnn_tanh", 1, 1, lambda gates, state: (gates.tanh(),)),
    Cell("rnn_relu", 1, 1, lambda gates, state: (gates.relu(),)),
)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, N, I), (B, I, G), (B, G) -> (B, N, G)."""
    return x @ weight if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight)


def _run(cell: Cell, x: Tensor, state: State, params: Sequence[Any], counts: list[int], reverse: bool) -> Any:
    """One layer in one direction, step by step.

    Args:
        cell: the kind.
        x: (B, rows, I), the rows of all steps one after the other.
        state: (B, N, H) each.
        params: w_ih (B, G, I), w_hh (B, G, H), b_ih and b_hh (B, G) or None, projection (B, P, H) or None.
        counts: number of rows of each step; N, or fewer and fewer where sequences end.
        reverse: whether to start with the last step.

    Returns:
        (B, rows, H), and the last state.
    """
    steps = cell.given(x, params).split(counts, 1)
    w_ih, w_hh, *rest = params
    params = (w_ih, w_hh.mT.contiguous() if len(counts) > 2 else w_hh.mT, *rest)  # a copy is soon made good
    outputs = []
    for given in reversed(steps) if reverse else steps:
        n, total = given.shape[1], state[0].shape[1]
        live = state if n == total else tuple(s[:, :n] for s in state)
        new = cell.next(given, live, params)
        outputs.append(new[0])
        state = new if n == total else tuple(torch.cat((a, s[:, n:]), 1) for a, s in zip(new, state, strict=True))
    return torch.cat(outputs[::-1] if reverse else outputs, 1), state


@dataclass(frozen=True)
class Call:
    """A call of a recurrent operator, its arguments sorted.

    Attributes:
        op: the overload.
        packed: whether the input is (rows, I) and ``lead`` the number of rows of each step.
        lead: what comes before the hidden states: nothing, or the batch sizes (steps).
        hx: the hidden states (layers * directions, N, H).
        params: of each layer and direction.
        batch_first: whether the input is (N, T, I), not (T, N, I).
        Others: as in ATen.
    """

    cell: Cell
    op: Any
    packed: bool
    lead: tuple[Tensor, ...]
    hx: list[Tensor]
    hx_dims: list[int | None]
    params: list[Tensor]
    param_dims: list[int | None]
    has_biases: bool
    layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool

    @property
    def directions(self) -> int:
        """One, or two."""
        return 2 if self.bidirectional else 1


def _folded(call: Call, info: Level, x: Tensor, bdim: int | None) -> Any:
    """Shared weights: (T, N, I) -> (T, B * N, I), and for packed rows (rows, I) -> (rows * B, I)."""
    size = info.batch_size
    at = 1 if call.packed or not call.batch_first else 0  # where the mapped dim goes, beside N
    hidden_at = 2 if call.packed else 1  # a packed row is followed by the same row of the other samples
    x = ensure_bdim(x, bdim, size).movedim(0, at)
    kept = x.shape
    x = x.flatten(0, 1) if call.packed or at == 0 else x.flatten(1, 2)
    states = []
    for h, d in zip(call.hx, call.hx_dims, strict=True):
        states.append(ensure_bdim(h, d, size).movedim(0, hidden_at).flatten(1, 2))
    lead = tuple(sizes * size for sizes in call.lead)
    out, *last = _emit(call, lead, x, states, call.params, call.layers, call.dropout if call.train else 0.0)
    features = out.shape[-1]
    out = out.reshape(*kept[:-1], features)
    rows = call.hx[0].shape[1 if call.hx_dims[0] is None or call.hx_dims[0] > 1 else 2]
    pair = (rows, size) if call.packed else (size, rows)
    return (out, *(s.unflatten(1, pair) for s in last)), (at, *(hidden_at,) * len(last))


def _emit(call: Call, lead: Any, x: Tensor, states: Any, params: Any, layers: int, dropout: float) -> Any:
    hidden = list(states) if call.cell.states == 2 else states[0]
    options = (call.has_biases, layers, dropout, call.train, call.bidirectional)
    return call.op(x, *lead, hidden, params, *options, *(() if call.packed else (call.batch_first,)))


def _stepped(call: Call, info: Level, x: Tensor, bdim: int | None) -> Any:
    """Members' own weights, or one dropout mask for all samples: layer by layer, step by step, with a batch in front."""
    size = info.batch_size
    x = ensure_bdim(x, bdim, size)
    if not call.packed:
        x = x.movedim(1, 2) if call.batch_first else x
        length, n = x.shape[1:3]
        counts = [n] * length
        x = x.flatten(1, 2)
    else:
        counts = call.lead[0].tolist()
    states = [ensure_bdim(h, d, size) for h, d in zip(call.hx, call.hx_dims, strict=True)]
    params = [ensure_bdim(p, d, size) for p, d in zip(call.params, call.param_dims, strict=True)]
    each = _each_direction(call, params, states, counts)
    last: list[State] = []
    for layer in range(call.layers):
        outputs = []
        for direction in range(call.directions):
            k = layer * call.directions + direction
            state = tuple(s[:, k] for s in states)
            out, state = _run(call.cell, x, state, each[k], counts, reverse=direction == 1)
            outputs.append(out)
            last.append(state)
        x = torch.cat(outputs, -1) if len(outputs) == 2 else outputs[0]
        if call.train and call.dropout and layer < call.layers - 1:
            x = _dropout(call, info, x, counts)
    if not call.packed:
        x = x.unflatten(1, (length, n))
        x = x.movedim(2, 1) if call.batch_first else x
    return (x, *(torch.stack(s, 1) for s in zip(*last, strict=True))), 0


def _kernel_is_faster(call: Call, info: Level, x: Tensor, bdim: int | None) -> bool:
    """Tell whether oneDNN's kernel for one member after the other takes less time than a product of all for each step.

    That kernel is an LSTM's, and its derivative has no second one. Measured with one thread: its call for a member costs as
    much as four steps, and a member's share of the steps as much again for every 200,000 multiplications.
    """
    tensors = (x, *call.hx, *call.params)
    if (
        call.cell.name != "lstm" or call.packed or not _onednn_serves(x) or call.hx[0].shape[-1] != call.hx[1].shape[-1]
        or dual_level() >= 0 or any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors)
        or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    ):  # fmt: skip
        return False
    first, second, width = (n for i, n in enumerate(x.shape) if i != bdim)
    steps, height = second if call.batch_first else first, call.hx[0].shape[-1]
    products = first * second * height * (width + height)
    return info.batch_size > 0 and steps / (4 * info.batch_size) + products / 200_000 > 1


def _onednn_serves(x: Tensor) -> bool:
    onednn: Any = torch.backends.mkldnn
    there: bool = onednn.enabled and onednn.is_available()
    return there and x.device.type == "cpu" and x.dtype is torch.float32 and x.numel() > 0


def _looped(call: Call, info: Level, x: Tensor, bdim: int | None) -> Any:
    """Members' own weights: the kernel for one after the other."""
    size = info.batch_size
    given = [(x, bdim), *zip(call.hx, call.hx_dims, strict=True), *zip(call.params, call.param_dims, strict=True)]
    members = zip(*[(t,) * size if d is None else t.unbind(d) for t, d in given], strict=True)
    hidden = 1 + len(call.hx)
    outs = [_emit(call, call.lead, own[0], own[1:hidden], own[hidden:], call.layers, 0.0) for own in members]
    return tuple(map(torch.stack, zip(*outs, strict=True))), 0


def _dropout(call: Call, info: Level, x: Tensor, counts: list[int]) -> Tensor:
    """(B, rows, H): other elements for every sample, or the same."""
    if info.randomness == "different":
        return torch.nn.functional.dropout(x, call.dropout)
    shape = x.shape[1:] if call.packed else (len(counts), counts[0], x.shape[-1])
    mask = torch.nn.functional.dropout(torch.ones(shape, dtype=x.dtype, device=x.device), call.dropout)
    return x * mask.reshape(x.shape[1:])


def _each_direction(call: Call, params: list[Tensor], states: list[Tensor], counts: list[int]) -> list[list[Any]]:
    """Return w_ih, w_hh, b_ih, b_hh, projection of each layer and direction; refuse what the kernel refuses."""
    runs = call.layers * call.directions
    per, rest = divmod(len(params), runs)
    biases = 2 if call.has_biases else 0
    if rest or per not in (2 + biases, 3 + biases):
        raise RuntimeError(f"{call.cell.name}: got an incorrect number of RNN parameters ({len(params)})")
    each = []
    for i in range(0, len(params), per):
        weights = params[i : i + 2]
        bias = params[i + 2 : i + 4] if biases else [None, None]
        each.append([*weights, *bias, params[i + 2 + biases] if per > 2 + biases else None])
    height = each[0][1].shape[1] // call.cell.gates
    width = each[0][1].shape[2]
    for s, h in zip(states, (width, height), strict=False):
        expected = (runs, counts[0] if counts else 0, h)
        if tuple(s.shape[1:]) != expected:
            raise RuntimeError(f"{call.cell.name}: Expected hidden size {expected}, got {tuple(s.shape[1:])}")
    for k, direction in enumerate(each):
        if any(p is not None and p.shape[1] != call.cell.gates * height for p in direction[:4]):
            raise RuntimeError(f"{call.cell.name}: the weights of layer {k // call.directions} have different sizes")
    if not counts:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    return each


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _layers(cell: Cell, op: Any, packed: bool) -> Any:
    """Make the rule of a whole stack of layers."""

    def layers(info: Level, in_dims: Any, x: Tensor, *given: Any) -> Any:
        """(T, N, I) or (rows, I), (L, N, H) -> (T, N, H) or (rows, H), (L, N, H)."""
        args, dims = list(given), list(in_dims[1:])
        lead: tuple[Tensor, ...] = ()
        if packed:
            lead = (args.pop(0),)
            if dims.pop(0) is not None:
                raise DataDependentError(
                    f"vmap: {cell.name} of a packed sequence whose lengths differ from sample to sample, at "
                    f"{user_location()}. Instead: pack with the lengths that all samples share."
                )
        hx, params, has_biases, count, dropout, train, bidirectional, *first = args
        hx, params = _flat(hx), _flat(params)
        hx_dims = _flat(dims[0]) if isinstance(dims[0], list | tuple) else [dims[0]] * len(hx)
        param_dims = _flat(dims[1]) if isinstance(dims[1], list | tuple) else [dims[1]] * len(params)
        rank = logical_rank(x, in_dims[0])
        if rank != (2 if packed else 3):
            raise RuntimeError(f"{cell.name}: expected an input of {2 if packed else 3} dims, got {rank}")
        call = Call(
            cell, op, packed, lead, hx, hx_dims, params, param_dims, has_biases, count, dropout, train, bidirectional,
            bool(first and first[0]),
        )  # fmt: skip
        random = train and dropout and count > 1
        if random:
            info.require_randomness(op)
        shared = all(d is None for d in param_dims) and info.batch_size
        if shared and not (random and info.randomness == "same"):
            return _folded(call, info, x, in_dims[0])
        if not random and _kernel_is_faster(call, info, x, in_dims[0]):
            return _looped(call, info, x, in_dims[0])
        return _stepped(call, info, x, in_dims[0])

    return layers


def _one_step(cell: Cell, op: Any) -> Any:
    """Make the rule of one step."""

    def one_step(
        info: Level, in_dims: Any, x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None
    ) -> Any:
        """(N, I), (N, H) -> (N, H)."""
        x_bdim, hx_bdim, *weight_dims = (*in_dims, None, None)[:6]
        hx_dims = _flat(hx_bdim) if isinstance(hx_bdim, list | tuple) else [hx_bdim] * cell.states
        size = info.batch_size
        x = ensure_bdim(x, x_bdim, size)
        states = tuple(ensure_bdim(h, d, size) for h, d in zip(_flat(hx), hx_dims, strict=True))
        if any(t.ndim != 3 for t in (x, *states)) or any(s.shape[1] != x.shape[1] for s in states):
            shapes = [tuple(t.shape[1:]) for t in (x, *states)]
            raise RuntimeError(f"{cell.name}_cell: expected (N, I) and (N, H) of one N, got {shapes}")
        if all(d is None for d in weight_dims):
            flat = [s.flatten(0, 1) for s in states]
            out = op(x.flatten(0, 1), flat if cell.states == 2 else flat[0], w_ih, w_hh, b_ih, b_hh)
            outs = tuple(o.unflatten(0, x.shape[:2]) for o in _flat(out))
        else:
            given = zip((w_ih, w_hh, b_ih, b_hh), weight_dims, strict=True)
            params: list[Any] = [p if p is None else ensure_bdim(p, d, size) for p, d in given]
            height = cell.gates * states[-1].shape[-1]
            if any(p is not None and p.shape[1] != height for p in params):
                raise RuntimeError(f"{cell.name}_cell: hidden size {states[-1].shape[-1]} does not fit the weights")
            gates = cell.given(x, (*params, None))
            outs = cell.next(gates, states, (params[0], params[1].mT, *params[2:], None))
        return (outs if cell.states == 2 else outs[0]), 0

    return one_step


for _cell in CELLS:
    _packet = getattr(aten, _cell.name)
    pack.add(_packet.input, _layers(_cell, _packet.input, packed=False))
    pack.add(_packet.data, _layers(_cell, _packet.data, packed=True))
    _step = getattr(aten, f"{_cell.name}_cell").default
    pack.add(_step, _one_step(_cell, _step))


def _lengths_shared(bdim: int | None, what: str) -> None:
    if bdim is not None:
        raise DataDependentError(
            f"vmap: {what} with lengths that differ from sample to sample gives results of different sizes, at "
            f"{user_location()}. Instead: lengths that all samples share, or mask what is padding."
        )


@pack.rule(aten._pack_padded_sequence.default)
def pack_padded_sequence(info, in_dims, x, lengths, batch_first):
    """(T, N, *), (N) -> (rows, *), (steps)."""
    _lengths_shared(in_dims[1], "pack_padded_sequence")
    data, sizes = aten._pack_padded_sequence.default(x.movedim(in_dims[0], -1), lengths, batch_first)
    return (data, sizes), (data.ndim - 1, None)


@pack.rule(aten._pad_packed_sequence.default)
def pad_packed_sequence(info, in_dims, data, sizes, batch_first, value, length):
    """(rows, *), (steps) -> (T, N, *), (N)."""
    _lengths_shared(in_dims[1], "pad_packed_sequence")
    out, lengths = aten._pad_packed_sequence.default(data.movedim(in_dims[0], -1), sizes, batch_first, value, length)
    return (out, lengths), (out.ndim - 1, None)
