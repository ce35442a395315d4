"""Random numbers that are no tensors, and seeds set inside a mapped function."""

import functools
import random
import threading

import numpy as np
import pytest
import torch

from vmap_core import RandomnessError, RandomnessWarning, vmap

X = torch.ones(4, 2)
GENERATOR = np.random.default_rng(0)
OTHER = random.Random(0)
DRAWS = {
    "random": lambda: random.random(),
    "random.choice": lambda: random.choice([1.0, 2.0]),
    "numpy": lambda: float(np.random.rand()),
    "numpy.permutation": lambda: float(np.random.permutation(3)[0]),
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Test runners have threads of their own, which draw nothing."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


@pytest.mark.parametrize("mode", ["error", "different"])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_number_that_all_samples_would_share_is_refused(draw, mode):
    def f(x):
        return x * draw()

    for _ in range(2):  # not only once
        with pytest.raises(RandomnessError, match=r"'f', mapped at .*test_python_random.py:\d+, has drawn from"):
            vmap(f, randomness=mode)(X)
    with pytest.raises(RandomnessError):
        vmap(functools.partial(f), randomness=mode, chunk_size=2)(X)
    assert torch.equal(*vmap(f, randomness="same")(X)[:2])


def test_a_generator_that_the_function_names_is_looked_at():
    local = np.random.default_rng(0)
    for f in (lambda x: x * GENERATOR.normal(), lambda x: x * OTHER.random(), lambda x: x * float(local.normal())):
        with pytest.raises(RandomnessError, match="has drawn from a (Generator|Random)"):
            vmap(f)(X)


def test_what_draws_nothing_is_looked_at_once(monkeypatch):
    from vmap_core.transform import python_random

    def f(x):
        return x + 1

    looks = []
    states = python_random._states
    monkeypatch.setattr(python_random, "_states", lambda f: looks.append(1) or states(f))
    vmap(f)(X)
    assert len(looks) == 2
    vmap(f, in_dims=1)(X)
    assert len(looks) == 2


def test_a_function_that_raises_is_looked_at_again():
    fail = True

    def f(x):
        if fail:
            raise ValueError
        return x * random.random()

    with pytest.raises(ValueError):
        vmap(f)(X)
    fail = False
    with pytest.raises(RandomnessError):
        vmap(f)(X)


def test_other_threads_may_have_drawn(monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    with pytest.warns(RandomnessWarning, match="another thread"):
        vmap(lambda x: x * random.random())(X)


def test_a_seed_set_inside():
    def f(x):
        torch.manual_seed(3)
        return x + torch.randn(2)

    expected = torch.stack([f(x) for x in X])
    assert torch.equal(vmap(f, randomness="same")(X), expected)
    with pytest.raises(RandomnessError, match=r"torch.manual_seed at .*test_python_random.py:\d+"):
        vmap(f, randomness="different")(X)
    assert torch.equal(vmap(f, randomness="different")(X[:1]), expected[:1])
    vmap(lambda x: (torch.manual_seed(3), x)[1])(X)  # nothing is drawn
