"""A KeyboardInterrupt at any moment leaves the stack of modes, and what is patched meanwhile, as they were."""

import contextlib
import dis
import functools
import itertools
import signal
import sys
import threading
import time

import pytest
import torch
from torch.overrides import TorchFunctionMode

from vmap_core import custom_vmap, vmap
from vmap_core.levels.level import Level
from vmap_core.levels.stack import modes
from vmap_core.patching import registry
from vmap_core.rulekit.packs import current_table
from vmap_core.torch_compat.mode_stack import mode_at, push_mode, stack_size

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


twice = custom_vmap(lambda x: x * 2)
twice.def_vmap(lambda info, in_dims, x: (x * 2, in_dims[0]))


def body(x):
    return torch.nn.functional.gelu(x.sin() + torch.ones(3)).reshape(3, 1)


def gradients(x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(x.exp().sum(), x)[0]


def inside_a_mode(x):
    with Mode():
        return vmap(body)(x)


def under_a_mode_of_its_own(x):
    def f(x):
        with Mode():
            return x + 1

    return vmap(f)(x)


def raises(x):
    def f(x):
        raise ValueError(x.sin())

    with contextlib.suppress(ValueError):
        vmap(f)(x)


CALLS = {
    "plain": vmap(body),
    "out_dims": vmap(lambda x: (x, {"a": x.sum()}), out_dims=(1, 0)),
    "nested": vmap(vmap(torch.sin)),
    "chunked": vmap(torch.sin, chunk_size=2),
    "lowered": vmap(lambda x: torch.cdist(x[None], x[None])),
    "a rule of its own": vmap(twice),
    "gradients inside": vmap(gradients),
    "inside a mode": inside_a_mode,
    "a mode inside": under_a_mode_of_its_own,
    "an error": raises,
}


@functools.cache
def after_calls(code):
    """Return the offsets at which CPython has just looked for a signal: behind calls, and where the function begins."""
    found = list(dis.get_instructions(code))
    return {b.offset for a, b in itertools.pairwise(found) if a.opname.startswith(("CALL", "RESUME"))}


class Interrupt:
    """Interrupts at the n-th opcode that is about to run in the core's frames; of all, or of those after calls."""

    def __init__(self, at, everywhere=True):
        self.at, self.everywhere, self.seen = at, everywhere, 0

    def __call__(self, frame, event, arg):
        if "vmap_core" not in frame.f_globals.get("__name__", ""):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and (self.everywhere or frame.f_lasti in after_calls(frame.f_code)):
            self.seen += 1
            if self.seen == self.at:
                raise KeyboardInterrupt
        return self

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, kind, *rest):
        sys.settrace(self.before)
        return kind is KeyboardInterrupt


def check_clean(expected):
    assert [mode_at(i) for i in range(stack_size())] == expected
    assert not registry._names["inside"] and not registry._names["placed"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a generator that is being closed
@pytest.mark.parametrize("name", CALLS)
def test_at_any_moment(name):
    """Also where no signal is looked for; but not in the few opcodes between an error and what is done about it."""
    call, everywhere = CALLS[name], name != "an error"
    x = torch.randn(4, 3, 2) if name == "nested" else X
    expected = call(x)
    call(x)
    with Interrupt(None, everywhere) as counted:
        call(x)
    step = max(
        1, counted.seen // 400
    )  # all of them in the small calls, and those near the ends, where levels come and go
    moments = {*range(1, counted.seen, step), *range(1, 150), *range(max(1, counted.seen - 150), counted.seen)}
    with Mode() as outer:
        for at in moments:
            with Interrupt(at, everywhere):
                call(x)
            check_clean([outer])
    if expected is not None:
        torch.testing.assert_close(call(x), expected)
    check_clean([])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_by_signals():
    """As Ctrl-C does it: wherever the interpreter looks for signals, also in PyTorch, which may then leave modes behind.

    So modes of the user's are no part of this; a level that PyTorch puts back too late does nothing, and the next vmap takes it off.
    """
    calls = [CALLS[name] for name in CALLS if name != "nested" and "mode" not in name]
    for _ in range(2):
        start = time.perf_counter()
        for call in calls:
            call(X)
    once = time.perf_counter() - start
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    try:
        for i in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, once * (i + 1) / 200)
                for call in calls:
                    call(X)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert type(torch.sin(X)) is type(torch.ones(3)) is torch.Tensor
            torch.testing.assert_close(vmap(torch.sin)(X), X.sin())
            check_clean([])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted
    torch.testing.assert_close(vmap(body)(X), torch.stack([body(x) for x in X]))


def test_what_is_left_is_taken_off_by_the_next():
    """A level of a call that has ended, above a mode of the user's."""
    left = Level(2, "error", current_table(), "interrupted")
    with Mode() as mode:
        push_mode(left)
        left.active, left.plans, left.ways = False, {}, {}
        seen = []
        assert type(torch.sin(X)) is type(torch.ones(3)) is type(X + torch.ones(3)) is torch.Tensor
        out = vmap(lambda x: (x.sin(), seen.extend(modes()))[0])(X)
        torch.testing.assert_close(out, X.sin())
        assert [type(m) for m in seen] == [Mode, Level] and seen[0] is mode
    check_clean([])


def test_in_another_thread_meanwhile():
    """The patches stay in place for a call that goes on in another thread."""
    inside, go_on = threading.Event(), threading.Event()

    def slow(x):
        inside.set()
        go_on.wait(10)
        return gradients(x)

    out = []
    thread = threading.Thread(target=lambda: out.append(vmap(slow)(X)))
    thread.start()
    assert inside.wait(10)
    with Interrupt(300):
        vmap(body)(X)
    assert registry._names["placed"] and len(registry._names["inside"]) == 1
    go_on.set()
    thread.join(10)
    torch.testing.assert_close(out[0], X.exp())
    check_clean([])
