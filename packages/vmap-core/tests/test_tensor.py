"""BatchedTensor answers for the logical tensor: what a sample says of itself in a Python loop."""

import copy
import pickle

import pytest
import torch

from vmap_core import DataDependentError, UnsupportedError, vmap

SAMPLES = {
    "plain": torch.randn(3, 2, 4),
    "transposed": torch.randn(3, 2, 4).transpose(1, 2),
    "strided": torch.randn(3, 2, 4)[:, :, ::2],
    "offset": torch.randn(3, 2, 5)[:, :, 1:],
    "scalar": torch.randn(3),
    "ones": torch.randn(3, 1, 2, 1),
    "empty": torch.randn(3, 0, 2),
    "expanded": torch.randn(3, 1, 2).expand(3, 4, 2),
    "conjugate": torch.randn(3, 2, 2, dtype=torch.complex64).conj(),
    "negative": torch.randn(3, 2, 2, dtype=torch.complex64).conj().imag,
    "integer": torch.arange(6).reshape(3, 2),
    "channels last": torch.randn(3, 2, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d)[:, :, :, :, 0],
    "images": torch.randn(6, 3, 4, 5).contiguous(memory_format=torch.channels_last).reshape(3, 2, 3, 4, 5),
    "requires grad": torch.randn(3, 2).requires_grad_(),
}
SAMPLES["images"] = torch.stack([i.contiguous(memory_format=torch.channels_last) for i in SAMPLES["images"]])
FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


def answer(function, x):
    try:
        return function(x)
    except (IndexError, TypeError) as error:
        return type(error), str(error)


QUESTIONS = {
    "shape": lambda x: x.shape,
    "ndim": lambda x: (x.ndim, x.dim(), x.ndimension()),
    "numel": lambda x: (x.numel(), x.nelement(), x.nbytes, x.itemsize, x.element_size()),
    "size": lambda x: x.size(),
    **{f"size {d}": lambda x, d=d: x.size(d) for d in (0, -1, 1, 7)},
    "stride": lambda x: x.stride(),
    **{f"stride {d}": lambda x, d=d: x.stride(d) for d in (0, -1, -8)},
    "functions": lambda x: (torch.numel(x), torch.is_complex(x), torch.is_floating_point(x), torch.is_conj(x)),
    "contiguous": lambda x: [x.is_contiguous(), *(x.is_contiguous(memory_format=f) for f in FORMATS)],
    "dim order": lambda x: x.dim_order(),
    "offset": lambda x: x.storage_offset(),
    "kinds": lambda x: (x.dtype, x.device, x.layout, x.is_sparse, x.is_nested, x.is_quantized, x.is_meta),
    "flags": lambda x: (x.requires_grad, x.is_conj(), x.is_neg(), x.is_complex(), x.is_signed(), x.is_inference()),
    "type": lambda x: (x.type(), isinstance(x, torch.Tensor), torch.is_tensor(x)),
    "len": len,
}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("depth", [1, 2])
def test_metadata_is_the_samples(sample, depth):
    batch = SAMPLES[sample]
    for in_dim in range(batch.ndim):
        x = batch.movedim(0, in_dim)
        expected = {k: answer(q, x.select(in_dim, 0)) for k, q in QUESTIONS.items()}
        got = {}

        def f(row, got=got):
            got.update({k: answer(q, row) for k, q in QUESTIONS.items()})
            return row

        if depth == 1:
            vmap(f, in_dims=in_dim)(x)
        else:
            vmap(vmap(f, in_dims=in_dim))(x.unsqueeze(0).expand(2, *x.shape))
        assert got == expected


def test_a_read_of_a_batched_value_says_what_and_where():
    reads = {
        "item": lambda x: x.item(),
        "float": float,
        "int": int,
        "bool": bool,
        "index": lambda x: [1, 2, 3][x],
        "complex": complex,
        "format": lambda x: f"{x:.2f}",
        "tolist": lambda x: x.tolist(),
        "numpy": lambda x: x.numpy(),
        "contains": lambda x: 1 in x.reshape(1),
    }
    for read in reads.values():
        with pytest.raises(DataDependentError, match=r"(?s)test_tensor.py:\d+.*logical shape \(.*Instead: "):
            vmap(read)(torch.arange(3))


def test_a_value_that_all_samples_share_may_be_read():
    def f(x):
        t = torch.full((), 2.0)
        assert t.item() == float(t) == 2.0 and int(t) == 2 and bool(t)
        assert f"{t:.1f}" == "2.0" and torch.ones(2).tolist() == [1.0, 1.0]
        return x * t.item()

    assert torch.equal(vmap(f)(torch.ones(3)), torch.full((3,), 2.0))


def test_repr_is_readable_at_every_level_and_reads_nothing():
    seen = []

    def f(x):
        seen.extend([repr(x), str(x), f"{x}", repr([x])])
        return x

    vmap(vmap(f), in_dims=1)(torch.zeros(2, 3, 4))
    assert seen[0] == seen[1] == seen[2] and seen[3] == f"[{seen[0]}]"
    assert seen[0].count("BatchedTensor") == 2 and seen[0].count("vmap of 'f'") == 2
    assert "bdim=1" in seen[0] and "bdim=0" in seen[0] and "tensor([[[0., 0." in seen[0]


def test_iteration_and_unpacking():
    x = torch.randn(3, 2, 4)
    out = vmap(lambda r: (lambda a, b: a + b)(*r) + sum(r) + reversed(r)[0])(x)
    torch.testing.assert_close(out, torch.stack([r[0] + r[1] + r.sum(0) + r[1] for r in x]))
    for scalar in (len, iter, lambda t: [*t]):
        with pytest.raises(TypeError, match="0-d tensor"):
            vmap(scalar)(torch.zeros(3))


def test_copies():
    x = torch.randn(3, 2, requires_grad=True)
    y = vmap(copy.deepcopy)(x.detach())
    assert torch.equal(y, x) and y.data_ptr() != x.data_ptr()
    with pytest.raises(UnsupportedError, match=r"pickle .*test_tensor\.py"):
        vmap(lambda r: pickle.dumps(r))(x)


def test_hash_and_identity():
    def f(x):
        assert len({x, x}) == 1 and x in {x: 1} and x is not x.clone()
        return x

    vmap(f)(torch.zeros(3))


def test_operators_with_strangers():
    class Stranger:
        def __radd__(self, other):
            return "stranger"

    seen = []
    vmap(lambda x: (seen.append(x + Stranger()), x)[1])(torch.zeros(3))
    assert seen == ["stranger"]
    with pytest.raises(TypeError, match="unsupported operand"):
        vmap(lambda x: x + object())(torch.zeros(3))
