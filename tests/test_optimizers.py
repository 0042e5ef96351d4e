"""Adam's schedule, clipping and average, against optax and by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.optimizers import Optimization, adam, averaged, relative_rate

pytestmark = pytest.mark.usefixtures("promotion")
STEPS = 20
PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}


def gradients(i):
    return jax.tree.map(lambda p: jnp.cos(i + p), PARAMS)


def trained(optimizer):
    params, state = PARAMS, optimizer.init(PARAMS)
    for i in range(STEPS):
        updates, state = optimizer.update(gradients(i), state)
        params = optax.apply_updates(params, updates)
    return params


def close(one, other):
    chex.assert_trees_all_close(one, other, rtol=1e-6)


def test_without_more_it_is_adam():
    options = Optimization(learning_rate=0.1, b1=0.5, b2=0.9)
    close(trained(adam(options, STEPS)), trained(optax.adam(0.1, b1=0.5, b2=0.9)))


def test_the_learning_rate_rises_and_falls():
    rate = relative_rate(Optimization(schedule="linear", warmup=0.25), STEPS)
    expected = [(i + 1) / 6 for i in range(5)] + [1 - i / 15 for i in range(15)]
    np.testing.assert_allclose([rate(i) for i in range(STEPS)], expected, rtol=1e-6)
    rate = relative_rate(Optimization(schedule="cosine"), STEPS)
    expected = [(1 + np.cos(np.pi * i / STEPS)) / 2 for i in range(STEPS)]
    np.testing.assert_allclose([rate(i) for i in range(STEPS)], expected, atol=1e-7)
    options = Optimization(learning_rate=0.1, schedule="cosine", warmup=0.5)
    other = optax.adam(lambda i: 0.1 * relative_rate(options, STEPS)(i))
    close(trained(adam(options, STEPS)), trained(other))


@pytest.mark.parametrize("clip", [0.0, 0.3, 100.0])
def test_large_gradients_are_clipped_together(clip):
    options = Optimization(learning_rate=0.1, gradient_clip=clip)
    other = optax.chain(optax.clip_by_global_norm(clip or 1e9), optax.adam(0.1))
    close(trained(adam(options, STEPS)), trained(other))
    if clip == 0.3:
        free = trained(adam(Optimization(learning_rate=0.1), STEPS))
        assert abs(free["b"] - trained(other)["b"]) > 1e-3


def test_the_average_forgets():
    step = lambda average, value: averaged(Optimization(ema=0.75), average, value)
    average = step(step(jnp.array(8.0), jnp.array(4.0)), jnp.array(0.0))
    assert average == 0.75 * (0.75 * 8 + 0.25 * 4)
    close(averaged(Optimization(), PARAMS, gradients(0)), gradients(0))
