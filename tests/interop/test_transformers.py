"""transformers: tiny models with random weights (nothing is downloaded): mapped, per-sample gradients, ensembles."""

import copy

import pytest
import torch

from vmap_core import DataDependentError, check, explain, fallback_policy, vmap

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from vmap_autograd import grad, per_sample_grads  # noqa: E402
from vmap_nn import Ensemble  # noqa: E402

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50,
    "max_position_embeddings": 32,
}  # fmt: skip
MODELS = {
    "bert": lambda **k: transformers.BertModel(transformers.BertConfig(**SIZES, **k)),
    "gpt2": lambda **k: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0, **k
        )
    ),
    "llama": lambda **k: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=1, **k)),
}
IDS = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))


def make(name, **options):
    torch.manual_seed(0)
    return MODELS[name](use_cache=False, **options).eval()


def states(model, ids, **options):
    """One sequence in, one out: transformers' models want a batch dim of their own."""
    return model(ids[None], **options)[0][0]


@pytest.mark.parametrize("name", MODELS)
def test_outputs(name):
    model = make(name)
    with fallback_policy("error"):
        got = vmap(lambda ids: states(model, ids))(IDS)
    torch.testing.assert_close(got, torch.stack([states(model, ids) for ids in IDS]), rtol=1e-4, atol=1e-5)
    whole = vmap(lambda ids: model(ids[None]))(IDS)
    assert type(whole) is type(model(IDS)) and whole[0].shape[:2] == (3, 1)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_per_sample(name):
    """Equal to one backward pass a sample, without a loop."""
    model = make(name)
    params = {k: p.detach() for k, p in model.named_parameters()}

    def loss(params, ids):
        return torch.func.functional_call(model, params, (ids[None],))[0].logsumexp(-1).sum()

    with fallback_policy("error"):
        got = vmap(grad(loss), in_dims=(None, 0))(params, IDS)
    for i, ids in enumerate(IDS):
        own = dict(model.named_parameters())
        expected = torch.autograd.grad(loss(own, ids), list(own.values()), allow_unused=True)
        for key, e in zip(own, expected, strict=True):
            torch.testing.assert_close(
                got[key][i], torch.zeros_like(own[key]) if e is None else e, rtol=1e-3, atol=1e-4
            )


class OfOne(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return states(self.model, ids)


def test_per_sample_grads():
    module = OfOne(make("llama"))
    loss = torch.nn.functional.cross_entropy
    with fallback_policy("error"):
        got = per_sample_grads(module, loss)(IDS, IDS)
    for i, ids in enumerate(IDS):
        expected = torch.autograd.grad(loss(module(ids), ids), list(module.parameters()))
        for (key, _), e in zip(module.named_parameters(), expected, strict=True):
            torch.testing.assert_close(got[key][i], e, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_an_ensemble(name):
    members = [copy.deepcopy(make(name)) for _ in range(3)]
    with torch.no_grad():
        for p in (p for m in members for p in m.parameters()):
            p.add_(torch.randn_like(p) * 0.02)
    with fallback_policy("error"):
        got = Ensemble(members)(IDS)[0]
    torch.testing.assert_close(got, torch.stack([m(IDS)[0] for m in members]), rtol=1e-3, atol=1e-4)


def test_padding():
    """Masks that all have padding take one way through the code; where some have none, the model asks."""
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[:, 6] = 0
    mask[1, 3:] = 0
    for name in MODELS:
        model = make(name)
        run = lambda ids, m, model=model: states(model, ids, attention_mask=m[None])  # noqa: E731
        expected = torch.stack([run(*row) for row in zip(IDS, mask, strict=True)])
        torch.testing.assert_close(vmap(run)(IDS, mask), expected, rtol=1e-4, atol=1e-5)
        some = mask.clone()
        some[0] = 1
        with pytest.raises(DataDependentError, match=r"masking_utils.py.*True for 1 of 3 samples"):
            vmap(run)(IDS, some)
        if name == "bert":  # a mask of attention itself is taken as it is
            run = lambda ids, m, model=model: states(model, ids, attention_mask=m.bool().expand(1, 1, 7, 7))  # noqa: E731
        else:
            eager = make(name, attn_implementation="eager")  # always makes the mask
            run = lambda ids, m, model=eager: states(model, ids, attention_mask=m[None])  # noqa: E731
        expected = torch.stack([run(*row) for row in zip(IDS, some, strict=True)])
        torch.testing.assert_close(vmap(run)(IDS, some), expected, rtol=1e-4, atol=1e-5)


def test_dropout_differs_by_sample():
    model = make("bert").train()
    out = vmap(lambda ids: states(model, ids), randomness="different")(IDS[:1].expand(2, 7))
    assert not torch.equal(out[0], out[1])
    out = vmap(lambda ids: states(model, ids), randomness="same")(IDS[:1].expand(2, 7))
    torch.testing.assert_close(out[0], out[1])


def test_images():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    model, x = transformers.ViTForImageClassification(config).eval(), torch.randn(3, 3, 8, 8)
    got = vmap(lambda x: model(x[None]).logits[0])(x)
    torch.testing.assert_close(got, torch.stack([model(row[None]).logits[0] for row in x]), rtol=1e-4, atol=1e-5)


def test_explain_and_check():
    model = make("bert")
    mapped = vmap(lambda ids: states(model, ids))
    assert check(mapped)(IDS)
    report = explain(mapped)(IDS)
    assert not report.loops
    attention = [o for _, o in report._walk() if o.name.endswith("scaled_dot_product_attention")]
    assert len(attention) == 1 and attention[0].pack == "nn.attention"
    assert "sdpa_attention.py:" in attention[0].location
    assert attention[0].outputs[0].shape == (1, 2, 7, 8) and attention[0].outputs[0].bdim is not None
    assert all(o.pack and o.location for _, o in report._walk())
    text, page, data = str(report), report.to_html(), report.to_dict()
    assert "scaled_dot_product_attention" in text and "modeling_bert.py" in text and "modeling_bert.py" in page
    assert len(data["operations"]) == len(report.operations) and data["nbytes"] == report.nbytes > 0
