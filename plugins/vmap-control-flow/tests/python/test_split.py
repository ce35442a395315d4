"""``vmap(f, control_flow="split")`` against the loop: what Python's control flow, numbers, lists and objects do by sample."""

import contextlib
import enum
import heapq
import math
import warnings

import numpy
import pytest
import torch

import vmap_core
from vmap_control_flow import split
from vmap_core import CaptureWarning, DataDependentError, InplaceError, UnsupportedError, vmap
from vmap_core.errors import VmapError

torch.manual_seed(0)
X = torch.randn(9, 3, dtype=torch.float64)
NUMBERS = torch.tensor([1, 7, 12, 2, 2, 31, 5])


def loop(f, *args):
    rows = [f(*(a[i].clone() for a in args)) for i in range(len(args[0]))]
    return torch.stack(rows) if isinstance(rows[0], torch.Tensor) else tuple(map(torch.stack, zip(*rows, strict=True)))


def same(f, *args):
    torch.testing.assert_close(
        vmap(f, control_flow="split")(*(a.clone() for a in args)), loop(f, *args), rtol=0, atol=0
    )


class Box:
    def __init__(self, v):
        self.v, self.n = v, 0

    def grow(self, by):
        if by.sum() > 0:
            self.v = self.v + by
            self.n += 1
        return self


def branches(x):
    if x.sum() > 1:
        return x * 2
    elif (x[0] > 0 and x[1] > 0) or not x[2] > 0:
        y = x + 1
    else:
        y = -x
    return y if -1 < y[0] < 1 else y / 2


def newton(x):
    a = x.abs().sum() * 100
    y, steps = a, 0
    while (y * y - a).abs() > 1e-6 * a:
        y = (y + a / y) / 2
        steps += 1
    else:
        y = y + steps
    return y


def breaks(x):
    for i in range(6):
        x = x * 1.5 + 0.1
        if x[0] > 2:
            break
        if x[1] > 1:
            continue
        x = x - i
    else:
        return x * 0
    return x


def numbers(x):
    s = x.sum().item()
    k = int(abs(s) * 3)
    total = 0
    for i in range(1, k, 2):
        total += i * k // 3 % 7
    if bool(x[0] > 0) and math.floor(s) < k:
        total = max(total, 3) ** 2
    return x * total + float(x[1]) - round(s, 2)


def huge(x):
    k = int(x[0].abs() * 10) + 2
    return torch.tensor(float(k**40 % 1000003))


def sizes(x):
    y = x[x > 0]
    z = torch.nonzero(x > 0.5)
    n = int(x.abs().sum())
    return y.sum() / max(len(y), 1) + len(z) + x[: n % 3].sum() + torch.ones(n).sum() + x.masked_select(x < 0).sum()


def lists(x):
    found, seen = [], {"last": x}
    table = [1.0, 2.0, 3.0]
    while x.sum() < 3:
        x = x + 1
        found.append(x)
        seen["last"] = x * table[int(x[0].abs()) % 3]
    return (torch.stack(found).sum(0) if found else x) + seen["last"] + len(found)


def iterators(x):
    total = x * 0
    for i, (a, b) in enumerate(zip(x, x.flip(0), strict=True)):
        if a > b:
            total = total + i * a
        elif a < -1:
            break
    return total + sum(v for v in x)


def ranges(x):
    k = int(x.abs().sum())
    found = [7]
    found.extend(iter(range(k)))
    found += list(range(k, 9, 2))
    for i in reversed(range(3)):
        if x[i] > 0:
            found.append(i)
    return x * sum(found) + len(found)


def methods_of_lists(x):
    def pick(x):
        return x * 2 if x[0] > 0 else x[:2]

    out, d = [x], {}
    out.append(pick(x).sum())
    out.insert(int(x.abs().sum()) % 2, x.sum())
    d.update({"a": pick(x)})
    d.setdefault("b", []).append(len(d["a"]))
    return sum(v.sum() for v in out) + out[-1].sum() + len(d["a"]) + d["b"][0]


class Color(enum.Enum):
    RED, BLUE = 1, 2


def others(x):
    color, table, raw = Color(1), numpy.zeros(3), bytearray(b"ab")
    if x[0] > 0:
        color = Color.BLUE
        table[1] += 2
        raw[0] += 1
    if x[1] > 0:
        table[0] += 1
    return x * table.sum() + (color is Color.RED) + (color is Color.BLUE) * 3 + raw[0] + len(raw)


def objects(x):
    box = Box(x)
    box.grow(x).grow(-x).grow(x * 2)
    return box.v + box.n


def views(x):
    y = x * 1
    v = y[0]
    c = x.outer(x)
    if x[1] > 0:
        v.add_(10)
        c.t()[0] += 1
    else:
        y[1:] = v
    v.mul_(2)
    return y.sum() + v + c[:, 0].sum()


def made(x):
    z = torch.zeros(3, dtype=x.dtype) if x[0] > 0 else torch.ones(3, dtype=x.dtype)
    z[1] = x[1]
    if x[2] > 0:
        z += 1
    return z


def recursive(n):
    if n < 2:
        return n
    return recursive(n // 2 if n % 2 == 0 else 3 * n + 1) + 1


def tree(n):
    if n < 2:
        return n
    return tree(n - 1) + tree(n - 3)


def again(x, depth=0, *, most=6):
    if x.norm() > 5 or depth > most:
        return x + depth
    return again(x * 1.7, depth + 1, most=most)


def gradients(x):
    x = x.detach().requires_grad_()
    y = (x**3).sum()
    if y > 0:
        y = y * 2 + (x * x).sum()
    return torch.autograd.grad(y, x)[0]


def contexts(x):
    with torch.no_grad():
        y = x * 1
        while y.sum() < 3:
            y = y + 1
    return y + x


@torch.no_grad()
def decorated(x):
    while x.norm() < 5:
        x = x * 1.3 + 0.1
    return x


def inner_functions(x):
    shift = x.abs() + 0.1

    def climb(y):
        while y.sum() < 2:
            y = y + shift
        return y

    return climb(x) + (lambda t: t if t[0] > 0 else -t)(x) + [climb(v) for v in (x, x * 2)][1]


def asserts(x):
    assert x.sum() < 100, "too much"
    assert x.norm() > 0 or x.sum() > 0
    return x


def by_library(x):
    return torch.stack(sorted(x, key=lambda v: v))


def unpacks(x):
    i, a, n = 0, [1.0, 2.0, 3.0], int(x[0])
    a[i], i = 5.0, 2
    z = torch.zeros(3, dtype=x.dtype)
    y = z
    y += n
    if x[0] > 0:
        y -= n * 2
    del (a[0], a[0])
    n += (n := 3)
    d = {str(4): 1}
    q, r = divmod(n, 3)
    return z + a[0] + i + n + d.get(str(n), 0) + q * r + (type(n) is int)


class Count:
    def __init__(self):
        self.n = 0

    def bump(self, x):
        if x.sum() > 0:
            self.n += 1


def counted(x):
    c = Count()
    c.bump(x)
    c.bump(-x)
    c.bump(x + 1)
    return x + c.n


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x):
        for _ in range(3):
            x = x * self.linear.bias if x.sum() > 0 else torch.tanh(x) - 0.1
        return x


NET = Net()
ON_VECTORS = (
    branches, newton, breaks, numbers, huge, sizes, lists, iterators, ranges, methods_of_lists, others, objects, unpacks, counted, views, made, again, gradients, contexts, decorated,
    inner_functions, asserts, by_library, NET,
)  # fmt: skip


@pytest.mark.parametrize("f", ON_VECTORS, ids=lambda f: getattr(f, "__name__", "module"))
def test_is_the_loop(f):
    same(f, X)
    same(f, X[:1])
    if f is views:  # writes to a tensor of two levels
        with pytest.raises(InplaceError, match="from outside a branch"):
            vmap(vmap(f, control_flow="split"))(X.reshape(3, 3, 3))
        return
    nested = vmap(vmap(f, control_flow="split"))(X.reshape(3, 3, 3).clone())
    torch.testing.assert_close(nested.flatten(0, 1), loop(f, X), rtol=0, atol=0)


@pytest.mark.parametrize("f", [recursive, tree], ids=lambda f: f.__name__)
def test_recursion(f):
    same(f, NUMBERS)


def test_the_batch_dim_may_be_any_and_arguments_shared():
    def f(x, limit):
        while x.norm() < limit:
            x = x * 1.3 + 0.1
        return x

    limits = torch.linspace(1, 9, 9, dtype=torch.float64)
    expected = loop(f, X, limits)
    assert torch.equal(vmap(f, in_dims=(1, 0), out_dims=1, control_flow="split")(X.T.contiguous(), limits), expected.T)
    assert torch.equal(
        vmap(f, in_dims=(0, None), control_flow="split")(X, limits[5]), loop(lambda x: f(x, limits[5]), X)
    )
    both = vmap(vmap(f, in_dims=(None, 0), control_flow="split"), in_dims=(0, None))(X, limits)
    assert torch.equal(both, torch.stack([torch.stack([f(x, n) for n in limits]) for x in X]))


def test_a_condition_of_the_outer_samples_only():
    def f(x, t):
        return x * 2 if t.sum() > 0 else x - 1

    out = vmap(lambda t: vmap(lambda x: f(x, t), control_flow="split")(X))(X)
    assert torch.equal(out, torch.stack([torch.stack([f(x, t) for x in X]) for t in X]))


def test_gradients_outside_and_inside():
    from vmap_autograd import grad

    w = X.clone().requires_grad_()
    expected = torch.autograd.grad(loop(newton, w).sum(), w)[0]
    (found,) = torch.autograd.grad(vmap(newton, control_flow="split")(w).sum(), w)
    torch.testing.assert_close(found, expected)
    per_sample = vmap(grad(newton), control_flow="split")(X)
    torch.testing.assert_close(per_sample, expected)


def test_parting_under_no_grad_keeps_graphs():
    def f(x):
        box = Box(x * 2)
        with torch.no_grad():
            box.grow(x)
        return box.v.sum()

    a, b = X.clone().requires_grad_(), X.clone().requires_grad_()
    vmap(f, control_flow="split")(a).sum().backward()
    loop(f, b).sum().backward()
    assert torch.equal(a.grad, b.grad)


def test_only_the_samples_that_take_a_branch_run_it():
    def f(x):
        if x[0] > 0:
            return x[0].sqrt()
        return x[0]

    w = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(vmap(f, control_flow="split")(w).sum(), w)
    assert found.isfinite().all()


def test_writes_to_inputs_reach_them():
    def f(x):
        y = x
        if x.sum() > 0:
            x.add_(10)
        elif x[0] > 0:
            y[1] = 5
        return x.sum() * 1

    a, b = X.clone(), X.clone()
    assert torch.equal(vmap(f, control_flow="split")(a), torch.stack([f(row) for row in b]))
    assert torch.equal(a, b)


def test_lists_and_objects_of_the_caller_are_as_they_were_left():
    def helper(x, out, box):
        if x[0] > 0:
            out.append(x * 2)
            box.v = box.v - x
        else:
            out.append(x)

    def f(x):
        out, box = [], Box(x)
        helper(x, out, box)
        helper(x + 1, out, box)
        return torch.stack(out).sum(0) + box.v

    same(f, X)

    def grows(x, out):
        if x[0] > 0:
            out.append(x)

    def g(x):
        out = []
        grows(x, out)
        grows(-x * 2, out)
        return (out[0] if out else x) + len(out)

    same(g, X)
    nested = vmap(vmap(g, control_flow="split"))(X.reshape(3, 3, 3))
    assert torch.equal(nested.flatten(0, 1), loop(g, X))


def test_memory_that_some_samples_share_with_their_caller_is_not_written_to():
    def helper(x):
        return x if x[0] > 0 else x * 2

    def f(x):
        y = x * 1
        z = helper(y)
        z.add_(1)
        return y + z

    with pytest.raises(InplaceError):
        vmap(f, control_flow="split")(X)


@pytest.mark.parametrize("f", [lambda x: x * 2 if x[0] > 0 else x, lambda x: x[:2] if x[0] > 0 else x[1:]])
def test_lambdas(f):
    same(f, X)


def test_each_draw_is_one():
    def coin(x):
        return x + 1 if torch.rand(()) < 0.5 else x

    out = torch.stack([vmap(coin, control_flow="split", randomness="different")(torch.zeros(2)) for _ in range(1500)])
    assert abs(float((out[:, 0] == out[:, 1]).double().mean()) - 0.5) < 0.06
    assert abs(float(out.mean()) - 0.5) < 0.04


def test_nothing_runs_twice():
    runs = []

    def f(x):
        runs.append("start")
        y = x.sum().item() + len(runs)
        if x.sum() > 0:
            y = y + 1
        return x * y

    vmap(f, control_flow="split")(X)
    assert runs == ["start"]


def test_outside_of_vmap_it_is_the_function():
    assert torch.equal(split(newton)(X[0]), newton(X[0]))


def raising(x):
    if x[0] > 0:
        raise ValueError("not positive")
    return x


def catching(x):
    try:
        return raising(x)
    except ValueError:
        return x * 0


def in_try(x):
    try:
        if x[0] > 0:
            x = x * 2
    finally:
        x = x + 1
    return x


def generator(x):
    for a in (v for v in x):
        if a > 0:
            return a
    return x[0]


def held(x):
    d = {"a": x}
    items = d.items()
    if x[0] > 0:
        d["a"] = x * 2
    return next(iter(items))[1]


def counts(x):
    n = 0

    def up():
        nonlocal n
        n += 1

    if x[0] > 0:
        up()
    return x * n


class Lock:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def locked(x):
    with Lock():
        if x[0] > 0:
            x = x * 2
    return x


@pytest.mark.parametrize(
    "f, error, text",
    [
        (raising, ValueError, "not positive"),
        (catching, DataDependentError, "that of some samples only"),
        (in_try, DataDependentError, "it is in a try statement|catches all"),
        (generator, UnsupportedError, "take its values into a list"),
        (
            held,
            UnsupportedError,
            rf"items\(\) of a dict gives is kept, at .*test_split.py:{held.__code__.co_firstlineno + 3},",
        ),
        (counts, DataDependentError, "nonlocal variable|sets a variable"),
        (locked, UnsupportedError, "with statement of a Lock"),
        (lambda x: x[x > 0], DataDependentError, "structure, shape or type"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_errors_say_why_samples_cannot_part(f, error, text):
    with pytest.raises(error, match=text):
        vmap(f, control_flow="split")(X)


def test_closures_that_are_made_inside_are_of_the_sample():
    def f(x):
        found, table = [], {"n": 0}

        def note(v):
            if v.sum() > 0:
                found.append(v)
                table["n"] += 2

        note(x)
        note(-2 * x)
        return x + len(found) + table["n"] + (found[-1] if found else 0)

    same(f, X)


def swallows(x):
    try:
        y = x * 2 if x.sum() > 0 else -x
    except:  # noqa: E722
        y = x * 0
    return y


def ends(x):
    y = x * 0
    try:
        if x.sum() > 0:
            y = x
    finally:
        return y  # noqa: B012


def suppresses(x):
    y = x
    with contextlib.suppress(ValueError):
        y = raising(x)
    return y


def of_some(x):
    try:
        return x + 10 / int(x[0])
    except ZeroDivisionError:
        return x


def pops(x):
    q = [1, 2, 3]
    return x + len(f"{q.pop()} {int(x[0])}") + len(q)


def taken(x):
    h = []
    for v in x:
        heapq.heappush(h, v)
    return h[0]


@pytest.mark.parametrize("f", [swallows, ends, suppresses, of_some, pops, taken], ids=lambda f: f.__name__)
def test_what_would_be_lost_or_done_twice_is_an_error(f):
    with pytest.raises(DataDependentError, match="control_flow='split'"):
        vmap(f, control_flow="split")(X)


def test_the_default_is_an_error_that_says_how():
    with pytest.raises(DataDependentError, match=r"control_flow='split'\) \(pip install vmap-control-flow\)"):
        vmap(newton)(X)
    with pytest.raises(ValueError, match="control_flow should be"):
        vmap(newton, control_flow="both")


def test_errors_have_the_line_of_the_user():
    with pytest.raises(VmapError) as caught:
        vmap(in_try, control_flow="split")(X)
    line = in_try.__code__.co_firstlineno + 2
    assert f"test_split.py:{line}" in str(caught.value)


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(branches, X)


def test_a_program_that_is_captured_goes_one_way():
    with pytest.warns(CaptureWarning, match="cannot be captured"):
        out = vmap_core.compile(vmap(branches, control_flow="split"))(X)
    assert torch.equal(out, loop(branches, X))
