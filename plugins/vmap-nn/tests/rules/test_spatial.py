"""Operators on images against the loop: pooling, padding, resampling; with and without N, N of one."""

import pytest
import torch
import torch.nn.functional as F

from tests.calls import check_call, check_refused
from vmap_core import vmap

X1, X2 = (torch.linspace(-3, 3, 240).sin().reshape(s) for s in ((4, 6, 10), (2, 4, 5, 6)))
X3 = torch.linspace(-3, 3, 256).sin().reshape(1, 4, 4, 4, 4)
GRID = torch.linspace(-1, 1, 24).reshape(2, 2, 3, 2).sin()
aten = torch.ops.aten

CASES = {
    "adaptive_avg_pool1d": (F.adaptive_avg_pool1d, X1, 3),
    "adaptive_avg_pool2d": (F.adaptive_avg_pool2d, X2, (2, 3)),
    "adaptive_avg_pool3d": (F.adaptive_avg_pool3d, X3, 2),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True), X2),
    "adaptive_max_pool3d": (F.adaptive_max_pool3d, X3[0], 2),
    "avg_pool1d": (F.avg_pool1d, X1[0], 3, 2, 1),
    "avg_pool2d": (F.avg_pool2d, X2, 2, 1),
    "avg_pool3d": (F.avg_pool3d, X3, 2),
    "max_pool1d": (F.max_pool1d, X1, 2),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2, 1, 1, return_indices=True), X2),
    "max_pool3d": (F.max_pool3d, X3, 2),
    "lp_pool2d": (F.lp_pool2d, X2, 2.0, 2),
    "reflection_pad1d": (lambda x: F.pad(x, (2, 1), "reflect"), X1[0]),
    "reflection_pad2d": (lambda x: F.pad(x, (2, 1, 0, 1), "reflect"), X2),
    "reflection_pad3d": (lambda x: F.pad(x, (1,) * 6, "reflect"), X3),
    "replication_pad1d": (lambda x: F.pad(x, (2, 1), "replicate"), X1),
    "replication_pad2d": (lambda x: F.pad(x, (2, 1, 0, 1), "replicate"), X2[0]),
    "replication_pad3d": (lambda x: F.pad(x, (1,) * 6, "replicate"), X3),
    "circular": (lambda x: F.pad(x, (1, 2), "circular"), X1),
    "nearest": (lambda x: F.interpolate(x, 4), X1),
    "nearest-exact": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), X3),
    "linear": (lambda x: F.interpolate(x, 4, mode="linear"), X1),
    "bilinear": (lambda x: F.interpolate(x, (3, 9), mode="bilinear", align_corners=True), X2),
    "bilinear, antialiased": (lambda x: F.interpolate(x, (3, 3), mode="bilinear", antialias=True), X2),
    "bicubic": (lambda x: F.interpolate(x, (3, 9), mode="bicubic"), X2),
    "trilinear": (lambda x: F.interpolate(x, 3, mode="trilinear"), X3),
    "grid_sample": (lambda x, g: F.grid_sample(x, g, align_corners=False), X2, GRID),
    "unfold": (F.unfold, X2, 2),
    "fold": (lambda x: F.fold(x, (4, 3), 2), X1[:, :4, :6]),
    "pixel_shuffle": (F.pixel_shuffle, X2, 2),
    "pixel_unshuffle": (F.pixel_unshuffle, X2[..., :4, :4], 2),
    "channel_shuffle": (F.channel_shuffle, X2, 2),
    "N and C of one": (F.max_pool2d, X2[:1, :1], 2),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args, dtypes=(torch.bfloat16, torch.int64, torch.float64))


@pytest.mark.parametrize("n", [2, 3])
def test_unpooling(n):
    x = X2 if n == 2 else X3
    y, places = getattr(F, f"max_pool{n}d")(x, 2, return_indices=True)
    check_call(lambda y: getattr(F, f"max_unpool{n}d")(y, places, 2), y, dtypes=(torch.bfloat16,))


@pytest.mark.parametrize("n", [2, 3])
def test_fractional_pooling(n):
    x = X2 if n == 2 else X3
    at = torch.linspace(0.1, 0.9, 24)[: len(x) * 4 * n].reshape(len(x), 4, n)
    op = getattr(aten, f"fractional_max_pool{n}d")
    check_call(lambda x, at: op(x, [2] * n, [2] * n, at), x, at, dtypes=())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_number_for_all_spatial_dims(n):
    x = torch.randn(3, 2, *(5,) * n)
    F = torch.nn.functional
    for f in (
        lambda x: getattr(F, f"adaptive_avg_pool{n}d")(x, 2),
        lambda x: getattr(F, f"avg_pool{n}d")(x, 2),
        lambda x: getattr(F, f"max_pool{n}d")(x, 2, stride=1),
        lambda x: getattr(F, f"adaptive_max_pool{n}d")(x, 2),
    ):
        torch.testing.assert_close(vmap(f)(x), torch.stack([f(row) for row in x]))
        torch.testing.assert_close(vmap(f)(x[:, None]), torch.stack([f(row[None]) for row in x]))
    with pytest.raises(RuntimeError, match=f"Expected {n + 1}D"):
        vmap(lambda x: getattr(F, f"avg_pool{n}d")(x, 2))(x[:, 0])


REFUSED = {
    "of a row": (F.max_pool2d, X2[0, 0, 0], 2),
    "without N": (lambda x: torch.ops.aten._upsample_bilinear2d_aa(x, [4, 4], False), X2[0]),
    "of too many dims": (F.avg_pool2d, X2[None], 2),
    "a window too large": (F.max_pool2d, X2, 9),
    "padding too wide": (lambda x: F.pad(x, (20, 1), "reflect"), X1),
    "channels that do not divide": (F.pixel_shuffle, X2[:, :3], 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
