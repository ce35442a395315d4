"""Streams and pinned memory, of the physical tensor."""

import warnings

import pytest
import torch
from cuda_standins import STREAMS

from vmap_core import FallbackWarning, vmap


def test_a_stream_is_recorded_once():
    STREAMS.clear()
    x = torch.randn(4, 3)
    stream = torch.Stream(stream_id=0, device_index=0, device_type=1)
    vmap(lambda x: x.record_stream(stream) or x, in_dims=1)(x)
    vmap(lambda y: x.record_stream(stream) or y)(x)
    assert STREAMS == [((4, 3), x.data_ptr())] * 2


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU there is pinned memory: test_copies_and_streams_on_a_gpu"
)
def test_pinned_memory_without_a_gpu():
    pinned = []
    x = torch.randn(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        vmap(lambda x: pinned.append(x.is_pinned()) or x)(x)
        vmap(lambda x: pinned.append(x.is_pinned()) or x)(x[:0])
        with pytest.raises(RuntimeError) as mapped:
            vmap(lambda x: x.pin_memory())(x)
        with pytest.raises(RuntimeError) as alone:
            x.pin_memory()
    assert pinned == [False, False] and str(mapped.value) == str(alone.value)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_and_streams_on_a_gpu():
    x = torch.randn(3, 4).pin_memory()
    stream = torch.cuda.Stream()

    def move(x):
        y = x.pin_memory().to("cuda", non_blocking=True)
        assert x.is_pinned() and y.is_cuda
        y.record_stream(stream)
        return y.cpu()

    assert torch.equal(vmap(move)(x), x)
