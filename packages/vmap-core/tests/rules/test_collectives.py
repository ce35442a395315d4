"""Collectives inside a mapped function: what the loop gives in which each sample does them in turn.

As a script, given a rank and a file that two processes share, it does the same among two.
"""

import contextlib
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist

import vmap_core
from vmap_core import vmap

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this PyTorch has no gloo"),
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
]
X = torch.arange(24.0).reshape(4, 6)


def ranks():
    return dist.get_world_size()


def all_reduce(x):
    y = x * 2
    dist.all_reduce(y)
    return y


def all_reduce_of_a_view(x):
    y = torch.stack([x, x + 1, x * 2])
    dist.all_reduce(y[1:], dist.ReduceOp.MAX)  # of a tensor that is not contiguous gloo reduces other elements
    return y


def all_reduce_later(x):
    y = x.flip(0)
    work = dist.all_reduce(y, async_op=True)
    work.wait()
    return y


def all_reduce_until_done(x):
    y = x.clone()[:3]
    work = dist.all_reduce(y, async_op=True)
    while not work.is_completed():
        pass
    return x + y.sum()


def all_reduce_what_all_samples_share(x):
    y = torch.ones(3)
    dist.all_reduce(y)
    dist.all_reduce(y)
    return x.sum() + y


def all_reduce_on_one_rank_shared(x):
    y = x * 1 if dist.get_rank() == 0 else torch.ones(6)
    dist.all_reduce(y)
    return y


def reduce(x):
    y = x * 2
    dist.reduce(y, 0)
    return y if dist.get_rank() == 0 else x


def broadcast(x):
    y = x * 2 if dist.get_rank() == 0 else torch.empty(6)
    dist.broadcast(y, 0)
    return y


def broadcast_what_all_samples_share(x):
    y = torch.arange(3.0) if dist.get_rank() == 0 else torch.zeros(3)
    dist.broadcast(y, 0)
    return x.sum() * y


def all_gather(x):
    parts = [torch.zeros(6) for _ in range(ranks())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def all_gather_into_views(x):
    out = torch.zeros(ranks(), 6)
    dist.all_gather(list(out), x)
    return out


def all_gather_what_all_samples_share(x):
    parts = [torch.zeros(2) for _ in range(ranks())]
    dist.all_gather(parts, torch.ones(2) * dist.get_rank())
    return x.sum() + torch.cat(parts)


def all_gather_into_tensor(x):
    x = x.reshape(3, 2)
    out = torch.zeros(3 * ranks(), 2)
    dist.all_gather_into_tensor(out, x)
    return out


def gather(x):
    parts = [torch.zeros(6) for _ in range(ranks())] if dist.get_rank() == 0 else None
    dist.gather(x, parts, 0)
    return torch.cat(parts) if parts else x


def scatter(x):
    out = torch.zeros(6)
    dist.scatter(out, [x + rank for rank in range(ranks())] if dist.get_rank() == 0 else None, 0)
    return out


def reduce_scatter(x):
    out = torch.zeros(6)
    dist.reduce_scatter(out, [x * (rank + 1) for rank in range(ranks())])
    return out


def reduce_scatter_tensor(x):
    out = torch.zeros(6 // ranks())
    dist.reduce_scatter_tensor(out, x)
    return out


def all_to_all_single(x):
    x = x.reshape(2, 3)
    out = torch.zeros(2, 3)
    work = dist.all_to_all_single(out, x, async_op=True)
    work.wait()
    return out


def all_to_all_single_by_sizes(x):
    sent, received = {1: ([6], [6]), 2: (([4, 2], [4, 3]), ([3, 3], [2, 3]))[dist.get_rank()]}[ranks()]
    out = torch.zeros(sum(received), 2)
    dist.all_to_all_single(out, torch.stack([x, -x], 1), received, sent)
    return out


def point_to_point(x):
    if dist.get_rank() == 1:
        dist.send(x * 2, 0)
        dist.isend(torch.ones(2), 0).wait()
    elif ranks() == 2:
        got, ones = torch.empty(6), torch.zeros(2)
        assert dist.recv(got, 1) == 1
        dist.irecv(ones, 1).wait()
        return got.sum() + ones
    return x[:2]


def functional(x):
    from torch.distributed import _functional_collectives as functional

    group = dist.group.WORLD
    y = functional.all_reduce(x, "sum", group) + functional.broadcast(x, 0, group)
    y = functional.all_gather_tensor(y.reshape(3, 2), 1, group).reshape(-1)[: 6 * ranks()]
    y = functional.reduce_scatter_tensor(y, "sum", 0, group)
    return functional.all_to_all_single(y, None, None, group) + functional.all_reduce(torch.ones(6), "sum", group)


# gloo has no all_to_all of lists
CASES = [
    all_reduce, all_reduce_of_a_view, all_reduce_later, all_reduce_until_done, all_reduce_what_all_samples_share,
    all_reduce_on_one_rank_shared, reduce, broadcast, broadcast_what_all_samples_share, all_gather,
    all_gather_into_views, all_gather_what_all_samples_share, all_gather_into_tensor, gather, scatter, reduce_scatter,
    reduce_scatter_tensor, all_to_all_single, all_to_all_single_by_sizes, point_to_point, functional,
]  # fmt: skip


def loop(f, x):
    return torch.stack([f(row) for row in x])


def check(f):
    """Compare with the loop: rows and columns of a batch, a batch of batches, a batch of one."""
    x = X + dist.get_rank() * 100
    torch.testing.assert_close(vmap(f)(x), loop(f, x), rtol=0, atol=0, msg=f.__name__)
    torch.testing.assert_close(vmap(f, in_dims=1)(x.mT.contiguous()), loop(f, x), rtol=0, atol=0)
    torch.testing.assert_close(vmap(f)(x[:1]), loop(f, x[:1]), rtol=0, atol=0)
    both = x.reshape(2, 2, 6).transpose(0, 1)
    expected = torch.stack([loop(f, rows) for rows in both])
    torch.testing.assert_close(vmap(vmap(f))(both), expected, rtol=0, atol=0)
    torch.testing.assert_close(vmap(vmap(f), in_dims=1, out_dims=1)(both), expected, rtol=0, atol=0)


@pytest.fixture(autouse=True)
def alone():
    """One process, which is all there are."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("error::vmap_core.FallbackWarning")
@pytest.mark.parametrize("f", CASES, ids=lambda f: f.__name__)
def test_equals_the_loop(f):
    check(f)


def test_two_processes_equal_the_loop(tmp_path):
    command = [sys.executable, __file__, str(tmp_path / "store")]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    try:
        for process in processes:
            out, _ = process.communicate(timeout=120)
            assert process.returncode == 0 and out.endswith("equal\n"), out
    finally:
        for process in processes:
            process.kill()


def test_a_tensor_from_outside():
    """It takes what is the same for all samples, if the next sample would not go on from there."""
    out, total = torch.zeros(1, 3), torch.ones(3)

    def f(x):
        dist.all_gather(list(out), torch.arange(3.0))
        return x.sum() + out

    torch.testing.assert_close(vmap(f)(X), X.sum(1)[:, None, None] + torch.arange(3.0).expand(1, 3))
    torch.testing.assert_close(out, torch.arange(3.0)[None])
    with pytest.raises(vmap_core.InplaceError, match=r"(?s)all_gather.*comes from outside"):
        vmap(lambda x: dist.all_gather([out[0]], x[:3]))(X)
    vmap(lambda x: (dist.all_reduce(total), x)[1])(X)  # of one rank: nothing changes
    dist.reduce_scatter(total, [total * 2])
    torch.testing.assert_close(total, torch.full((3,), 2.0))


def test_a_tensor_from_outside_that_would_change_for_each_sample(monkeypatch):
    total = torch.ones(3)
    native = dist.ProcessGroup.allreduce

    def doubled(group, tensors, *args):
        tensors[0].mul_(2)
        return native(group, tensors, *args)

    monkeypatch.setattr(dist.ProcessGroup, "allreduce", doubled)
    with pytest.raises(vmap_core.InplaceError, match=r"all_reduce at .*test_collectives.*once for every sample"):
        vmap(lambda x: (dist.all_reduce(total), x)[1])(X)
    torch.testing.assert_close(total, torch.ones(3))
    vmap(lambda x: (dist.all_reduce(total), x)[1])(X[:1])
    torch.testing.assert_close(total, torch.full((3,), 2.0))


def test_the_handle_belongs_inside():
    handles = []

    def f(x):
        out = torch.zeros(6)
        handles.append(dist.reduce_scatter(out, [x.flip(0)], async_op=True))
        y = x.flip(0)[::2]
        handles.append(dist.all_reduce(y, async_op=True))
        with pytest.raises(vmap_core.UnsupportedError, match=r"get_future .*all_reduce.*Instead: call wait"):
            handles[-1].get_future()
        return x

    vmap(f)(X)
    with pytest.raises(vmap_core.EscapedTensorError, match=r"wait\(\) at .*all_reduce.*inside the mapped function"):
        handles[1].wait()


def test_parts_that_do_not_fit():
    for sizes in ([5], [3, 3]):
        with pytest.raises(RuntimeError, match=r"all_to_all_single.*input, of shape \[6\].*1 ranks, \["):
            vmap(lambda x, sizes=sizes: dist.all_to_all_single(torch.zeros(6), x, None, sizes))(X)


def test_coalesced_ones_are_refused():
    def f(x):
        y = x * 1
        with dist.distributed_c10d._coalescing_manager():
            dist.all_reduce(y)
        return y

    with pytest.raises(vmap_core.UnsupportedError, match=r"all_reduce inside _coalescing_manager"):
        vmap(f)(X)


def test_gradients_of_functional_ones():
    from torch.distributed import _functional_collectives as functional

    def f(x):
        y = functional.all_gather_tensor_autograd(x * 3, 0, dist.group.WORLD)
        y = functional.reduce_scatter_tensor_autograd(y * y, "sum", 0, dist.group.WORLD)
        return (y * x).sum()

    grads = []
    for mapped in (vmap(f), lambda x: loop(f, x)):
        x = X.clone().requires_grad_()
        mapped(x).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("f", [all_gather, all_gather_into_tensor, scatter, functional], ids=lambda f: f.__name__)
def test_it_is_not_captured(f):
    """A program would leave it out."""
    compiled = vmap_core.compile(vmap(f))
    with pytest.warns(vmap_core.CaptureWarning, match="communicates with other processes"):
        compiled(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(compiled(X + 1), loop(f, X + 1))


WITHOUT = """
import torch
torch.distributed.is_available = lambda: False
import vmap_core
assert torch.equal(vmap_core.vmap(torch.sin)(torch.ones(2)), torch.ones(2).sin())
assert not any(pack.error for pack in vmap_core.packs())
from vmap_core.rules import collectives
assert not collectives.pack.rules
"""


def test_a_build_without_collectives():
    assert subprocess.run([sys.executable, "-c", WITHOUT], check=False).returncode == 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", vmap_core.FallbackWarning)
    dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=int(sys.argv[2]), world_size=2)
    with contextlib.suppress(AttributeError):
        torch.set_num_threads(1)
    for case in CASES:
        check(case)
    dist.barrier()
    dist.destroy_process_group()
    print("equal")
