"""Batches of vectors over a recorded graph, walked node by node: as the loop, in all that PyTorch's engine does besides."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

import vmap_autograd._walk as walk
from vmap_autograd import _nodes, _state, hessian, jacfwd, jacrev, jvp, linearize, vjp
from vmap_core import vmap

grad = torch.autograd.grad


@pytest.fixture(autouse=True)
def a_process_without_hooks(monkeypatch):
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    monkeypatch.setattr(_state, "_checkpoints", 0)


@pytest.fixture
def walks(monkeypatch):
    """The graphs that have been walked: for each, how many nodes ran alone."""
    done, alone, run, run_alone = [], [], walk._walk, walk._alone

    def counted(*args):
        alone.clear()
        results = run(*args)
        done.append(len(alone))
        return results

    def counted_alone(step, given):
        alone.append(step)
        return run_alone(step, given)

    monkeypatch.setattr(walk, "_walk", counted)
    monkeypatch.setattr(walk, "_alone", counted_alone)
    return done


def randn(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def leaf(*shape, **options):
    return randn(*shape, **options).requires_grad_()


def against_the_loop(outputs, inputs, count=3, in_dim=0, **options):
    """Compare gradients for a batch of vectors with those for each."""
    outputs, inputs = [x if isinstance(x, tuple) else (x,) for x in (outputs, inputs)]
    vectors = [randn(count, *o.shape).to(o.dtype).movedim(0, in_dim) for o in outputs]

    def gradients(*vectors):
        return grad(outputs, inputs, vectors, retain_graph=True, **options)

    got = vmap(gradients, in_dims=in_dim)(*vectors)
    rows = [gradients(*row) for row in zip(*(v.unbind(in_dim) for v in vectors), strict=True)]
    if not rows:
        assert [g.shape for g in got] == [(0, *x.shape) for x in inputs]
        return got
    for ours, expected in zip(got, zip(*rows, strict=True), strict=True):
        if expected[0] is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, torch.stack(expected))
    return got


w = leaf(5, 4)
conv = nn.Conv1d(2, 3, 2).double()
norm = nn.LayerNorm(4).double()
table = nn.Embedding(6, 4).double()
lstm = nn.LSTM(4, 3).double()
index = torch.tensor([2, 0, 1])

# A function of a (3, 4) tensor, and how many of its nodes run alone.
FUNCTIONS = {
    "pointwise": (lambda x: torch.tanh(x) * x.exp() / (1 + x**2), 0),
    "broadcast": (lambda x: x * x.sum(0) + x[:, :1] - x[0, 0], 0),
    "sums": (lambda x: (x.sum(), x.sum(-1), x.sum((0, -1), keepdim=True), x.mean(), x.mean(0), x.mean((0, 1))), 0),
    "products": (lambda x: (x @ w.t(), w @ x.t(), w @ x[0], x[1] @ x[2], x[0] @ w.t()), 0),
    "linear": (lambda x: (F.linear(x, w, w[:, 0]), F.linear(x[0], w, w[:, 1])), 0),
    "scaled sums of products": (
        lambda x: (
            torch.addmm(w[:, 0], x, w.t(), beta=2, alpha=3),
            torch.addmv(w[:, 0], w, x[0], beta=2, alpha=3),
            torch.baddbmm(w[:, 0], x[None], w.t()[None], beta=2, alpha=3),
        ),
        0,
    ),
    "batched products": (lambda x: (torch.bmm(x[None], x.t()[None]), torch.einsum("ij,kj->ik", x, w)), 0),
    "views": (lambda x: (x.t().reshape(-1), x[:, None].squeeze(1), x.permute(-1, 0)[1:3, -1], x[None].squeeze()), 0),
    "slices": (lambda x: (x[-2:, ::2], x[1:-1], x[..., -3:-1], x.narrow(1, 1, 2)), 0),
    "joined": (lambda x: torch.cat([x.sin(), x.cos()], -1) + torch.stack([x, x], 1).flatten(1), 0),
    "joined with a constant": (lambda x: torch.cat([x, w.detach()]), 1),
    "joined with nothing": (lambda x: torch.cat([x, x.new_empty(0), x[0].new_empty(0).requires_grad_() * 1]), 1),
    "several outputs of a node": (lambda x: x.unbind()[1] * x.chunk(2, 1)[0][0, 0] + x.sort().values[0], 3),
    "convolution": (lambda x: conv(x.reshape(2, 6)), 0),
    "softmax": (lambda x: x.softmax(-1).log_softmax(0), 0),
    "indices": (lambda x: (x[index], x.gather(0, index[None].expand(3, 3)), x.index_select(0, index)), 0),
    "a row of a table": (lambda x: table(index) * x, 0),
    "a recurrent layer": (lambda x: lstm(x[:, None])[0], None),
    "written to": (lambda x: torch.zeros(3, 4, dtype=x.dtype).add_(x).mul_(x), None),
    "a part written to": (lambda x: part_written_to(x), None),
    "cast": (lambda x: (x.float() * 2, x.float().sum().double() * x), 0),
    "linear algebra": (lambda x: torch.linalg.solve(x @ x.t() + torch.eye(3, dtype=x.dtype), x), None),
    "twice": (lambda x: (y := x.sin()) * y + y, 0),
    "an output twice": (lambda x: (y := x.sin(), y), 0),
    "scalar": (lambda x: x.sum() * x.mean() ** 2, 0),
    "norm": (lambda x: norm(x), 0),
}


FUNCTIONS_OF_FIRST_ORDER = {
    "attention": (lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]), 1),
}


def part_written_to(x):
    y = x * 2
    y[1] = x[0] ** 2
    y[:, :2].mul_(3)
    return y


@pytest.mark.parametrize("name", [*FUNCTIONS, *FUNCTIONS_OF_FIRST_ORDER])
@pytest.mark.parametrize("count", [3, 1, 0, 4])
def test_as_the_loop(name, count, walks):
    function, alone = (FUNCTIONS | FUNCTIONS_OF_FIRST_ORDER)[name]
    x = leaf(3, 4)
    against_the_loop(function(x), x, count)
    assert len(walks) == 1
    assert alone is None or walks == [alone]


def test_several_inputs_and_outputs(walks):
    x, z = leaf(3, 4), leaf(4)
    h = x * z
    y = h.sin().sum(0)
    unused = leaf(2)
    against_the_loop((y, h.exp()), (x, z, h, x, h), in_dim=1)
    against_the_loop((y, y, h), (y, h, x), 2)
    against_the_loop(y, (x, unused, h), allow_unused=True)
    assert len(walks) == 3
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        against_the_loop(y, (x, unused))


def test_an_intermediate_input_that_another_hides(walks):
    x = leaf(3)
    h = x.sin()
    k = h.exp()
    against_the_loop(k.cos() * h, (h, k))
    against_the_loop(x.unbind()[0] * x.unbind()[1], x)
    parts = (x * 2).split(1)
    against_the_loop(parts[0] * parts[2], (parts[2], parts[0]))
    assert len(walks) == 3


@pytest.mark.parametrize("weight_requires_grad", [True, False])
def test_what_only_weights_need_is_not_computed(weight_requires_grad, walks):
    layer = nn.Conv1d(2, 3, 2).double().requires_grad_(weight_requires_grad)
    groups = nn.GroupNorm(1, 3).double()  # its node runs alone
    x = leaf(1, 2, 6)
    against_the_loop(groups(norm(layer(x)[..., :4])), x)
    against_the_loop(groups(norm(layer(x)[..., :4])), (x, norm.weight, groups.weight))
    assert walks == [1, 1]


LAYERS = {
    "convolution": (lambda x, w: F.conv2d(x, w, stride=2, padding=1, groups=2), (2, 4, 5, 5), (6, 2, 3, 3)),
    "dilated convolution": (lambda x, w: F.conv2d(x, w, w[:, 0, 0, 0], dilation=2), (1, 3, 6, 6), (4, 3, 2, 2)),
    "transposed convolution": (lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=2), (2, 4, 3, 3), (4, 3, 2, 2)),
    "convolution of an image": (lambda x, w: F.conv1d(x, w, w[:, 0, 0]), (2, 6), (4, 2, 3)),
    "pooling": (lambda x, w: F.max_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1), (2, 3, 5, 5), (1,)),
    "pooling of an image": (lambda x, w: F.adaptive_avg_pool2d(F.max_pool2d(x, 2, 1), 2), (3, 6, 6), (1,)),
    "average of others": (lambda x, w: F.avg_pool2d(x, 2, 1, 1, True, False, 3), (2, 3, 4, 5), (1,)),
    "layer norm": (lambda x, w: F.layer_norm(x, (3, 4), w, w), (2, 5, 3, 4), (3, 4)),
    "layer norm of one": (lambda x, w: F.layer_norm(x, (4,), w), (4,), (4,)),
    "indices in a row": (lambda x, w: x[:, index, index], (2, 3, 3, 2), (1,)),
    "indices apart": (lambda x, w: x[index, :, index], (3, 2, 3), (1,)),
    "a mask": (lambda x, w: x[:, torch.tensor([True, False, True])], (2, 3, 4), (1,)),
    "cumsum": (lambda x, w: x.cumsum(-2) + x.sum().cumsum(0), (2, 3, 4), (1,)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_formulas_of_layers(name, create_graph, walks):
    function, *shapes = LAYERS[name]
    x, w = (leaf(*shape) for shape in shapes)
    got = against_the_loop(function(x, w), (x, w), allow_unused=True, create_graph=create_graph)
    if create_graph:  # differentiated again, all agree, too
        rows = [
            grad(function(x, w), (x, w), v, create_graph=True, allow_unused=True)
            for v in randn(3, *function(x, w).shape)
        ]
        for ours, theirs in zip(got, zip(*rows, strict=True), strict=True):
            if ours is None or not theirs[0].requires_grad:  # the function is linear
                continue
            sums = ours.square().sum(), torch.stack(theirs).square().sum()
            second, expected = (
                grad(s, (x, w), retain_graph=True, allow_unused=True) if s.requires_grad else (None, None) for s in sums
            )
            for a, b in zip(second, expected, strict=True):
                zeros = torch.zeros_like(b if b is not None else x)
                torch.testing.assert_close(zeros if a is None else a, zeros if b is None else b)
    assert len(walks) == 1


def test_dtypes_and_shapes_of_gradients_are_the_inputs(walks):
    x, half = leaf(3, 1, dtype=torch.float32), leaf(1, 4, dtype=torch.float32).half().detach().requires_grad_()
    against_the_loop((x * half.double() + half, x.double() * half), (x, half))
    assert len(walks) == 1


def test_vectors_of_another_dtype(walks):
    x = leaf(3)
    y = x.sin()
    v = torch.randn(4, 3)
    got = vmap(lambda v: grad(y, x, v, retain_graph=True)[0])(v)
    torch.testing.assert_close(got, torch.stack([grad(y, x, row, retain_graph=True)[0] for row in v]))
    assert len(walks) == 1


@pytest.mark.parametrize("loop", [True, False])
def test_a_graph_that_is_not_retained_is_freed(loop, walks):
    x = leaf(3)
    y = (x.sin() * x.sum()).exp()
    kept = x.cos().exp() + y.detach()
    one = lambda v: grad(y + kept, x, v)[0]  # noqa: E731
    vmap(one)(torch.eye(3, dtype=x.dtype))
    assert len(walks) == 1
    for freed in (y, kept):
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            if loop:
                grad(freed, x, freed)
            else:
                vmap(lambda v, y=freed: grad(y, x, v)[0])(torch.eye(3, dtype=x.dtype))


def test_only_what_leads_to_an_input_is_freed():
    x, z = leaf(3), leaf(3)
    h = z.sin() * z
    y = x.sin() * h
    vmap(lambda v: grad(y, x, v)[0])(torch.eye(3, dtype=x.dtype))
    grad(h, z, h)


def test_what_has_been_written_to_is_an_error():
    x = leaf(3)
    h = x.exp()
    y = h * 2
    h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        vmap(lambda v: grad(y, x, v)[0])(torch.eye(3, dtype=x.dtype))
    a, b = leaf(3, 3), torch.randn(3, 3, dtype=x.dtype)
    y = a @ b
    b.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        vmap(lambda v: grad(y, a, v)[0])(torch.ones(2, 3, 3, dtype=x.dtype))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_recorded_can_be_differentiated(name, walks):
    x = leaf(3, 4)
    y = FUNCTIONS[name][0](x)
    outputs = y if isinstance(y, tuple) else (y,)
    vectors = [randn(3, *o.shape).to(o.dtype).requires_grad_() for o in outputs]
    one = lambda *v: grad(outputs, x, v, create_graph=True)[0]  # noqa: E731
    weights = randn(3, 3, 4)

    def second(rows):
        return grad((rows * weights).sin().sum(), (x, *vectors), retain_graph=True, allow_unused=True)

    ours = second(vmap(one)(*vectors))
    expected = second(torch.stack([one(*row) for row in zip(*vectors, strict=True)]))
    torch.testing.assert_close([g for g in ours if g is not None], [g for g in expected if g is not None])
    assert [g is None for g in ours] == [g is None for g in expected]


def test_gradients_are_accumulated_by_a_pass_outside():
    x = leaf(3)
    y = x.sin() * x.sum()
    rows = vmap(lambda v: grad(y, x, v, create_graph=True)[0])(torch.eye(3, dtype=x.dtype))
    rows.exp().sum().backward()
    z = x.detach().requires_grad_()
    torch.autograd.functional.jacobian(lambda x: x.sin() * x.sum(), z, create_graph=True).exp().sum().backward()
    torch.testing.assert_close(x.grad, z.grad)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Both(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, z):
        return x * z, x.sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, g, total):
        x, z = ctx.saved_tensors
        assert total is None
        return g * z, None if ctx.needs_input_grad[1] is None else g * x


@pytest.mark.parametrize("function", [Cube.apply, lambda x: Both.apply(x, x.detach() * 2)[0]])
def test_custom_functions_are_for_the_engine(function, walks):
    x = leaf(3)
    against_the_loop(function(x.sin()).exp(), x)
    assert not walks


def tensor_hook(x, y):
    y.register_hook(lambda g: g * 2)


def input_hook(x, y):
    x.register_hook(lambda g: g * 2)


def node_hook(x, y):
    y.grad_fn.register_hook(lambda ins, outs: tuple(g * 2 for g in ins))


def node_prehook(x, y):
    y.grad_fn.register_prehook(lambda outs: tuple(g * 2 for g in outs))


def accumulators_hook(x, y):
    y.grad_fn.next_functions[0][0].register_prehook(lambda outs: tuple(g * 2 for g in outs))


HOOKS = [tensor_hook, input_hook, node_hook, node_prehook, accumulators_hook]


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_are_for_the_engine(hook, walks):
    x = leaf(3)
    y = x.sin()
    hook(x, y)
    against_the_loop(y.exp() * y, (x, y))
    assert not walks


def test_hooks_of_modules_and_of_several_tensors(walks):
    layer = nn.Linear(4, 4).double()
    layer.register_full_backward_hook(lambda module, ins, outs: (ins[0] * 2,))
    x = leaf(3, 4)
    against_the_loop(layer(x).sin(), x)
    assert not walks

    seen = []
    h, k = x.sin(), x.cos()
    torch.autograd.graph.register_multi_grad_hook((h, k), lambda grads: seen.append([g is not None for g in grads]))
    vmap(lambda v: grad(h * k, x, v)[0])(randn(2, 3, 4))
    assert seen == [[True, True]]
    assert not walks


def test_the_transforms_walk_what_they_have_recorded_after_the_hooks(walks):
    leaf(3).sin().register_hook(lambda g: g)
    function = lambda x: x.sin() * x.sum()  # noqa: E731
    x = randn(3)
    torch.testing.assert_close(jacrev(function)(x), torch.autograd.functional.jacobian(function, x))
    assert len(walks) == 1

    def hooked(x):
        y = function(x)
        y.register_hook(lambda g: g * 2)
        return y

    torch.testing.assert_close(jacrev(hooked)(x), 2 * torch.autograd.functional.jacobian(function, x))
    assert len(walks) == 1


def test_saved_tensors_are_unpacked_once(walks):
    unpacked = []

    def unpack(x):
        unpacked.append(x.shape)
        return x * 1

    x = leaf(3, 4)
    with saved_tensors_hooks(lambda x: x.detach(), unpack):
        y = torch.tanh(w @ x.t()).exp().sum(0)
    grad(y, x, y, retain_graph=True)
    once = len(unpacked)
    vmap(lambda v: grad(y, x, v, retain_graph=True)[0])(torch.eye(3, dtype=x.dtype))
    assert len(unpacked) == 2 * once
    against_the_loop(y, x)
    assert len(walks) == 2


def test_a_checkpoint_is_for_the_engine(walks):
    runs = []

    def part(x):
        runs.append(1)
        return x.sin().exp() * x

    x = leaf(3)
    y = checkpoint(part, x * 2, use_reentrant=False)
    vmap(lambda v: grad(y, x, v, retain_graph=True)[0])(torch.eye(3, dtype=x.dtype))
    assert len(runs) == 2
    against_the_loop(y, x)
    assert not walks
    jacrev(lambda x: checkpoint(part, x, use_reentrant=False))(x)
    assert not walks


def test_materialized_gradients(walks):
    x, z = leaf(3), leaf(2)
    against_the_loop(x.sin(), (x, z), materialize_grads=True)


@pytest.mark.parametrize("function", [lambda x: (x * (1 + 1j)).abs(), lambda x: torch.fft.fft(x).real])
def test_complex_numbers_on_the_way_are_for_the_engine(function, walks):
    x = leaf(3)
    against_the_loop(function(x), x)
    assert not walks


def test_anomaly_mode_is_for_the_engine(walks):
    x = leaf(3)
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("ignore")
        y = x.sin()
        against_the_loop(y, x)
    assert not walks


def test_tangents_are_for_the_engine(walks):
    x, t = leaf(3), randn(3)
    with torch.autograd.forward_ad.dual_level():
        y = torch.autograd.forward_ad.make_dual(x, t).sin()
        rows = vmap(lambda v: grad(y, x, v, retain_graph=True)[0])(torch.eye(3, dtype=x.dtype))
        tangent = torch.autograd.forward_ad.unpack_dual(rows).tangent
    torch.testing.assert_close(tangent, torch.diag(-x.sin() * t).detach())
    assert not walks


def test_transforms_of_torch_func_are_for_the_engine(walks):
    def inside(x):
        y = x.sin() * x
        rows = vmap(lambda v: grad(y, x, v, create_graph=True)[0])(torch.eye(3, dtype=x.dtype))
        return rows.sum()

    x = randn(3)
    torch.testing.assert_close(torch.func.grad(inside)(x), 2 * x.cos() - x * x.sin())
    assert not walks


def test_levels(walks):
    x = leaf(3, 4)
    y = (x @ w.t()).sin().sum(0)
    vectors = randn(2, 3, 5)
    one = lambda v: grad(y, x, v, retain_graph=True)[0]  # noqa: E731
    expected = torch.stack([torch.stack([one(v) for v in part]) for part in vectors])
    torch.testing.assert_close(vmap(vmap(one))(vectors), expected)
    torch.testing.assert_close(vmap(lambda scale: vmap(one)(vectors[0]) * scale)(torch.ones(2)), expected[[0, 0]])

    def rows(x):
        x = x.detach().requires_grad_()
        y = x.sin() * x.sum()
        return vmap(lambda v: grad(y, x, v, retain_graph=True)[0], in_dims=1, out_dims=1)(torch.eye(4, dtype=x.dtype))

    torch.testing.assert_close(vmap(rows)(x), torch.stack([rows(row) for row in x]))
    assert len(walks) >= 2


TRANSFORMS = {
    "jacrev": (jacrev, torch.func.jacrev),
    "jacrev in chunks": (
        lambda f, n=0: jacrev(f, n, chunk_size=2),
        lambda f, n=0: torch.func.jacrev(f, n, chunk_size=2),
    ),
    "hessian": (hessian, torch.func.hessian),
    "jacrev of jacfwd": (
        lambda f, n=0: jacrev(jacfwd(f, n), n),
        lambda f, n=0: torch.func.jacrev(torch.func.jacfwd(f, n), n),
    ),
    "jacfwd of jacrev": (
        lambda f, n=0: jacfwd(jacrev(f, n), n),
        lambda f, n=0: torch.func.jacfwd(torch.func.jacrev(f, n), n),
    ),
    "third derivatives": (
        lambda f, n=0: jacrev(hessian(f, n), n),
        lambda f, n=0: torch.func.jacrev(torch.func.hessian(f, n), n),
    ),
}


def two_layers(x, z):
    return torch.tanh(
        F.linear(torch.tanh(F.linear(x, w[:, :3])), w[:3].t()[:, :3] @ z.diag() @ w[:3, :3] @ w[:, :3].t())
    )


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_transforms_walk(name, levels, walks):
    ours, peers = [t(two_layers) for t in TRANSFORMS[name]]
    both = [t(two_layers, (0, 1)) for t in TRANSFORMS[name]]
    x, z = randn(*[2, 4][:levels], 3), randn(3)
    for mine, peer in ((ours, peers), both):
        for _ in range(levels):
            mine, peer = vmap(mine, in_dims=(0, None)), torch.func.vmap(peer, in_dims=(0, None))
        torch.testing.assert_close(mine(x, z), peer(x, z))
    assert walks or name == "jacfwd of jacrev"  # in forward mode it is for the engine


def test_results_of_a_transform_inside_lie_as_the_loops(walks):
    x = randn(4, 3)
    function = jacrev(lambda x: x.sin().outer(x.cos()))
    ours, loop = vmap(function)(x), torch.stack([function(row) for row in x])
    assert ours.stride() == loop.stride()
    torch.testing.assert_close(vmap(lambda x: function(x).view(-1))(x), loop.view(4, -1))


def test_linear_maps_and_products(walks):
    x, t = randn(3), randn(4, 3)
    function = lambda x: x.sin() * x.sum()  # noqa: E731
    expected = torch.func.vmap(lambda t: torch.func.jvp(function, (x,), (t,))[1])(t)
    torch.testing.assert_close(vmap(linearize(function, x)[1])(t), expected)
    torch.testing.assert_close(vmap(lambda t: jvp(function, (x,), (t,))[1])(t), expected)
    _, pull = vjp(function, x)
    torch.testing.assert_close(vmap(pull)(t)[0], torch.func.vmap(torch.func.vjp(function, x)[1])(t)[0])
    assert len(walks) >= 2


@pytest.mark.parametrize("name", ["products", "sums", "convolution", "cast", "twice"])
def test_a_version_that_has_not_been_measured_is_slower_and_right(name, walks, monkeypatch):
    monkeypatch.setattr(_nodes, "NODES", {})
    monkeypatch.setattr(_nodes, "_known", {})
    x = leaf(3, 4)
    against_the_loop(FUNCTIONS[name][0](x), x)
    assert walks[0] >= 3


def test_this_version_has_been_measured():
    x = leaf(3, 4)
    assert _nodes.formula_of((x * x).grad_fn) is _nodes.as_it_is


def test_deep_graphs(walks):
    x = leaf(2)
    y = x
    for _ in range(3000):
        y = y * 1.0001
    against_the_loop(y, x)
    assert walks == [0]
