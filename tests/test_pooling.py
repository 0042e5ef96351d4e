"""max_pool and max_unpool."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from tconvjax import max_pool, max_unpool

pytestmark = pytest.mark.usefixtures("x64")
STRIDES = (2, 3)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, shape)


def test_values_are_those_of_flax_and_phases_say_where_they_were():
    x = random(2, 4, 6, 5)
    values, phases = jax.jit(lambda x: max_pool(x, STRIDES))(x)
    np.testing.assert_array_equal(values, linen.max_pool(x, STRIDES, STRIDES))
    for b, i, j, c in np.ndindex(values.shape):
        row, column = divmod(int(phases[b, i, j, c]), STRIDES[1])
        assert x[b, 2 * i + row, 3 * j + column, c] == values[b, i, j, c]


def test_gradients_are_numbers_however_the_image_is_rounded():
    """Where the compiler computes the image twice, with two roundings, nothing equals the largest pixel."""
    x = random(1, 64, 32, 1).astype(np.float32)

    def pooled(x):
        mixed = 0.1 * x + 0.7 * jnp.roll(x, 1, 1) + 0.3 * jnp.roll(x, 2, 1)
        return max_pool(mixed, (2, 2)).values

    for level in (0, 1):
        along = lambda x: jax.jvp(pooled, (x,), (jnp.ones_like(x),))[1]
        tangents = jax.jit(along, compiler_options={"xla_backend_optimization_level": level})(x)
        np.testing.assert_allclose(tangents, 1.1, rtol=1e-6)
    upstream = Path(__file__).parent.parent / "docs" / "upstream" / "gradient_of_max.py"
    broken, _ = runpy.run_path(str(upstream))["not_finite"]()
    assert broken > 0, "JAX is mended: see docs/upstream/README.md for what may go"


def test_the_first_of_equal_pixels_has_the_gradient_and_what_is_not_a_number_is_largest():
    x = jnp.array([[1.0, 1, 0], [1, 1, 1], [5, jnp.nan, 2], [jnp.nan, 7, 3]])[..., None]
    values, phases = max_pool(x, (2, 3))
    np.testing.assert_array_equal(values[:, 0, 0], [1, np.nan])
    np.testing.assert_array_equal(phases[:, 0, 0], [0, 1])
    gradient = jax.grad(lambda x: max_pool(x, (2, 3)).values.sum())(x)[..., 0]
    np.testing.assert_array_equal(np.flatnonzero(gradient), [0, 7])


def test_unpool_puts_the_largest_back_and_zeros_elsewhere():
    x = random(2, 4, 6, 5)
    values, phases = max_pool(x, STRIDES)
    back = np.asarray(max_unpool(values, phases, strides=STRIDES))
    np.testing.assert_array_equal(back[back != 0], x[back != 0])
    assert (back != 0).sum() == values.size
    again = max_pool(np.where(back == 0, -np.inf, back), STRIDES)
    np.testing.assert_array_equal(again.values, values)
    np.testing.assert_array_equal(again.phases, phases)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
def test_a_phase_that_does_not_exist_puts_nothing_back(dtype):
    """In 8 bits, -1 is 255, which is a phase of windows of 16 x 16."""
    missing = np.full((1, 1, 1), -1).astype(dtype)
    restored = max_unpool(np.ones((1, 1, 1)), missing, (16, 16))
    assert float(restored.sum()) == (dtype == "uint8")  # which is 255 indeed


def test_of_equal_pixels_the_first_counts_in_any_rank():
    x = np.zeros((4, 2, 6, 1))
    assert not np.any(max_pool(x, (2, 1, 3)).phases)
    assert max_pool(x.astype(np.int8), (2, 1, 3)).values.dtype == np.int8
    assert (
        max_unpool(np.ones((3, 1), np.float16), np.zeros((3, 1), int), strides=(2,)).dtype
        == np.float16
    )


def test_an_empty_batch_stays_empty():
    x = np.zeros((0, 4, 6, 5))
    assert max_unpool(*max_pool(x, STRIDES), strides=STRIDES).shape == x.shape


def test_the_adjoint_takes_pixels_from_where_they_were_put():
    x, y = random(2, 3, 5), random(4, 9, 5, seed=1)
    phases = np.random.default_rng(2).integers(0, 6, x.shape)
    run = lambda x: max_unpool(x, phases, strides=STRIDES)
    back = jax.vjp(run, x)[1](y)[0]
    np.testing.assert_allclose(np.vdot(back, x), np.vdot(y, run(x)), rtol=1e-12)
    np.testing.assert_array_equal(jax.vmap(run, -1, -1)(x[..., None])[..., 0], run(x))


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, _: max_pool(x * 1j, (2,)),
            TypeError,
            r"max_pool: the largest pixel needs a real",
        ),
        (
            lambda x, _: max_pool(x, (3,)),
            ValueError,
            "max_pool: strides must divide the spatial shape",
        ),
        (
            lambda x, p: max_unpool(x, p[:2], strides=(2,)),
            ValueError,
            r"phases must .* got \(2, 1\)",
        ),
        (lambda x, _: max_unpool(x, x, strides=(2,)), TypeError, "max_unpool: phases must be int"),
        (lambda x, p: max_unpool(x, p, strides=2), TypeError, "max_unpool: strides must be a seq"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((4, 1)), np.zeros((4, 1), int))
