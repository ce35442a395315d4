"""The level stack: tensors that escape, modes of the user's, hooks, threads, odd callables."""

import threading

import pytest
import torch
from torch.overrides import TorchFunctionMode

from vmap_core import EscapedTensorError, vmap
from vmap_core.levels.stack import current_levels

X = torch.arange(12.0).reshape(3, 4)
PEERS_TEXT = "your tensor may have escaped from inside a function being vmapped"


def escapee(*, shared=False):
    kept = []

    def leaky(x):
        kept.append(torch.ones(4) * 2 if shared else x)
        return x

    vmap(leaky)(X)
    return kept[0]


USES = {
    "argument": lambda t: vmap(torch.sin)(t),
    "second argument": lambda t: vmap(torch.mul)(X, t),
    "shared argument": lambda t: vmap(torch.mul, in_dims=(0, None))(X, t),
    "nested argument": lambda t: vmap(lambda a: a["x"])({"x": t}),
    "keyword": lambda t: vmap(lambda x, k: x + k)(X, k=t),
    "mapped keyword": lambda t: vmap(lambda x, k: x + k, kw_in_dims={"k": 0})(X, k=t),
    "output": lambda t: vmap(lambda x: t)(X),
    "nested output": lambda t: vmap(lambda x: {"a": [x, t]})(X),
    "output with out_dims None": lambda t: vmap(lambda x: t, out_dims=None)(X),
    "operator": lambda t: t + 1,
    "reflected operator": lambda t: X + t,
    "in a list": lambda t: torch.stack([X[0], t]),
    "in place": lambda t: t.add_(1),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_an_escaped_tensor_is_refused_wherever_it_turns_up(use):
    with pytest.raises(EscapedTensorError, match=f"leaky.*{PEERS_TEXT}"):
        use(escapee())


def test_an_escaped_tensor_of_an_inner_level_is_refused_in_the_outer_one():
    def outer(x, use):
        kept = []

        def inner(y):
            kept.append(y)
            return y

        vmap(inner)(x)
        return use(kept[0])

    for use in (lambda t: t, lambda t: t * 2, lambda t: vmap(torch.sin)(t)):
        with pytest.raises(EscapedTensorError, match="inner"):
            vmap(lambda x, use=use: outer(x, use))(X)


def test_an_escaped_tensor_that_all_samples_share_is_worth_its_value():
    t = escapee(shared=True)
    assert torch.equal(t + 1, torch.full((4,), 3.0))
    assert torch.equal(vmap(lambda x: t)(X), torch.full((3, 4), 2.0))
    assert torch.equal(vmap(torch.neg)(t), torch.full((4,), -2.0))


def test_a_tensor_of_another_threads_level_is_refused():
    seen = []

    def f(x):
        def work():
            try:
                seen.append(x + 1)
            except EscapedTensorError as error:
                seen.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return x

    vmap(f)(X)
    assert PEERS_TEXT in seen[0]


def test_a_tensor_of_an_outer_level_is_shared_by_the_inner_one():
    out = vmap(lambda x: vmap(lambda y: x)(torch.zeros(2)))(X)
    assert torch.equal(out, X[:, None].expand(3, 2, 4))
    out = vmap(lambda x: vmap(lambda y: x, out_dims=None)(torch.zeros(2)))(X)
    assert torch.equal(out, X)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_every_level_unwinds_on_an_exception(depth):
    def f(x):
        raise ZeroDivisionError

    for _ in range(depth):
        f = vmap(f)
    with pytest.raises(ZeroDivisionError):
        f(torch.zeros((2,) * depth))
    assert current_levels() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, SystemExit])
def test_exceptions_that_are_not_errors_unwind_too(error):
    def f(x):
        raise error

    with pytest.raises(error):
        vmap(f)(X)
    assert current_levels() == []


class Counting(TorchFunctionMode):
    """Count the calls that come by."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_a_mode_left_open_inside_stays_open_and_the_level_does_not():
    suspended = []

    def opens():
        with Counting() as mode:
            yield mode

    def f(x):
        suspended.append(opens())
        next(suspended[0])
        return x * 2

    assert torch.equal(vmap(f)(X), X * 2)
    assert current_levels() == []
    assert torch._C._len_torch_function_stack() == 1  # the user's own mode, to be closed by its owner
    suspended[0].close()
    assert torch._C._len_torch_function_stack() == 0


def test_modes_around_and_inside_see_physical_and_logical_calls():
    with Counting() as outside:
        vmap(lambda x: x.sin())(X)
    assert outside.calls > 0

    def f(x):
        with Counting() as inside:
            y = x.sin()
        assert inside.calls == 1
        return y

    assert torch.equal(vmap(f)(X), X.sin())


def test_default_device_set_inside():
    def f(x):
        torch.set_default_device("cpu")
        return x + torch.ones(4)

    try:
        assert torch.equal(vmap(f)(X), X + 1)
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("odd", ["generator", "coroutine"])
@pytest.mark.filterwarnings("ignore:coroutine")
def test_functions_that_do_not_run_when_called_are_rejected_like_any_other_output(odd):
    def generator(x):
        yield x

    async def coroutine(x):
        return x

    function = {"generator": generator, "coroutine": coroutine}[odd]
    with pytest.raises(ValueError, match=f"must only return Tensors, got type <class '{odd}'>"):
        vmap(function)(X)


def test_a_generator_that_outlives_its_level():
    def numbers(x):
        yield x * 2

    made = []
    vmap(lambda x: made.append(numbers(x)) or x)(X)
    with pytest.raises(EscapedTensorError):
        next(made[0])


def test_names_of_levels_are_made_when_asked_for():
    class Slow(torch.nn.Module):
        def __repr__(self):
            raise AssertionError("nobody asked")

        def forward(self, x):
            return x * 2

    assert torch.equal(vmap(Slow())(X), X * 2)
    assert torch.equal(vmap(Slow(), in_dims=(0,), out_dims=(0,), chunk_size=2)(X), X * 2)
