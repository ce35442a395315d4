"""Subclasses of Tensor as inputs."""

import pytest
import torch

from vmap_core import UnsupportedError, vmap


class Median(torch.Tensor):
    def mean(self):
        return self.as_subclass(torch.Tensor).median()


class Named(torch.Tensor):
    """It defines nothing of Tensor's anew."""

    def __new__(cls, data):
        return data.as_subclass(cls)

    def __repr__(self):
        return "Named"

    def label(self):
        return "a"


class Inherits(Median):
    pass


class Item(torch.Tensor):
    @property
    def T(self):
        return self


class Image(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})

    @property
    def ndim(self):
        with torch._C.DisableTorchFunctionSubclass():
            return super().ndim


X = torch.randn(4, 3)


@pytest.mark.parametrize(("kind", "name"), [(Median, "mean"), (Inherits, "mean"), (Item, "T")])
def test_one_that_overrides_methods_is_refused(kind, name):
    x = X.as_subclass(kind)
    for args, in_dims in (((x,), 0), ((X, [x]), 0)):
        with pytest.raises(
            UnsupportedError, match=rf"test_subclasses.py:\d+, is a {kind.__name__}, .* defines {name} anew"
        ):
            vmap(lambda *a: X, in_dims)(*args)
    assert torch.equal(
        vmap(lambda r, s: r * s.mean(), in_dims=(0, None))(X, x), X * x.mean()
    )  # shared, it is what it is


@pytest.mark.parametrize("kind", [torch.nn.Parameter, torch.nn.Buffer, Named, lambda x: x.as_subclass(Image)])
def test_others_are_mapped(kind):
    x = kind(X.clone())
    assert torch.equal(vmap(lambda r: r.mean() * r)(x).as_subclass(torch.Tensor), X.mean(1, keepdim=True) * X)
