"""Per-sample gradients of every layer of torch.nn that has parameters: against the loop, and against differences."""

import inspect
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from vmap_autograd import grad, per_sample_grads
from vmap_core import DataDependentError, vmap

torch.manual_seed(0)
B = 3


def floats(*shape):
    return torch.randn(B, *shape, dtype=torch.double)


def tokens(*shape):
    return torch.randint(0, 7, (B, *shape))


def eval_(module):
    """Batch statistics are one sample's own only where a batch is; what is checked are the weights."""
    module(torch.randn(4, *{1: (3, 5), 2: (3, 5, 4), 3: (3, 2, 5, 4)}[int(type(module).__name__[-2])]))
    return module.eval()


# name -> (module, its arguments for one sample)
LAYERS = {
    "BatchNorm1d": lambda: (eval_(nn.BatchNorm1d(3)), (floats(2, 3, 5),)),
    "BatchNorm2d": lambda: (eval_(nn.BatchNorm2d(3)), (floats(2, 3, 5, 4),)),
    "BatchNorm3d": lambda: (eval_(nn.BatchNorm3d(3)), (floats(2, 3, 2, 5, 4),)),
    "Bilinear": lambda: (nn.Bilinear(3, 4, 2), (floats(5, 3), floats(5, 4))),
    "Conv1d": lambda: (nn.Conv1d(4, 6, 3, groups=2, padding=1), (floats(4, 7),)),
    "Conv2d": lambda: (nn.Conv2d(4, 6, 3, stride=2, dilation=2), (floats(2, 4, 9, 8),)),
    "Conv3d": lambda: (nn.Conv3d(2, 3, 3, padding="same"), (floats(2, 4, 3, 3),)),
    "ConvTranspose1d": lambda: (nn.ConvTranspose1d(4, 6, 3, groups=2), (floats(4, 5),)),
    "ConvTranspose2d": lambda: (nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), (floats(2, 4, 3, 4),)),
    "ConvTranspose3d": lambda: (nn.ConvTranspose3d(2, 3, 2), (floats(2, 3, 2, 3),)),
    "Embedding": lambda: (nn.Embedding(7, 4), (tokens(3, 2),)),
    "EmbeddingBag": lambda: (nn.EmbeddingBag(7, 4, mode="mean"), (tokens(3, 2),)),
    "GRU": lambda: (nn.GRU(3, 4, num_layers=2, bidirectional=True), (floats(5, 3),)),
    "GRUCell": lambda: (nn.GRUCell(3, 4), (floats(3),)),
    "GroupNorm": lambda: (nn.GroupNorm(2, 4), (floats(2, 4, 5),)),
    "InstanceNorm1d": lambda: (nn.InstanceNorm1d(3, affine=True), (floats(2, 3, 5),)),
    "InstanceNorm2d": lambda: (nn.InstanceNorm2d(3, affine=True), (floats(3, 5, 4),)),
    "InstanceNorm3d": lambda: (nn.InstanceNorm3d(3, affine=True), (floats(3, 2, 5, 4),)),
    "LSTM": lambda: (nn.LSTM(3, 4, proj_size=2), (floats(5, 3),)),
    "LSTMCell": lambda: (nn.LSTMCell(3, 4), (floats(2, 3),)),
    "LayerNorm": lambda: (nn.LayerNorm((4, 3)), (floats(2, 4, 3),)),
    "Linear": lambda: (nn.Linear(4, 3), (floats(2, 4),)),
    "LinearCrossEntropyLoss": lambda: (nn.LinearCrossEntropyLoss(4, 7), (floats(5, 4), tokens(5))),
    "MultiheadAttention": lambda: (nn.MultiheadAttention(4, 2), (floats(5, 4), floats(3, 4), floats(3, 4))),
    "PReLU": lambda: (nn.PReLU(4), (floats(2, 4, 3),)),
    "RMSNorm": lambda: (nn.RMSNorm(4), (floats(2, 4),)),
    "RNN": lambda: (nn.RNN(3, 4, nonlinearity="relu"), (floats(5, 3),)),
    "RNNCell": lambda: (nn.RNNCell(3, 4), (floats(2, 3),)),
    "Transformer": lambda: (
        nn.Transformer(4, 2, 1, 1, 8, dropout=0.0, batch_first=True), (floats(5, 4), floats(3, 4))
    ),
    "TransformerDecoder": lambda: (
        nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, 0.0), 2), (floats(5, 4), floats(3, 4))
    ),
    "TransformerDecoderLayer": lambda: (nn.TransformerDecoderLayer(4, 2, 8, 0.0), (floats(5, 4), floats(3, 4))),
    "TransformerEncoder": lambda: (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, 0.0), 2, enable_nested_tensor=False), (floats(5, 4),)
    ),
    "TransformerEncoderLayer": lambda: (nn.TransformerEncoderLayer(4, 2, 8, 0.0, activation="gelu"), (floats(5, 4),)),
}  # fmt: skip

# No layers with parameters of their own, whatever their source says.
OTHERS = {
    "AdaptiveLogSoftmaxWithLoss": "asks which targets lie in which cluster: an error, below",
    "NLLLoss2d": "deprecated name of NLLLoss, which has none",
    "ModuleList": "a container",
    "ParameterDict": "a container",
    "ParameterList": "a container",
    "RNNBase": "the base of RNN, LSTM and GRU",
    "RNNCellBase": "the base of the cells",
    "Sequential": "a container",
    "SyncBatchNorm": "needs a process group",
    "Unflatten": "its documentation has a Linear in it",
}


def layer(name):
    torch.manual_seed(0)
    if not hasattr(nn, name):
        pytest.skip(f"this PyTorch has no nn.{name}")
    module, inputs = LAYERS[name]()
    return module.double(), inputs


def loss(out):
    """A number that every floating output has a part in."""
    flat = torch.utils._pytree.tree_flatten(out)[0]
    return sum((t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).reshape(t.shape)).sum() for t in flat).sin()


def looped(module, inputs):
    rows = []
    for i in range(B):
        module.zero_grad()
        loss(module(*(x[i] for x in inputs))).backward()
        rows.append(
            {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in module.named_parameters()}
        )
    return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}


def test_no_layer_is_missing():
    with_parameters = set()
    for name in dir(nn):
        cls = getattr(nn, name)
        if isinstance(cls, type) and issubclass(cls, nn.Module) and not name.startswith("Lazy"):
            sources = [inspect.getsource(c) for c in cls.__mro__ if issubclass(c, nn.Module) and c is not nn.Module]
            if any("Parameter(" in source or "Linear(" in source or "Layer(" in source for source in sources):
                with_parameters.add(name)
    assert with_parameters - set(LAYERS) - set(OTHERS) == set()


@pytest.mark.filterwarnings("ignore:vmap. .*runs in a loop")  # which operators still do is the layers' own packs' test
@pytest.mark.parametrize("name", LAYERS)
def test_against_the_loop_and_against_differences(name):
    module, inputs = layer(name)
    ours = per_sample_grads(module, loss)(inputs)
    torch.testing.assert_close(ours, looped(module, inputs))
    params = {k: p.detach() for k, p in module.named_parameters()}

    def value(params, inputs):
        return loss(functional_call(module, params, inputs))

    torch.testing.assert_close(vmap(grad(value), in_dims=(None, 0))(params, inputs), ours)
    step, direction = 1e-6, {k: torch.randn_like(p) for k, p in params.items()}
    with torch.no_grad():
        for i in range(B):
            row = tuple(x[i] for x in inputs)
            ends = [value({k: p + s * direction[k] for k, p in params.items()}, row) for s in (step, -step)]
            slope = sum((ours[k][i] * direction[k]).sum() for k in params)
            torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-4, atol=1e-5)


def test_a_layer_that_asks_values_is_a_clear_error():
    module = nn.AdaptiveLogSoftmaxWithLoss(8, 7, [3, 5], 2.0)
    with pytest.raises(DataDependentError, match="nonzero"):
        per_sample_grads(module, lambda out: out.loss)((torch.randn(B, 4, 8), tokens(4)))


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(5, 6), torch.randint(4, (5,))


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"chunk_size": 10}, {"batch_of_one": True}])
def test_options(options):
    model, x, y = classifier()
    expected = per_sample_grads(model, cross_entropy)(x, y)
    torch.testing.assert_close(per_sample_grads(model, cross_entropy, **options)(x, y), expected)
    norms = per_sample_grads(model, cross_entropy, norms=True, **options)(x, y)
    torch.testing.assert_close(norms, {k: g.flatten(1).norm(dim=1) for k, g in expected.items()})


def test_each_parameter_at_a_time_keeps_memory_flat():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    x, alive, most = torch.randn(16, 64), [], 0

    def each(name, g):
        nonlocal most
        assert g.shape[0] == 16
        alive.append(weakref.ref(g))
        most = max(most, sum(r() is not None for r in alive))
        return g.sum(0)

    sums = per_sample_grads(model, lambda out: out.square().sum(), each=each)(x)
    assert len(alive) == 16 and most <= 2
    model(x).square().sum().backward()
    torch.testing.assert_close(sums, {k: p.grad for k, p in model.named_parameters()}, rtol=1e-4, atol=1e-4)


def test_frozen_and_unused_parameters_and_several_inputs():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
            self.a.weight.requires_grad_(False)

        def forward(self, x, y):
            return self.a(x) * self.b(y)

    model, x, y = Model(), torch.randn(4, 3), torch.randn(4, 3)
    ours = per_sample_grads(model, mse_loss)((x, y), torch.zeros(4, 2))
    assert set(ours) == {"a.bias", "b.weight", "b.bias", "unused.weight", "unused.bias"}
    assert not ours["unused.weight"].any() and ours["unused.weight"].shape == (4, 2, 3)
    assert not any(g.requires_grad for g in ours.values())
    norms = per_sample_grads(model, mse_loss, norms=True)((x, y), torch.zeros(4, 2))
    torch.testing.assert_close(norms["unused.bias"], torch.zeros(4))


def test_a_function_of_parameters():
    x = torch.randn(5, 6)
    w, b = torch.randn(6, 3), torch.randn(3)
    ours = per_sample_grads(lambda params, x: x @ params[0] + params[1], lambda out: out.sum())((w, b), x)
    torch.testing.assert_close(ours, (x[:, :, None].expand(5, 6, 3), torch.ones(5, 3)))


def test_dropout_needs_to_be_told():
    model, x, y = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)), torch.randn(5, 6), torch.randint(4, (5,))
    with pytest.raises(RuntimeError, match="randomness"):
        per_sample_grads(model, cross_entropy)(x, y)
    grads = per_sample_grads(model, cross_entropy, randomness="different")(x, y)
    assert grads["0.weight"].shape == (5, 4, 6)


def test_empty_batch_and_errors():
    model, x, y = classifier()
    ours = per_sample_grads(model, cross_entropy)(x[:0], y[:0])
    assert {k: g.shape for k, g in ours.items()} == {k: (0, *p.shape) for k, p in model.named_parameters()}
    with pytest.raises(ValueError, match="one batch size B, got sizes"):
        per_sample_grads(model, cross_entropy)(x, y[:3])
    with pytest.raises(RuntimeError, match=r"must be a scalar, got shape \(4,\)"):
        per_sample_grads(model, lambda out: out)(x)
    with pytest.raises(ValueError, match="norms=True says"):
        per_sample_grads(model, cross_entropy, norms=True, each=print)


def test_the_forward_pass_is_not_one_of_batched_weights():
    """Nothing of the forward pass has a weight for every sample: memory stays that of the ordinary pass."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    model, x, y = classifier()
    with Watch():
        per_sample_grads(model, cross_entropy)(x, y)
    assert torch.ops.aten.addmm.default in seen and torch.ops.aten.baddbmm.default not in seen
