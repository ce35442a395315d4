"""Recurrent layers against the loop: stacks, directions, projections, packed sequences, dropout."""

import itertools

import pytest
import torch
from torch.func import functional_call, stack_module_state
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from vmap_core import DataDependentError, RandomnessError, fallback_policy, vmap
from vmap_core.testing import check_rule
from vmap_nn import recurrent

LAYERS = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
OPTIONS = {
    "plain": {},
    "no bias, relu": {"bias": False},
    "stack": {"num_layers": 2, "bidirectional": True},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "batch first": {"batch_first": True, "bidirectional": True},
}
CASES = [(k, o) for k, o in itertools.product(LAYERS, OPTIONS) if o != "projected" or k == "lstm"]


@pytest.fixture(autouse=True)
def no_loop():
    with fallback_policy("error"):
        yield


def make(kind, option, **more):
    given = {**OPTIONS[option], **more}
    if kind == "rnn" and option == "no bias, relu":
        given["nonlinearity"] = "relu"
    return LAYERS[kind](4, 3, **given)


def flat(out):
    output, hidden = out
    return [output, *(hidden if isinstance(hidden, tuple) else [hidden])]


def assert_same(got, expected):
    for g, rows in zip(got, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(g, torch.stack(rows))


def gradients(outputs, inputs):
    torch.manual_seed(3)
    loss = sum((o * torch.randn(o.shape)).sum() for o in outputs)
    return torch.autograd.grad(loss, inputs)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("kind", "option"), CASES)
@pytest.mark.parametrize("mapped", ["input", "parameters", "both"])
@pytest.mark.parametrize("packed", [False, True])
def test_layer(kind, option, mapped, packed):
    members = [make(kind, option) for _ in range(3)]
    state = {k: v.detach().requires_grad_() for k, v in stack_module_state(members)[0].items()}
    shape = (2, 5, 4) if OPTIONS[option].get("batch_first") else (5, 2, 4)
    x = torch.randn(3, *shape, requires_grad=True)

    def run(state, x):
        if not packed:
            return flat(functional_call(members[0], state, (x,)))
        first = members[0].batch_first
        given = pack_padded_sequence(x, [5, 3], batch_first=first)
        out, hidden = functional_call(members[0], state, (given,))
        padded, lengths = pad_packed_sequence(out, batch_first=first)
        assert lengths.tolist() == [5, 3]
        return flat((padded, hidden))

    dims = (None if mapped == "input" else 0, None if mapped == "parameters" else 0)
    given = (
        state if dims[0] == 0 else {k: v[0] for k, v in state.items()},
        x if dims[1] == 0 else x[0],
    )
    got = vmap(run, in_dims=dims)(*given)
    expected = [
        run(
            *(
                a if d is None else torch.utils._pytree.tree_map(lambda t, i=i: t[i], a)
                for a, d in zip(given, dims, strict=False)
            )
        )
        for i in range(3)
    ]
    assert_same(got, expected)
    inputs = [x, *state.values()]
    rows = [torch.stack(r) for r in zip(*expected, strict=True)]
    for a, b in zip(gradients(got, inputs), gradients(rows, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("params", ["shared", "mapped"])
def test_operator(kind, params):
    """The operator itself: the batch dim in several places, nested, batches of none and of one, hidden states mapped."""
    op = getattr(torch.ops.aten, "rnn_tanh" if kind == "rnn" else kind).input
    layer = LAYERS[kind](3, 2).double()
    weights = [p.detach() for p in layer.parameters()]
    hidden = [torch.randn(1, 2, 2, dtype=torch.double) for _ in range(2 if kind == "lstm" else 1)]

    def run(x, *tensors):
        h, w = tensors[: len(hidden)], tensors[len(hidden) :] or weights
        return op(x, list(h) if kind == "lstm" else h[0], list(w), True, 1, 0.0, False, False, False)

    given = (torch.randn(4, 2, 3, dtype=torch.double), *hidden, *(weights if params == "mapped" else ()))
    check_rule(run, *given)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_cell(kind):
    op = getattr(torch.ops.aten, f"{kind}_cell").default
    gates = {"lstm": 4, "gru": 3}.get(kind, 1)
    x, h, c = (torch.randn(2, n, dtype=torch.double) for n in (3, 5, 5))
    w = [torch.randn(gates * 5, *n, dtype=torch.double) for n in ((3,), (5,), (), ())]
    if kind == "lstm":
        check_rule(lambda x, h, c, *w: op(x, [h, c], *w), x, h, c, *w)
        check_rule(lambda x, h, c: op(x, [h, c], *w), x, h, c)
    else:
        check_rule(lambda x, h, *w: op(x, h, *w), x, h, *w)
        check_rule(lambda x, h: op(x, h, *w[:2]), x, h)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_between_layers(kind, packed):
    layer = LAYERS[kind](4, 3, num_layers=3, dropout=0.5)
    x = torch.randn(4, 5, 2, 4)

    def run(x):
        return layer(pack_padded_sequence(x, [5, 3]) if packed else x)[0][0]

    with pytest.raises(RandomnessError):
        vmap(run)(x)
    torch.manual_seed(0)
    same = vmap(run, randomness="same")(x)
    for row, out in zip(x, same, strict=True):
        torch.manual_seed(0)
        torch.testing.assert_close(out, run(row))
    different = vmap(run, randomness="different")(x[:1].expand(4, -1, -1, -1))
    assert not torch.equal(different[0], different[1])
    layer.eval()
    torch.testing.assert_close(vmap(run)(x), torch.stack([run(row) for row in x]))


def test_packed_sequences_as_arguments():
    layer = torch.nn.LSTM(4, 3)
    packed = [pack_padded_sequence(torch.randn(5, 2, 4), [5, 2]) for _ in range(3)]
    stacked = torch.stack([p.data for p in packed])
    got = vmap(lambda data: layer(PackedSequence(data, packed[0].batch_sizes))[0].data)(stacked)
    torch.testing.assert_close(got, torch.stack([layer(p)[0].data for p in packed]))


def test_lengths_that_differ_are_refused():
    layer = torch.nn.GRU(4, 3)
    x, sizes = torch.randn(3, 7, 4), torch.tensor([[2, 2, 1, 1, 1]] * 3)
    with pytest.raises(DataDependentError):  # the module reads them
        vmap(lambda x, sizes: layer(PackedSequence(x, sizes))[0].data)(x, sizes)
    weights = [p.detach() for p in layer.parameters()]
    with pytest.raises(DataDependentError, match="lengths"):
        vmap(lambda x, n: torch.gru(x, n, torch.zeros(1, 2, 3), weights, True, 1, 0.0, False, False))(x, sizes)
    with pytest.raises(DataDependentError):
        vmap(lambda x, n: pack_padded_sequence(x, n).data)(torch.randn(3, 5, 2, 4), torch.tensor([[5, 2]] * 3))


def test_shapes_that_do_not_fit():
    layer = torch.nn.GRU(4, 3)
    weights = [p.detach().expand(3, *p.shape) for p in layer.parameters()]
    x = torch.randn(3, 5, 2, 4)

    def run(x, h, *w):
        return torch.gru(x, h, w, True, 1, 0.0, False, False, False)

    for h in (torch.zeros(1, 1, 3), torch.zeros(2, 2, 3), torch.zeros(1, 2, 1)):
        with pytest.raises(RuntimeError):
            run(x[0], h, *(w[0] for w in weights))
        with pytest.raises(RuntimeError, match="hidden size"):
            vmap(run, in_dims=(0, None, *(0,) * len(weights)))(x, h, *weights)


class TestTheKernelForOneMemberAfterTheOther:
    """It is taken where it is faster, and nothing else is different."""

    @pytest.fixture
    def taken(self, monkeypatch):
        seen = []
        looped = recurrent._looped
        monkeypatch.setattr(recurrent, "_looped", lambda *args: (seen.append(True), looped(*args))[1])
        return seen

    @staticmethod
    def mapped(members, x, in_dims=(0, None)):
        state = stack_module_state(members)[0]
        out = vmap(lambda p, x: functional_call(members[0], p, (x,)), in_dims=in_dims)(state, x)
        return flat(out)

    @pytest.mark.parametrize(
        "options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}]
    )
    @pytest.mark.parametrize("in_dims", [(0, None), (0, 0), (0, -1)])
    def test_large(self, options, in_dims, taken):
        members = [torch.nn.LSTM(32, 32, **options) for _ in range(3)]
        x = torch.randn(24, 8, 32) if in_dims[1] is None else torch.randn(3, 24, 8, 32).movedim(0, in_dims[1])
        samples = [x] * 3 if in_dims[1] is None else x.unbind(in_dims[1])
        with torch.no_grad():
            got = self.mapped(members, x, in_dims)
            assert taken
            assert_same(got, [flat(m(s)) for m, s in zip(members, samples, strict=True)])

    def test_not_where_it_would_be_slower(self, taken):
        """Small, GRU, recorded for a derivative, of another dtype, or with projections."""
        x = torch.randn(24, 8, 32)
        with torch.no_grad():
            self.mapped([torch.nn.LSTM(32, 4) for _ in range(9)], x[:2])
            self.mapped([torch.nn.GRU(32, 32) for _ in range(3)], x)
            self.mapped([torch.nn.LSTM(32, 32).double() for _ in range(3)], x.double())
            self.mapped([torch.nn.LSTM(32, 32, proj_size=16).double() for _ in range(3)], x.double())
        members = [torch.nn.LSTM(32, 32) for _ in range(3)]
        first = torch.autograd.grad(self.mapped(members, x.requires_grad_())[0].square().sum(), x, create_graph=True)[0]
        assert torch.autograd.grad(first.sum(), x)[0].any()  # the kernel's derivative has none of its own
        assert not taken
