"""tensordict: TensorDicts and tensorclasses as inputs, outputs and inside, modules on them, ensembles of parameters."""

import pytest
import torch

from vmap_core import vmap

tensordict = pytest.importorskip("tensordict", reason="tensordict is not installed")

from tensordict import LazyStackedTensorDict, TensorDict, tensorclass  # noqa: E402
from tensordict.nn import TensorDictModule, TensorDictSequential  # noqa: E402

from vmap_autograd import grad  # noqa: E402


def batch():
    torch.manual_seed(0)
    return TensorDict({"a": torch.randn(4, 2, 3), "b": {"c": torch.randn(4, 2)}}, [4, 2])


def check(function, *tds, **dims):
    """Compare with the loop: entries, keys and batch size."""
    got = vmap(function, **dims)(*tds)
    expected = torch.stack([function(*rows) for rows in zip(*(td.unbind(0) for td in tds), strict=True)])
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(got, expected)
        return
    assert type(got) is type(expected) and got.batch_size == expected.batch_size
    assert set(got.keys(True, True)) == set(expected.keys(True, True))
    for key, value in expected.items(True, True):
        torch.testing.assert_close(got[key], value)


def written(d):
    d["new"] = d["a"] * 2
    d["b", "also"] = d["b", "c"] + 1
    return d


def row_written(d):
    d = d.clone()
    d[0] = d[1] * 2
    return d


OPERATIONS = {
    "entries": lambda d: d["a"].sum() * d["b", "c"].prod(),
    "set": written,
    "set rows": row_written,
    "update": lambda d: d.clone().update({"a": d["a"] * 3, "x": d["b", "c"]}),
    "update_": lambda d: d.clone().update_({"a": d["a"] * 3}),
    "arithmetic": lambda d: (d * 2 + 1).exp() - d,
    "apply": lambda d: d.apply(torch.sin),
    "named_apply": lambda d: d.named_apply(lambda name, x: x * len(name), nested_keys=True),
    "select": lambda d: d.select("a", ("b", "c")),
    "exclude": lambda d: d.exclude("b"),
    "flatten_keys": lambda d: d.flatten_keys("."),
    "unflatten_keys": lambda d: d.flatten_keys(".").unflatten_keys("."),
    "leaves": lambda d: sum(v.sum() * (len(k) if isinstance(k, tuple) else 7) for k, v in d.items(True, True)),
    "values": lambda d: torch.stack([v.sum() for v in d.values(True, True)]),
    "to_dict": lambda d: d.to_dict()["b"]["c"] * 2,
    "rename": lambda d: d.copy().rename_key_("a", "z"),
    "pop": lambda d: d.copy().pop("a"),
    "index": lambda d: d[1],
    "index by tensor": lambda d: d[torch.tensor([1, 0, 1])],
    "index by mask": lambda d: d[torch.tensor([True, False])],
    "expand": lambda d: d.unsqueeze(0).expand(5, 2),
    "reshape": lambda d: d.reshape(2, 1),
    "permute": lambda d: d.unsqueeze(-1).permute(1, 0),
    "split": lambda d: d.split(1)[0],
    "stack": lambda d: torch.stack([d, d + 1]),
    "cat": lambda d: torch.cat([d, d + 1]),
    "lazy stack": lambda d: LazyStackedTensorDict(d, d + 1)["a"],
    "where": lambda d: torch.where(d["b", "c"] > 0, d, d * 2),
    "masked_fill": lambda d: d.masked_fill(d["b", "c"] > 0, 1.0),
    "gather": lambda d: d.gather(0, torch.tensor([1, 1, 0])),
    "reductions": lambda d: d.sum(0) + d.mean(0),
    "reduced to a tensor": lambda d: d.sum(reduce=True),
    "norm": lambda d: d.norm(),
    "equal": lambda d: torch.tensor((d == d.apply(lambda x: x * 1)).all()),
    "empty": lambda d: d.empty(),
    "a string inside": lambda d: d.copy().set("s", "text"),
    "cast": lambda d: d.to(torch.float64),
    "detach": lambda d: d.detach().clone(),
    "zeros": lambda d: torch.zeros_like(d) + d,
    "made inside": lambda d: TensorDict({"y": d["a"] * 2, "z": {"w": d["a"][0]}}),
    "made inside, with dims": lambda d: TensorDict({"y": d["a"] * 2}, batch_size=[2]),
    "without entries": lambda d: d.empty().set("only", d["b", "c"]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    check(OPERATIONS[name], batch())


def test_the_batch_size_is_that_of_a_sample():
    sizes = []
    td = batch()
    vmap(lambda d: (sizes.append((d.batch_size, d["b"].batch_size)), d["a"])[1])(td)
    vmap(vmap(lambda d: (sizes.append((d.batch_size, d["b"].batch_size)), d["a"])[1]))(td)
    assert sizes == [((2,), (2,)), ((), ())]
    assert vmap(lambda d: d + 1, in_dims=1, out_dims=1)(td).batch_size == (4, 2)
    assert vmap(lambda d: d + 1, in_dims=1)(td).batch_size == (2, 4)
    out = vmap(lambda d, w: d * w, in_dims=(None, 0))(td, torch.ones(5))
    assert out.batch_size == (5, 4, 2)
    torch.testing.assert_close(vmap(lambda d: d * 2, chunk_size=3)(td)["a"], td["a"] * 2)
    assert vmap(lambda d: d.empty(), chunk_size=3)(td).batch_size == (4, 2)


def test_a_lazy_stack_says_what_to_do():
    lazy = LazyStackedTensorDict(*batch().unbind(0))
    with pytest.raises(ValueError, match=r"cannot map a LazyStackedTensorDict.*\.contiguous\(\)"):
        vmap(lambda d: d["a"])(lazy)
    torch.testing.assert_close(vmap(lambda d: d["a"] * 2)(lazy.contiguous()), batch()["a"] * 2)


@tensorclass
class Data:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "name"


def test_tensorclasses():
    data = Data(x=torch.randn(4, 3), y=torch.randn(4), batch_size=[4])
    torch.testing.assert_close(vmap(lambda d: d.x.sum() + d.y)(data), data.x.sum(1) + data.y)
    out = vmap(lambda d: d + 1)(data)
    assert isinstance(out, Data) and out.batch_size == (4,) and out.name == "name"
    torch.testing.assert_close(out.x, data.x + 1)
    made = vmap(lambda x: Data.from_tensordict(TensorDict({"x": x * 2, "y": x.sum(), "name": "made"})))(data.x)
    assert made.batch_size == (4,)
    torch.testing.assert_close(made.y, data.x.sum(1))


def test_gradients_per_sample():
    got = vmap(grad(lambda d: d["a"].sin().sum() + (d["b", "c"] ** 2).sum()))(batch())
    torch.testing.assert_close(got["a"], batch()["a"].cos())
    torch.testing.assert_close(got["b", "c"], 2 * batch()["b", "c"])


def test_modules_on_tensordicts():
    torch.manual_seed(0)
    module = TensorDictSequential(
        TensorDictModule(torch.nn.Linear(3, 4), ["a"], ["hidden"]),
        TensorDictModule(torch.tanh, ["hidden"], ["out"]),
    )
    check(lambda d: module(d.clone())["out"], batch())


@pytest.mark.parametrize("as_module", [True, False])
def test_an_ensemble_by_parameters(as_module):
    """The ensemble of tensordict's own documentation."""
    torch.manual_seed(0)
    members = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)) for _ in range(3)]
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    params = TensorDict.from_modules(*members, as_module=as_module)
    x = torch.randn(5, 3)

    def call(params, x):
        with params.to_module(net):
            return net(x)

    out = vmap(call, in_dims=(0, None))(params, x)
    torch.testing.assert_close(out, torch.stack([m(x) for m in members]))
    if as_module:
        out.square().sum().backward()
        torch.stack([m(x) for m in members]).square().sum().backward()
        torch.testing.assert_close(
            params["0", "weight"].grad, torch.stack([m[0].weight.grad for m in members]), rtol=1e-4, atol=1e-5
        )


def test_a_module_decorated_before_tensordict_is_imported():
    """The library is met when a mapped function is called, not when it is made."""
    import subprocess
    import sys

    code = (
        "import torch\nfrom vmap_core import vmap\n"
        "def make(x):\n    from tensordict import TensorDict\n    return TensorDict({'y': x * 2})\n"
        "mapped = vmap(lambda x: make(x)['y'])\nimport tensordict\n"
        "assert torch.equal(mapped(torch.ones(3)), torch.full((3,), 2.0))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
