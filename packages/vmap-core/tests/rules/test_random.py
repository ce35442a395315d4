"""Random operations: the three modes, and the stream of numbers under one seed."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import vmap_core
from vmap_core import FallbackWarning, InplaceError, RandomnessError, vmap
from vmap_core.levels.randomness import draws
from vmap_core.torch_compat.operators import RANDOM as TAG

ERROR_TEXT = (
    "vmap: called random operation while in randomness error mode. Please either use the 'same' or 'different' "
    "randomness flags on vmap or perform the randomness operation out of vmap"
)
GENERATOR = torch.Generator()

# Each takes a sample of shape (4, 5) with values in (0, 1).
CASES = {
    "rand": lambda x: torch.rand(3),
    "rand_scalar": lambda x: torch.rand(()),
    "rand_varargs": lambda x: torch.rand(3, 2),
    "rand_generator": lambda x: torch.rand(3, generator=GENERATOR),
    "rand_requires_grad": lambda x: torch.rand(3, requires_grad=True).detach(),
    "randn": lambda x: torch.randn((20, 2)),
    "randn_generator": lambda x: torch.randn((3,), generator=GENERATOR, dtype=torch.double),
    "randint": lambda x: torch.randint(9, (2,)),
    "randint_low": lambda x: torch.randint(1, 9, (2,)),
    "normal_size": lambda x: torch.normal(2.0, 3.0, size=(3,)),
    "rand_like": torch.rand_like,
    "rand_like_dtype": lambda x: torch.rand_like(x, dtype=torch.double),
    "randn_like": torch.randn_like,
    "randint_like": lambda x: torch.randint_like(x, 5),
    "randint_like_low": lambda x: torch.randint_like(x, 2, 5),
    "randperm": lambda x: torch.randperm(4),
    "bernoulli": torch.bernoulli,
    "bernoulli_generator": lambda x: torch.bernoulli(x, generator=GENERATOR),
    "bernoulli_p": lambda x: torch.bernoulli(x, 0.3),
    "bernoulli_unbatched": lambda x: torch.bernoulli(torch.full((4,), 0.5)),
    "normal": lambda x: torch.normal(x, x),
    "normal_broadcast": lambda x: torch.normal(x, x[0]),
    "normal_mean": lambda x: torch.normal(x, 2.0),
    "normal_std": lambda x: torch.normal(2.0, x),
    "poisson": torch.poisson,
    "binomial": lambda x: torch.binomial(torch.full_like(x, 5.0), x),
    "gamma": torch._standard_gamma,
    "dirichlet": torch._sample_dirichlet,
    "multinomial": lambda x: torch.multinomial(x, 2),
    "multinomial_vector": lambda x: torch.multinomial(x[0], 2, replacement=True),
    "multinomial_unbatched": lambda x: torch.multinomial(torch.ones(4), 2),
    "uniform_": lambda x: x.clone().uniform_(),
    "normal_": lambda x: x.clone().normal_(),
    "exponential_": lambda x: x.clone().exponential_(),
    "cauchy_": lambda x: x.clone().cauchy_(),
    "log_normal_": lambda x: x.clone().log_normal_(),
    "geometric_": lambda x: x.clone().geometric_(0.3),
    "random_": lambda x: x.clone().random_(),
    "random_to": lambda x: x.clone().random_(5),
    "random_from": lambda x: x.clone().random_(2, 9),
    "bernoulli_float_": lambda x: x.clone().bernoulli_(0.3),
    "bernoulli_tensor_": lambda x: x.clone().bernoulli_(x),
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout_unbatched": lambda x: F.dropout(torch.ones(4), 0.5),
    "dropout_": lambda x: F.dropout(x.clone(), 0.5, inplace=True),
    "dropout2d": lambda x: F.dropout2d(x[None, None], 0.5),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "feature_dropout": lambda x: torch.feature_dropout(x, 0.5, True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.5, training=True),
    "native_dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5),
    "bernoulli_distribution": lambda x: torch.distributions.Bernoulli(x, validate_args=False).sample(),
    "normal_distribution": lambda x: torch.distributions.Normal(x, 1.0, validate_args=False).sample(),
}


def run(transform, function, x, mode, in_dim):
    torch.manual_seed(0)
    GENERATOR.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        out = transform(function, in_dims=in_dim, randomness=mode)(x)
    return out, torch.get_rng_state(), GENERATOR.get_state()


def batch(in_dim, contiguous=True):
    torch.manual_seed(7)
    x = (torch.rand(3, 4, 5) * 0.8 + 0.1).movedim(0, in_dim)
    return x.contiguous() if contiguous else x


@pytest.mark.parametrize("in_dim", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_different_draws_what_the_peer_draws(name, in_dim):
    x = batch(in_dim)
    mine, theirs = (run(t, CASES[name], x, "different", in_dim) for t in (vmap, torch.func.vmap))
    exact = {"rtol": 1e-6, "atol": 1e-6} if name == "attention" else {"rtol": 0, "atol": 0}
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, **exact)


@pytest.mark.parametrize("name", CASES)
def test_same_draws_what_each_sample_draws_from_one_state(name):
    x = batch(0)
    mine, state, own_state = run(vmap, CASES[name], x, "same", 0)
    for i, sample in enumerate(x):
        torch.manual_seed(0)
        GENERATOR.manual_seed(1)
        torch.testing.assert_close(mine[i], CASES[name](sample))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(own_state, GENERATOR.get_state())


@pytest.mark.parametrize("name", CASES)
def test_error_mode(name):
    with pytest.raises(RandomnessError) as caught:
        vmap(CASES[name])(batch(0))
    assert str(caught.value).startswith(ERROR_TEXT)


@pytest.mark.parametrize("name", CASES)
def test_no_samples(name):
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        out = vmap(CASES[name], randomness="different")(torch.zeros(0, 4, 5))
    assert out.shape == (0, *CASES[name](torch.full((4, 5), 0.5)).shape)
    if name not in ("rand_generator", "randn_generator", "bernoulli_generator"):
        torch.set_rng_state(state)


@pytest.mark.parametrize("op", [torch.rand_like, torch.bernoulli, lambda x: F.dropout(x, 0.3)])
def test_nested_the_outer_level_decides_about_the_physical_call(op):
    x = torch.rand(2, 3, 4)

    def nest(inner, outer):
        torch.manual_seed(0)
        return vmap(vmap(op, randomness=inner), randomness=outer)(x)

    def direct(y):
        torch.manual_seed(0)
        return op(y)

    torch.testing.assert_close(nest("different", "different"), direct(x))
    if op is torch.rand_like:
        assert torch.equal(nest("different", "same"), direct(x[0]).expand(2, 3, 4))
        assert torch.equal(nest("same", "different"), direct(x[:, 0])[:, None].expand(2, 3, 4))
        assert torch.equal(nest("same", "same"), direct(x[0, 0]).expand(2, 3, 4))
    with pytest.raises(RandomnessError):
        nest("same", "error")
    with pytest.raises(RandomnessError):
        nest("error", "same")


def test_same_gives_an_unbatched_factory():
    out = vmap(lambda x: torch.rand(3), out_dims=None, randomness="same")(torch.zeros(2))
    assert out.shape == (3,)


def test_eval_mode_is_not_random():
    x = torch.rand(3, 4)
    for f in (
        lambda s: F.dropout(s, 0.5, training=False),
        lambda s: F.dropout(s, 0.0),
        lambda s: F.alpha_dropout(s, 0.5, training=False),
        lambda s: F.dropout(s.clone(), 0.5, training=False, inplace=True),
        lambda s: torch.native_dropout(s, 0.5, False)[0],
        torch.nn.Dropout(0.5).eval(),
    ):
        assert torch.equal(vmap(f)(x), x)
    assert torch.equal(vmap(lambda s: F.rrelu(s - 0.5))(x), F.rrelu(x - 0.5))
    assert torch.equal(vmap(lambda s: F.dropout(s, 1.0))(x), torch.zeros(3, 4))
    out = vmap(lambda s: F.scaled_dot_product_attention(s[None], s[None], s[None]))(x)
    assert out.shape == (3, 1, 4)
    lstm = torch.nn.LSTM(4, 4, num_layers=2, dropout=0.5).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        vmap(lambda s: lstm(s[None, None])[0])(x)


def test_dropout_of_nothing_is_the_tensor_itself():
    def f(x):
        assert F.dropout(x, 0.5, training=False) is x
        assert F.dropout(x, 0.0) is x
        return x

    vmap(f)(torch.zeros(2))


def test_draws():
    aten = torch.ops.aten
    x = torch.zeros(2)
    assert draws(aten.rand.default, ((2,),))
    assert draws(aten.dropout.default, (x, 0.5, True))
    assert not draws(aten.dropout.default, (x, 0.5, False))
    assert not draws(aten.dropout.default, (x, 0.0, True))
    assert draws(aten.native_dropout.default, (x, 0.0, None))
    assert draws(aten.bernoulli.p, (x, 0.0))
    assert not draws(aten.rrelu_with_noise.default, (x, x))
    assert not draws(aten.scaled_dot_product_attention.default, (x, x, x))
    assert not draws(aten.add.Tensor, (x, x))
    assert not draws(torch.sin, (x,))


def test_in_place_on_a_tensor_made_inside_is_promoted():
    torch.manual_seed(0)
    mine = vmap(lambda x: torch.empty(3).uniform_() + x, randomness="different")(torch.zeros(2))
    torch.manual_seed(0)
    assert torch.equal(mine, torch.empty(2, 3).uniform_())
    views = vmap(lambda x: (a := torch.zeros(2, 3), a[0].uniform_(), a)[2], randomness="different")(torch.zeros(4))
    assert views[:, 0].unique().numel() == 12
    assert not views[:, 1].any()


def test_in_place_on_a_tensor_from_outside():
    outside = torch.zeros(3)
    with pytest.raises(RuntimeError) as theirs:
        torch.func.vmap(lambda x: outside.uniform_(), randomness="different")(torch.zeros(2))
    with pytest.raises(RandomnessError) as mine:
        vmap(lambda x: outside.uniform_(), randomness="different")(torch.zeros(2))
    assert str(mine.value).startswith(str(theirs.value).split("\n")[0])
    with pytest.raises(InplaceError):
        vmap(lambda p: outside.bernoulli_(p), randomness="same")(torch.full((2, 3), 0.5))
    torch.manual_seed(0)
    vmap(lambda x: outside.uniform_(), randomness="same")(torch.zeros(2))
    torch.manual_seed(0)
    assert torch.equal(outside, torch.rand(3))


def test_out_argument_draws_once():
    torch.manual_seed(0)
    mine = vmap(lambda x: torch.rand(3, out=torch.empty(3)), randomness="same")(torch.zeros(2))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(mine, torch.rand(3).expand(2, 3))
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(0)
    mine = vmap(lambda x: torch.rand(3, out=torch.empty(3)), randomness="different")(torch.zeros(2))
    torch.manual_seed(0)
    assert torch.equal(mine, torch.rand(2, 3))


@pytest.mark.parametrize("name", ["normal", "normal_mean", "normal_std", "bernoulli", "dropout", "rand_like", "randn"])
@pytest.mark.parametrize("mode", ["same", "different"])
def test_no_loop(name, mode):
    with vmap_core.fallback_policy("error"):
        vmap(CASES[name], randomness=mode)(batch(0))


@pytest.mark.parametrize("mode", ["same", "different"])
def test_outer_gradients(mode):
    x = batch(0).requires_grad_()

    def loss(transform):
        torch.manual_seed(0)
        return (transform(lambda s: F.dropout(s, 0.5) * s, randomness=mode)(x)).sum()

    mine, theirs = (torch.autograd.grad(loss(t), x)[0] for t in (vmap, torch.func.vmap))
    torch.testing.assert_close(mine, theirs)
    zero = torch.autograd.grad(vmap(lambda s: torch.normal(s, s), randomness=mode)(x).sum(), x)[0]
    assert not zero.any()


def test_parameters_made_inside():
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    out = vmap(lambda s: torch.nn.Linear(4, 2)(torch.ones(4)) + 0 * s.sum(), randomness="different")(x)
    assert out[:, 0].unique().numel() == 3
    same = vmap(lambda s: torch.nn.Linear(4, 2)(torch.ones(4)) + 0 * s.sum(), randomness="same")(x)
    assert torch.equal(same[0], same[2])


@torch.library.custom_op("vmap_core_test::noisy", mutates_args=(), tags=(TAG,))
def noisy(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand(x.shape)


@noisy.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("vmap_core_test::noise", mutates_args=(), tags=(TAG,))
def noise(n: int) -> torch.Tensor:
    return torch.rand(n)


@noise.register_fake
def _(n):
    return torch.empty(n)


def test_custom_operator():
    x = torch.zeros(3, 4)
    with pytest.warns(FallbackWarning):
        torch.manual_seed(0)
        out = vmap(noisy, randomness="different")(x)
    torch.manual_seed(0)
    assert torch.equal(out, torch.stack([torch.rand(4) for _ in range(3)]))
    with pytest.warns(FallbackWarning):
        torch.manual_seed(0)
        out = vmap(noisy, randomness="same")(x)
    torch.manual_seed(0)
    assert torch.equal(out, torch.rand(4).expand(3, 4))
    with pytest.raises(RandomnessError):
        vmap(noisy)(x)


def test_custom_factory():
    x = torch.zeros(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        torch.manual_seed(0)
        different = vmap(lambda s: noise(2), randomness="different")(x)
        torch.manual_seed(0)
        same = vmap(lambda s: noise(2), out_dims=None, randomness="same")(x)
        with pytest.raises(RandomnessError):
            vmap(lambda s: noise(2))(x)
        state = torch.get_rng_state()
        assert vmap(lambda s: noise(2), randomness="different")(x[:0]).shape == (0, 2)
        assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(0)
    assert torch.equal(different, torch.stack([torch.rand(2) for _ in range(3)]))
    torch.manual_seed(0)
    assert torch.equal(same, torch.rand(2))
