"""Door 1 must read a call exactly as PyTorch's own argument parser does."""

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._python_dispatch import TorchDispatchMode

from vmap_core import vmap
from vmap_core.dispatch.binding import bind
from vmap_core.torch_compat.operators import is_leaf


class FirstOperation(TorchDispatchMode):
    """Records the first ATen operation that a call makes."""

    def __init__(self):
        super().__init__()
        self.seen = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.seen is None:
            self.seen = func, args, kwargs or {}
        return func(*args, **(kwargs or {}))


def canonical(op, args, kwargs):
    """Return all schema arguments by name, defaults filled in."""
    out = {}
    for i, a in enumerate(op._schema.arguments):
        if i < len(args) and not a.kwarg_only:
            out[a.name] = args[i]
        elif a.name in kwargs:
            out[a.name] = kwargs[a.name]
        else:
            out[a.name] = a.default_value if a.has_default_value() else None
    return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, list) != isinstance(b, list):  # int[2] given as one int
        a, b = (a, [b]) if isinstance(a, list) else ([a], b)
    if isinstance(a, list):
        return a == b or a == b * len(a) or b == a * len(b)
    if isinstance(a, torch.device) or isinstance(b, torch.device):
        return torch.device(a or "cpu") == torch.device(b or "cpu")
    if isinstance(a, torch.dtype) != isinstance(b, torch.dtype):  # the dispatcher may show a dtype as its code
        return True
    return a == b or (a != a and b != b) or (not a and not b and {a, b} == {False, None})


def calls(op):
    """The function and the method on every sample that OpInfo has for an operator."""
    for sample in op.sample_inputs("cpu", op.supported_dtypes("cpu").__iter__().__next__()):
        for func in (op.op, op.method_variant, op.inplace_variant):
            if func is not None and type(func) not in (type(lambda: 0),):
                yield func, (sample.input, *sample.args), dict(sample.kwargs)


BUILTIN = [op for op in op_db if type(op.op).__name__ in ("builtin_function_or_method", "method_descriptor")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", BUILTIN, ids=lambda op: f"{op.name}-{op.variant_test_name}")
def test_bind_agrees_with_pytorch(op):
    for func, args, kwargs in list(calls(op))[:60]:
        bound = bind(func, args, kwargs)
        if bound is None:
            continue  # goes through the dispatcher, where PyTorch itself parses it
        overload, arrange = bound
        got_args, got_kwargs = arrange(args, kwargs) if arrange else (args, kwargs)
        mode = FirstOperation()
        try:
            with torch.no_grad(), mode:
                func(*args, **kwargs)
        except (RuntimeError, TypeError, NotImplementedError):
            continue
        if mode.seen is None:
            continue
        seen, seen_args, seen_kwargs = mode.seen
        if overload._schema.name != seen._schema.name or not is_leaf(overload):
            continue  # composite: the dispatcher shows its parts only
        expected, got = canonical(seen, seen_args, seen_kwargs), canonical(overload, got_args, got_kwargs)
        if seen is not overload:
            # a number is wrapped into a Tensor overload; anything else must be the same overload
            assert seen._overloadname.replace("Tensor", "Scalar") == overload._overloadname.replace("Tensor", "Scalar"), (
                seen, overload, args[1:], kwargs,
            )  # fmt: skip
            continue
        for name, value in expected.items():
            assert same(value, got[name]), (overload, name, value, got[name])


def elsewhere():
    """Methods whose tensor is not the first argument of the schema."""
    for name in dir(torch.Tensor):
        packet = getattr(torch.ops.aten, name, None)
        for overload in getattr(packet, "overloads", list)():
            arguments = getattr(packet, overload)._schema.arguments[1:]
            behind = any(a.name == "self" and str(a.type) == "Tensor" for a in arguments)
            takes_out = any(a.name == "out" for a in arguments)
            if behind and not takes_out and type(getattr(torch.Tensor, name)).__name__ == "method_descriptor":
                yield f"{name}.{overload}"


C, X, Y = torch.tensor([True, False, True]), torch.tensor([False, False, True]), torch.tensor([True, True, False])
METHODS = {
    "where.self": [(X, C, Y), (X.long(), C, Y), (X.double(), C, Y.float()), (C.float(), C, Y.float())],
    "where.ScalarOther": [(X.float(), C, 2.0), (X.long(), C, 3)],
    "polygamma.default": [(torch.rand(3) + 1, 1)],
}


@pytest.mark.parametrize("name", sorted(set(elsewhere()) | {"where.self"}))
def test_a_methods_tensor_is_its_self(name):
    method = getattr(torch.Tensor, name.partition(".")[0])
    for x, *args in METHODS[name]:
        expected = method(x, *args)
        bound = bind(method, (x, *args), {})
        if bound is not None:  # else it goes through the dispatcher, where PyTorch itself parses it
            overload, arrange = bound
            torch.testing.assert_close(overload(*(arrange((x, *args), {})[0] if arrange else (x, *args))), expected)
        dims = tuple(0 if isinstance(a, torch.Tensor) else None for a in (x, *args))
        torch.testing.assert_close(vmap(method, dims)(x, *args), expected)
