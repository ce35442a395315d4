"""chunk_size: the result is that of one piece, and the randomness what its mode says."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch

from vmap_core import vmap
from vmap_core.levels.stack import current_levels
from vmap_core.transform import memory as _memory
from vmap_core.transform.chunking import _Measured

SIZES = [0, 1, 3, 5]
CHUNKS = [1, 2, 5, 9]


@dataclasses.dataclass
class Data:
    a: torch.Tensor
    b: object = None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_every_kind_of_output(size, chunk):
    x, w = torch.randn(4, size, 2), torch.randn(2)
    constant = torch.randn(3)

    def f(x, w):
        return {
            "moved": x * w,
            "last": (x.sum(), x.t().cumsum(0)),
            "shared": torch.zeros(2) + w,
            "same": constant,
            "none": None,
            "data": Data(x.mean(0), w),
        }

    out_dims = {"moved": 1, "last": (0, -1), "shared": 1, "same": None, "none": 0, "data": Data(-1, None)}
    whole = vmap(f, in_dims=(1, None), out_dims=out_dims)(x, w)
    parts = vmap(f, in_dims=(1, None), out_dims=out_dims, chunk_size=chunk)(x, w)
    assert parts["same"] is constant and parts["none"] is None and parts["data"].b is w
    for a, b in (
        (parts["moved"], whole["moved"]),
        *zip(parts["last"], whole["last"], strict=True),
        (parts["shared"], whole["shared"]),
        (parts["data"].a, whole["data"].a),
    ):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_random_numbers_are_the_peers(chunk, randomness):
    x, drawn = torch.zeros(5, 3), []
    for transform in (torch.vmap, vmap):
        torch.manual_seed(1)
        out = transform(lambda x: x + torch.rand(3), randomness=randomness, chunk_size=chunk)(x)
        drawn.append((out, torch.rand(2)))  # the state left behind is the same, too
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_same_holds_for_an_explicit_generator(chunk):
    g = torch.Generator().manual_seed(1)

    def f(x):
        return x + torch.rand(3, generator=g) + torch.empty(3).normal_(generator=g) + torch.rand(())

    out = vmap(f, randomness="same", chunk_size=chunk)(torch.zeros(5, 3))
    assert torch.equal(out, out[:1].expand(5, 3))
    h = torch.Generator().manual_seed(1)
    torch.rand(3, generator=h), torch.empty(3).normal_(generator=h)
    assert torch.equal(g.get_state(), h.get_state())  # as after one sample


def test_same_in_nested_chunks():
    f = vmap(lambda y: y + torch.rand(()), randomness="same", chunk_size=2)
    out = vmap(f, randomness="same", chunk_size=2)(torch.zeros(3, 5))
    assert (out == out[0, 0]).all()


def test_chunks_without_inputs():
    assert vmap(lambda: torch.ones(2), axis_size=5, chunk_size=2)().shape == (5, 2)
    out = vmap(lambda *, k: k * 2, kw_in_dims={"k": 1}, chunk_size=2)(k=torch.ones(2, 5))
    assert torch.equal(out, torch.full((5, 2), 2.0))


def test_gradients_and_writes_go_through():
    x = torch.randn(5, 3, requires_grad=True)
    vmap(lambda r: (r * r).sum(), chunk_size=2)(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())
    y = torch.ones(5, 3)
    vmap(lambda r: r.mul_(2), chunk_size=2)(y)
    assert torch.equal(y, torch.full((5, 3), 2.0))


def test_one_chunk_copies_nothing():
    x = torch.randn(4, 2)
    assert vmap(lambda r: r, chunk_size=4)(x).data_ptr() == x.data_ptr()


def test_an_exception_in_a_later_chunk():
    calls = []

    def f(x):
        calls.append(x)
        if len(calls) == 2:
            raise KeyError("second")
        return x

    with pytest.raises(KeyError, match="second"):
        vmap(f, chunk_size=2, randomness="same")(torch.zeros(5))
    assert current_levels() == [] and torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("bad", [0, -1, "a", 2.5])
def test_bad_sizes_have_the_peers_class(bad):
    errors = []
    for transform in (torch.vmap, vmap):
        with pytest.raises((ValueError, TypeError)) as error:
            transform(lambda x: x, chunk_size=bad)(torch.zeros(5))
        errors.append(error)
    assert errors[0].type is errors[1].type


class Sizes:
    """A function that notes the batch sizes it is mapped at."""

    def __init__(self, fail_above=None, write=False):
        self.seen, self.fail_above, self.write = [], fail_above, write

    def __call__(self, x):
        size = x._value.shape[x._bdim]
        self.seen.append(size)
        if self.write:
            x.add_(1)
        if self.fail_above is not None and size > self.fail_above:
            raise torch.OutOfMemoryError("no memory left")
        return (x * 2 + 1).sum()


def test_auto_fits_chunks_into_the_budget():
    x = torch.randn(100, 1000)
    f = Sizes()
    sample = 2 * 4 * 1000 + 4  # two temporaries of a sample, one result
    out = vmap(f, chunk_size="auto", memory_budget=20 * sample)(x)
    torch.testing.assert_close(out, (x * 2 + 1).sum(1))
    assert f.seen[0] == 8
    assert all(18 <= size <= 20 for size in f.seen[1:-1])
    f = Sizes()
    vmap(f, chunk_size="auto", memory_budget=1)(x[:20])
    assert f.seen == [8, *[1] * 12]
    f = Sizes()
    vmap(f, chunk_size="auto")(x)  # there is more free memory than that
    assert f.seen == [8, 92]


def test_auto_counts_what_is_kept_and_not_what_is_freed():
    x = torch.randn(16, 1000)

    def chain(x):
        for _ in range(50):
            x = x + 1
        return x

    def kept(x):
        return [x + i for i in range(50)]

    with _memory.Meter() as freed:
        vmap(chain)(x)
    with _memory.Meter() as alive:
        vmap(kept)(x)
    assert freed.peak == 2 * x.nbytes
    assert alive.peak == 50 * x.nbytes


def test_auto_halves_where_memory_runs_out():
    x = torch.randn(100, 10)
    f = Sizes(fail_above=30)
    out = vmap(f, chunk_size="auto")(x)
    torch.testing.assert_close(out, (x * 2 + 1).sum(1))
    assert f.seen == [8, 92, 46, 23, 23, 23, 23]
    with pytest.raises(torch.OutOfMemoryError):
        vmap(Sizes(fail_above=0), chunk_size="auto")(x)
    with pytest.raises(ValueError, match="other"):
        vmap(lambda x: (_ for _ in ()).throw(ValueError("other")), chunk_size="auto")(x)


@pytest.fixture
def gpu(monkeypatch):
    """What PyTorch says of a GPU's memory."""
    log = []
    says = {
        "is_initialized": lambda: True,
        "mem_get_info": lambda device: (6000, 80000),
        "memory_reserved": lambda device: 5000,
        "memory_allocated": lambda device: 1000,
        "empty_cache": lambda: log.append("emptied"),
    }
    for name, answer in says.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return log


def test_auto_asks_for_the_free_memory_of_a_gpu(gpu):
    cuda, host = torch.device("cuda", 0), torch.device("cpu")
    assert _memory.free_bytes(cuda) == 6000 + 5000 - 1000
    with _memory.Meter() as meter:
        torch.empty(3) + torch.ones(4)[:1]  # 12 and 16 bytes, 12 for the sum
        meter._count(cuda, 1600)  # as an operation on a GPU would
        meter._count(cuda, -1600)
    assert meter.peaks == {cuda: 1600, host: 40} and meter.peak == 1600
    chunks = _Measured(100, [], None)
    assert chunks._times(meter) == 0.5 * 10000 / 1600  # the host has more room
    assert _Measured(100, [], 3200)._times(meter) == 2
    assert _Measured(100, [], None)._times(_memory.Meter()) == 100


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_auto_empties_the_cache_before_it_tries_again(gpu, error):
    kept = []

    class Big:
        """What a call that fails leaves in a cycle."""

    def f(x):
        size = x._value.shape[x._bdim]
        gpu.append(size)
        big = Big()
        big.me = big
        kept.append(weakref.ref(big))
        if size > 30:
            raise type(error)(*error.args)
        return x + 1

    x = torch.randn(100, 2)
    torch.testing.assert_close(vmap(f, chunk_size="auto", memory_budget=10**9)(x), x + 1)
    assert gpu == [8, 92, "emptied", 46, "emptied", 23, 23, 23, 23]
    assert kept[1]() is None and kept[2]() is None


@pytest.mark.cuda
def test_auto_on_a_gpu():
    free = _memory.free_bytes(torch.device("cuda"))
    x = torch.ones(64, 1024, 1024, device="cuda")  # 4 MiB a sample
    copies = int(1.5 * free / x.nbytes) + 1

    def f(x):  # for all samples at once there is no room
        return sum([x + i for i in range(copies)][-1:])[0, 0]

    out = vmap(f, chunk_size="auto")(x)
    assert out.tolist() == [float(copies)] * 64


@pytest.mark.cuda
def test_auto_recovers_on_a_gpu():
    seen = []

    def f(x):
        seen.append(x._value.shape[x._bdim])
        if seen[-1] > 20:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return x * 2

    x = torch.ones(64, 4, device="cuda")
    assert torch.equal(vmap(f, chunk_size="auto")(x), 2 * x)
    assert seen == [8, 56, 28, 14, 14, 14, 14]


def test_auto_does_not_write_twice():
    x = torch.zeros(100, 10)
    with pytest.raises(torch.OutOfMemoryError) as error:
        vmap(Sizes(fail_above=30, write=True), chunk_size="auto")(x)
    assert "written to its inputs" in error.value.__notes__[0]


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_auto_and_randomness(randomness):
    x = torch.zeros(40, 3)
    out = vmap(lambda x: torch.rand(3) + x, chunk_size="auto", memory_budget=100, randomness=randomness)(x)
    assert (len(out.unique(dim=0)) == 1) == (randomness == "same")


def test_auto_nested_and_of_gradients():
    x = torch.randn(3, 20, 5, requires_grad=True)
    inner = vmap(lambda x: x.sin().sum(), chunk_size="auto", memory_budget=200)
    out = vmap(inner)(x)
    torch.testing.assert_close(out, x.sin().sum(2))
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, x.cos())


def test_progress(capsys):
    vmap(torch.sin, chunk_size=3, progress=True)(torch.zeros(10))
    assert "10/10" in capsys.readouterr().err


def test_options_that_need_each_other():
    for options in (
        {"progress": True},
        {"memory_budget": 5},
        {"chunk_size": 3, "memory_budget": 5},
    ):
        with pytest.raises(ValueError, match="chunk_size"):
            vmap(torch.sin, **options)


@pytest.mark.parametrize("bad", [0, -1, True, 2.5e9, "1GiB", torch.tensor(5)])
def test_budgets_that_are_none(bad):
    with pytest.raises(ValueError, match="memory_budget should be None or a whole number of bytes greater than 0"):
        vmap(torch.sin, chunk_size="auto", memory_budget=bad)


def test_a_budget_of_numpys():
    assert torch.equal(
        vmap(torch.sin, chunk_size="auto", memory_budget=np.int64(100))(torch.ones(20)), torch.ones(20).sin()
    )


GIB = 2**30
NAMES = {
    2: ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, 16),  # no groups: what the host has
        ({"a/b": ("max", 5, 0), "a": (9, 6, 0)}, 3),  # the outer one is narrower
        ({"a/b": (8, 6, 1), "a": (99, 50, 0)}, 3),  # of what is used, the cache can be had back
        ({"": (8, 1, 0)}, 7),  # a container: it sees its own group as the outermost
        ({"a/b": (2, 3, 0)}, 0),  # nothing left
        ({"a/b": (99, 3, 0)}, 16),  # a limit beyond the host's memory
        ({"other": (1, 1, 0)}, 16),  # somebody else's
    ],
)
def test_free_memory_is_what_the_control_groups_leave(version, groups, expected, tmp_path, monkeypatch):
    place, limit, used, cached = NAMES[version]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {16 * 2**20} kB\n")
    (tmp_path / "proc/self/cgroup").write_text(
        "0::/a/b\n" if version == 2 else "5:cpu,memory:/a/b\n1:name=systemd:/x:y\n"
    )
    for group, (most, now, cache) in groups.items():
        files = tmp_path / place / group
        files.mkdir(parents=True, exist_ok=True)
        (files / limit).write_text(f"{most if most == 'max' else most * GIB}\n")
        (files / used).write_text(f"{now * GIB}\n")
        (files / "memory.stat").write_text(f"anon 17\n{cached} {cache * GIB}\n")
    monkeypatch.setattr(_memory, "ROOT", tmp_path)
    assert _memory.free_bytes(torch.device("cpu")) == expected * GIB


def test_free_memory_of_this_machine():
    assert 2**20 < _memory.free_bytes(torch.device("cpu")) < 2**50


def test_parts_are_joined_as_cat_joins_them():
    from vmap_core.transform.chunking import Parts

    def joined(dim, *parts):
        whole = Parts(sum(p.shape[dim] for p in parts), dim)
        for p in parts:
            whole.add(p)
        got, expected = whole.whole(), torch.cat(parts, dim)
        assert torch.equal(got, expected)
        assert (got.dtype, got.stride(), got.requires_grad) == (
            expected.dtype,
            expected.stride(),
            expected.requires_grad,
        )

    a, b = torch.randn(2, 3), torch.randn(4, 3)
    joined(0, a, b, a)
    joined(-1, a.T, b.T)
    joined(1, a.T.contiguous(), b.T)
    joined(0, a, b.double(), a)  # cat promotes
    joined(0, a, b.T.contiguous().T)
    joined(0, a.requires_grad_(), b)
    image = torch.randn(2, 3, 4, 4)
    joined(0, image.to(memory_format=torch.channels_last), image)
    joined(0, image, image.to(memory_format=torch.channels_last))
    joined(1, image.to(torch.complex64).conj(), image.to(torch.complex64))
