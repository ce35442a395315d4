"""A stand-in for CUDA graphs on the CPU, so that everything around them runs without a GPU.

It has what matters of the real ones: a capture computes nothing, each operation keeps the addresses it was captured with,
and a replay does just these operations again, whatever the objects in Python have become.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import vmap_cuda._graphed


def tensors(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def memory(t):
    return t.untyped_storage().data_ptr()


POOL = (0, 1)


class StandInGraph:
    def __init__(self):
        self.calls, self.registered = [], []

    def register_generator_state(self, generator):
        self.registered.append(generator)

    def replay(self):
        with torch.no_grad():
            for op, args, kwargs, made in self.calls:
                for static, new in zip(made, tensors(op(*args, **kwargs)), strict=True):
                    if memory(static) != memory(new):
                        static.copy_(new)


class Capture(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph, self.before, self.made = graph, {}, []
        self.states = [(g, g.get_state()) for g in (torch.default_generator, *graph.registered)]

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {memory(t) for t in tensors((args, kwargs))}
        if op._schema.is_mutable:
            for t in tensors((args, kwargs)):
                self.before.setdefault(memory(t), (t.detach(), t.detach().clone()))
        out = op(*args, **kwargs)
        fixed = tree_map(lambda t: t.detach() if isinstance(t, torch.Tensor) else t, (args, kwargs))
        made = [t.detach() for t in tensors(out)]
        self.made += [t for t in made if memory(t) not in given]
        self.graph.calls.append((op, *fixed, made))
        return out

    def __exit__(self, *error):
        super().__exit__(*error)
        for generator, state in self.states:
            generator.set_state(state)
        with torch.no_grad():
            for t, value in self.before.values():
                t.copy_(value)
            for t in self.made:
                t.fill_(torch.nan if t.is_floating_point() or t.is_complex() else 77)


class Stream:
    def __init__(self, device=None):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request, monkeypatch):
    """Where graphs are made: on the CPU by the stand-in, and on a GPU."""
    if request.param == "cuda":
        yield "cuda"
        return
    current = SimpleNamespace(stream=Stream(), debug="default")

    @contextlib.contextmanager
    def on(stream):
        before, current.stream = current.stream, stream
        yield
        current.stream = before

    state = {
        "is_available": lambda: True,
        "CUDAGraph": StandInGraph,
        "graph": lambda graph, pool=None, stream=None: Capture(graph),
        "Stream": Stream,
        "stream": on,
        "device": lambda device: contextlib.nullcontext(),
        "current_device": lambda: None,
        "current_stream": lambda device=None: current.stream,
        "default_generators": (torch.default_generator,),
        "get_sync_debug_mode": lambda: current.debug,
        "set_sync_debug_mode": lambda mode: setattr(current, "debug", mode),
        "graph_pool_handle": lambda: POOL,
        "is_current_stream_capturing": lambda: False,  # optimizers ask
    }
    with monkeypatch.context() as patch:
        for name, value in state.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)  # optimizers ask it
        patch.setattr(vmap_cuda._graphed, "DEVICE", "cpu")
        yield "cpu"
    assert current.debug == "default"
