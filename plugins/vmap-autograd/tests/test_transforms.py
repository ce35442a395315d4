"""grad, vjp, jvp, linearize, jacrev, jacfwd, hessian: beside torch.func, alone and composed with each other."""

import itertools

import pytest
import torch
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.utils._pytree import tree_flatten

import vmap_autograd
from vmap_autograd import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, linearize, vjp
from vmap_core import UnsupportedError, vmap

torch.manual_seed(0)
W = torch.randn(3, 4, dtype=torch.double)
X = torch.randn(4, dtype=torch.double)
SCALES = torch.tensor([1.0, 2.0], dtype=torch.double)


def f(x):
    return torch.tanh(W @ x) * x.sum()


def s(x):
    return f(x).square().sum()


def total(tree):
    return sum(leaf.sum() for leaf in tree_flatten(tree)[0])


def composed(library, map_, names):
    """Wrap f in transforms, the first innermost."""
    g = f
    for name in names:
        g = {
            "grad": lambda g: library.grad(lambda x: total(g(x))),
            "jacrev": lambda g: library.jacrev(g),
            "jacfwd": lambda g: library.jacfwd(g),
            "hessian": lambda g: library.hessian(g),
            "jvp": lambda g: lambda x: library.jvp(g, (x,), (torch.cos(x),))[1],
            "vjp": lambda g: lambda x: (lambda out, fn: fn(torch.sin(out))[0])(*library.vjp(g, x)),
            "linearize": lambda g: lambda x: library.linearize(g, x)[1](torch.cos(x)),
            "vmap": lambda g: lambda x: map_(lambda k: g(x * k))(SCALES),
        }[name](g)
    return g


NAMES = ["grad", "jacrev", "jacfwd", "hessian", "jvp", "vjp", "linearize", "vmap"]
TRIPLES = list(itertools.product(NAMES, repeat=3))


def check(names):
    """Compare with torch.func; its linearize, which traces, stands no composition, and a jvp is the same."""
    ours = composed(vmap_autograd, vmap, names)(X)
    theirs = composed(torch.func, torch.func.vmap, [n.replace("linearize", "jvp") for n in names])(X)
    torch.testing.assert_close(ours, theirs)
    assert not ours.requires_grad


@pytest.mark.parametrize(
    "names", [*itertools.product(NAMES, repeat=1), *itertools.product(NAMES, repeat=2)], ids="-".join
)
def test_pairs(names):
    check(names)


@pytest.mark.parametrize("names", [t for t in TRIPLES if t.count("hessian") < 2], ids="-".join)
def test_triples(names):
    check(names)


@pytest.mark.parametrize("name", ["grad", "jacrev", "jacfwd", "hessian", "jvp", "vjp"])
def test_under_torch_func(name):
    """The gradient, by torch.func, of what one of our transforms computes in our vmap."""
    rows = torch.randn(3, 4, dtype=torch.double)
    mine, theirs = composed(vmap_autograd, vmap, [name]), composed(torch.func, torch.func.vmap, [name])
    ours = torch.func.grad(lambda x: total(vmap(mine)(x)))(rows)
    torch.testing.assert_close(ours, torch.func.grad(lambda x: total(torch.func.vmap(theirs)(x)))(rows))


@pytest.mark.parametrize("name", NAMES)
def test_results_lead_on_to_what_requires_grad_outside(name):
    x, w = X.clone().requires_grad_(), torch.randn(4, dtype=torch.double, requires_grad=True)

    def run(library, map_):
        global f
        inner = f
        try:
            f = lambda x: inner(x * w)  # noqa: E731
            out = total(composed(library, map_, [name])(x))
        finally:
            f = inner
        return torch.autograd.grad(out, (x, w))

    ours = run(vmap_autograd, vmap)
    for a, b in zip(ours, run(torch.func if name != "linearize" else vmap_autograd, torch.func.vmap), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert not composed(vmap_autograd, vmap, [name])(x).requires_grad


def test_argnums_trees_and_aux():
    def g(params, x, *, scale):
        y = (params["w"] * x).sin().sum() + params["b"] * scale
        return y, {"y": y * 2}

    params = {"w": torch.randn(4, dtype=torch.double), "b": torch.tensor(2.0, dtype=torch.double)}
    for argnums in (0, 1, -1, (0, 1), (1, 0)):
        ours = grad(g, argnums, has_aux=True)(params, X, scale=2.0)
        theirs = torch.func.grad(g, argnums, has_aux=True)(params, X, scale=2.0)
        torch.testing.assert_close(ours, theirs)
        ours = grad_and_value(g, argnums, has_aux=True)(params, X, scale=2.0)
        torch.testing.assert_close(ours, torch.func.grad_and_value(g, argnums, has_aux=True)(params, X, scale=2.0))
        for mine in (jacrev, jacfwd):  # torch.func.jacfwd gives zeros for argnums=-1
            ours, aux = mine(g, argnums, has_aux=True)(params, X, scale=2.0)
            expected, expected_aux = torch.func.jacrev(lambda p, x: g(p, x, scale=2.0), argnums, has_aux=True)(
                params, X
            )
            torch.testing.assert_close(ours, expected)
            torch.testing.assert_close(aux, expected_aux)
    out, fn, aux = vjp(lambda p: g(p, X, scale=1.0), params, has_aux=True)
    torch.testing.assert_close(fn(torch.ones_like(out)), (grad(lambda p: g(p, X, scale=1.0)[0])(params),))
    assert not aux["y"].requires_grad
    out, tangent, aux = jvp(lambda p: g(p, X, scale=1.0), (params,), (params,), has_aux=True)
    torch.testing.assert_close((aux["y"], tangent.shape), (out * 2, torch.Size([])))
    assert grad(lambda x: (x.sum(), "any object"), has_aux=True)(X)[1] == "any object"


def test_trees_of_outputs_and_inputs_in_jacobians():
    def g(x, y):
        return {"a": x["u"] * y.sum(), "b": (x["u"].sum(), x["v"] @ y)}

    x = {"u": torch.randn(2, dtype=torch.double), "v": torch.randn(3, 4, dtype=torch.double)}
    for argnums in (0, 1, (0, 1)):
        expected = torch.func.jacrev(g, argnums)(x, X)
        torch.testing.assert_close(jacrev(g, argnums)(x, X), expected)
        torch.testing.assert_close(jacfwd(g, argnums)(x, X), expected)
        for chunk_size in (1, 2, 3, 100):
            torch.testing.assert_close(jacrev(g, argnums, chunk_size=chunk_size)(x, X), expected)
            torch.testing.assert_close(jacfwd(g, argnums, chunk_size=chunk_size)(x, X), expected)
    torch.testing.assert_close(hessian(s, chunk_size=2)(X), torch.func.hessian(s)(X))


def test_the_function_runs_once_a_jacobian():
    calls = []

    def g(x):
        calls.append(1)
        return f(x)

    jacrev(g, chunk_size=2)(X), jacfwd(g)(X)
    assert len(calls) == 2


def test_empty_and_complex():
    for shape in ((0,), (2, 0)):
        x = torch.randn(shape, dtype=torch.double)
        torch.testing.assert_close(jacrev(torch.sin)(x), torch.func.jacrev(torch.sin)(x))
        torch.testing.assert_close(jacfwd(torch.sin)(x), jacrev(torch.sin)(x))
    z = torch.randn(3, dtype=torch.cdouble)
    torch.testing.assert_close(
        grad(lambda z: z.abs().square().sum())(z), torch.func.grad(lambda z: z.abs().square().sum())(z)
    )


def test_unused_inputs_and_constant_outputs():
    for g in (lambda x: torch.ones((), dtype=torch.double), lambda x: X.sum()):
        torch.testing.assert_close(grad(g)(X), torch.zeros_like(X))
        torch.testing.assert_close(jacrev(g)(X), torch.zeros_like(X))
        torch.testing.assert_close(jacfwd(g)(X), torch.zeros_like(X))
        torch.testing.assert_close(linearize(g, X)[1](X), torch.zeros((), dtype=torch.double))
    with pytest.raises(RuntimeError, match="strict"):
        jvp(lambda x: torch.ones(2), (X,), (X,), strict=True)
    with pytest.raises(RuntimeError, match="strict"):
        jvp(lambda x: jvp(lambda y: x * 1, (X,), (X,), strict=True)[1], (X,), (X,))


def test_forward_mode_switched_off_inside():
    """What a function computes so is constant, in each of two nested jvp; where reverse mode needs it, an error."""

    def g(x):
        with _set_fwd_grad_enabled(False):
            s = x**2
        return x**2 - s

    x, one = torch.tensor(0.5), torch.ones(())
    torch.testing.assert_close(jvp(lambda x: jvp(g, (x,), (one,))[1], (x,), (one,))[1], torch.tensor(2.0))
    xs = torch.randn(3)
    torch.testing.assert_close(
        vmap(lambda x: jvp(lambda x: jvp(g, (x,), (one,))[1], (x,), (one,))[1])(xs), torch.full((3,), 2.0)
    )
    with pytest.raises(UnsupportedError, match="forward mode is switched off"):
        grad(lambda x: jvp(g, (x,), (one,))[1])(x)


def test_jacobians_of_complex_functions_are_refused():
    """As in torch.func: its modes have conventions of their own, and rows by reverse mode lose a part."""
    z = torch.tensor([1 + 2j])
    for transform in (jacrev, jacfwd, hessian):
        for g, x in ((torch.square, z), (lambda x: x * 0.5j, torch.ones(1)), (torch.abs, z)):
            with pytest.raises(UnsupportedError, match="to be real but received complex tensor"):
                transform(g)(x)
    torch.testing.assert_close(jacrev(lambda x, z: x * z.abs())(X, z), torch.diag(z.abs().double().expand(4)))


def test_perturbations_are_not_confused():
    """The inner derivative is by y only, although x has the same value and is in use."""

    def g(x):
        return x * grad(lambda y: x * y)(x)

    x = torch.tensor(3.0)
    assert grad(g)(x) == 6.0  # d(x * x)/dx
    inner = lambda x: x * jvp(lambda y: x * y, (x,), (torch.tensor(1.0),))[1]  # noqa: E731
    assert jvp(inner, (x,), (torch.tensor(1.0),))[1] == 6.0


def test_a_no_grad_block_inside_hides_a_value():
    def g(x):
        with torch.no_grad():
            shift = x * 2
        return (x * shift).sum()

    torch.testing.assert_close(grad(g)(X), 2 * X)
    with torch.no_grad():
        torch.testing.assert_close(grad(g)(X), 2 * X)


@pytest.mark.parametrize("in_dims", [(None, 0), (0, 0), (1, 0), (0, None)])
def test_per_sample(in_dims):
    w = torch.randn(*((3, 3) if in_dims[0] is not None else (3,)), dtype=torch.double)
    x = torch.randn(*((3, 3) if in_dims[1] is not None else (3,)), dtype=torch.double)

    def loss(w, x):
        return (torch.tanh(w * x).sum() + (x @ w) ** 2).square()

    for transform in ("grad", "jacrev", "jacfwd", "hessian"):
        ours = vmap(getattr(vmap_autograd, transform)(loss), in_dims)(w, x)
        torch.testing.assert_close(ours, torch.func.vmap(getattr(torch.func, transform)(loss), in_dims)(w, x))


def test_vjp_fn_is_mapped_at_several_levels():
    x = torch.randn(5, 4, dtype=torch.double)

    def jacobian(x):
        _, fn = vjp(f, x)
        return vmap(fn)(torch.eye(3, dtype=torch.double))[0]

    torch.testing.assert_close(vmap(jacobian)(x), torch.func.vmap(torch.func.jacrev(f))(x))


def test_chunk_size_must_be_positive():
    for transform in (jacrev, jacfwd):
        with pytest.raises(ValueError, match="greater than 0"):
            transform(f, chunk_size=0)
    with pytest.raises(ValueError, match="must be Tensor"):
        grad(lambda x: x[0] * 1.0)((X.sum(), 3))


LAYERS = {
    "layer_norm": lambda x: torch.nn.functional.layer_norm(x, (4,)).pow(3),
    "solve": lambda x: torch.linalg.solve(x[:, :2] @ x[:, :2].T + 3 * torch.eye(2, dtype=x.dtype), x),
    "det": lambda x: torch.linalg.det(x @ x.T) * x,
    "glu": lambda x: torch.nn.functional.glu(x),
    "rfft": lambda x: torch.fft.rfft(x).abs(),
    "complex": lambda x: (x * (1 + 2j) + x.sin() * 1j).abs() * torch.view_as_real(x.sgn() * 1j).sum(),
    "complex product": lambda x: (x * (1 + 2j) @ (x * 1j).mH).abs(),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "indexing": lambda x: x[[1, 0, 1]][:, ::2] * x[0, 0],
    "conv": lambda x: torch.nn.functional.conv1d(x[None], x[None, :, :2]),
}
SECOND = {
    "hessian": lambda f: lambda x: hessian(lambda x: f(x).sum())(x),
    "jacfwd of jacfwd": lambda f: lambda x: jacfwd(jacfwd(lambda x: f(x).sum()))(x),
    "jacfwd of grad": lambda f: lambda x: jacfwd(grad(lambda x: f(x).sum()))(x),
    "jacrev of jacfwd": lambda f: lambda x: jacrev(jacfwd(lambda x: f(x).sum()))(x),
}


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("layer", LAYERS)
def test_second_derivatives_against_differences(layer, second):
    """Not beside torch.func: of layer_norm and the linear algebra some of these are silently wrong there."""
    f, x = LAYERS[layer], torch.randn(2, 4, dtype=torch.double)
    step, slope = 1e-6, grad(lambda x: f(x).sum())
    ends = [
        torch.stack([slope(x + s * e) for e in torch.eye(8, dtype=x.dtype).reshape(8, 2, 4)], -1) for s in (step, -step)
    ]
    expected = ((ends[0] - ends[1]) / (2 * step)).reshape(2, 4, 2, 4)
    torch.testing.assert_close(SECOND[second](f)(x), expected, rtol=1e-4, atol=1e-5)
    mapped = vmap(SECOND[second](f))(torch.stack([x.flip(0), x]))
    torch.testing.assert_close(mapped[1], expected, rtol=1e-4, atol=1e-5)


def test_a_vjp_made_under_no_grad_knows_its_graph():
    """What no_grad hides is the value; the linear map depends on the primal and on what the function holds."""
    z, w = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.5, 0.25], [1.0, 2.0]))
    f = lambda v: (v * w).sin().sin()  # noqa: E731
    one = torch.ones(2, dtype=torch.float64)
    results = []
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            out, pull = vjp(f, z)
            _, push = linearize(f, z)
        assert out.requires_grad == (mode is torch.enable_grad)
        pulled, pushed = pull(one)[0], push(one)
        results.append([torch.autograd.grad(r.sum(), (z, w), retain_graph=True) for r in (pulled, pushed)])
        with torch.no_grad():
            assert not pull(one)[0].requires_grad and not push(one).requires_grad
    torch.testing.assert_close(*results)


def test_no_graph_of_an_ended_transform_is_left_in_a_result():
    _, pull = vjp(torch.sin, torch.tensor([0.5, 0.25]))
    for transform in (jacrev, jacfwd):
        assert not transform(lambda v: pull(v)[0])(torch.ones(2)).requires_grad


def sparse():
    places = torch.tensor([[0, 1, 1], [2, 0, 2]])
    return torch.sparse_coo_tensor(places, torch.tensor([3.0, 4.0, 5.0], dtype=torch.double), (2, 3)).coalesce()


OF_SPARSE = {
    "sum": lambda t: t.grad(lambda x: torch.sparse.sum(x) ** 2)(sparse()),
    "product": lambda t: t.grad(lambda x: torch.sparse.mm(x, W[:, :2]).square().sum())(sparse()),
    "made dense": lambda t: t.grad(lambda x: x.to_dense().square().sum())(sparse()),
    "its values": lambda t: t.grad(lambda x: x.coalesce().values().square().sum())(sparse()),
    "vjp": lambda t: t.vjp(lambda x: torch.sparse.sum(x) ** 2, sparse())[1](torch.tensor(1.0, dtype=torch.double))[0],
    "twice": lambda t: t.grad(lambda x: torch.sparse.sum(t.grad(lambda y: torch.sparse.sum(y) ** 2)(x)) ** 2)(sparse()),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("of", OF_SPARSE.values(), ids=OF_SPARSE)
def test_of_a_sparse_tensor(of):
    ours, theirs = of(vmap_autograd), of(torch.func)
    assert ours.layout is theirs.layout
    torch.testing.assert_close(ours.to_dense(), theirs.to_dense())
