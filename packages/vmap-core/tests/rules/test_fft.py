"""Fourier transforms against the loop: complex to complex, real to complex and back, over any dims."""

import pytest
import torch

from tests.calls import check_call, check_refused

X = torch.linspace(-2, 2, 40).sin().reshape(4, 2, 5)
C = torch.complex(X, X.flip(0))
DTYPES = (torch.float64, torch.int64, torch.bool, torch.bfloat16)
F = torch.fft

CASES = {
    "fft": (F.fft, X),
    "fft of complex": (F.fft, C, None, 0),
    "fft, padded": (F.fft, C, 8, 1),
    "fft, cut and scaled": (F.fft, C, 3, -1, "ortho"),
    "fft of one": (F.fft, C[:1, 0], 1, 0),
    "ifft": (F.ifft, C),
    "rfft": (F.rfft, X, None, 1),
    "irfft": (F.irfft, C, 5, 0),
    "hfft": (F.hfft, C),
    "ihfft": (F.ihfft, X, None, 0),
    "fft2": (F.fft2, C),
    "irfft2": (F.irfft2, C, None, (0, 2)),
    "fftn": (F.fftn, C),
    "fftn, dims": (F.fftn, C, None, (2, 0)),
    "rfftn": (F.rfftn, X, (4, 3), (-1, 0)),
    "hfft2": (F.hfft2, C),
    "fftshift": (F.fftshift, X),
    "stft": (lambda x: torch.stft(x.flatten(), 8, return_complex=True, window=torch.ones(8)), X),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args, dtypes=DTYPES)


@pytest.mark.parametrize("dim", [(0,), (1, 2), (0, 2, 1)])
@pytest.mark.parametrize("kernel", ["_fft_c2c", "_fft_r2c", "_fft_c2r"])
def test_kernels(kernel, dim):
    op = getattr(torch.ops.aten, kernel).default
    given = (
        op,
        X if kernel == "_fft_r2c" else C,
        list(dim),
        2,
        2 * (X.shape[dim[-1]] - 1) if kernel == "_fft_c2r" else True,
    )
    check_call(*given, dtypes=())


def test_refused():
    check_refused(F.fft, torch.tensor(1.0))
    check_refused(F.fft, X, None, 3)
    check_refused(F.rfft, C)
