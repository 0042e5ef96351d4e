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


WINDOWS = [  # strides, window, padding
    ((2, 3), None, "VALID"),
    ((2, 2), (3, 3), ((1, 1), (1, 1))),
    ((2, 1), (3, 2), "SAME"),
    ((3, 2), (2, 2), "VALID"),
    ((1, 2), (2, 5), ((0, 1), (3, 2))),
]


@pytest.mark.parametrize(("strides", "window", "padding"), WINDOWS)
def test_values_are_those_of_flax_and_indices_say_where_they_were(strides, window, padding):
    x = random(2, 5, 7, 3) - 3  # below zero, which padding is not
    options = {"window_shape": window, "padding": padding}
    values, indices = jax.jit(lambda x: max_pool(x, strides, **options))(x)
    np.testing.assert_array_equal(values, linen.max_pool(x, window or strides, strides, padding))
    pixels = x.reshape(2, 35, 3)
    found = np.take_along_axis(pixels, np.asarray(indices).reshape(2, -1, 3), 1)
    np.testing.assert_array_equal(found.reshape(values.shape), values)


@pytest.mark.parametrize(("strides", "window", "padding"), WINDOWS)
def test_unpool_puts_back_what_windows_held_and_zeros_elsewhere(strides, window, padding):
    x = random(2, 5, 7, 3)
    options = {"window_shape": window, "padding": padding}
    values, indices = max_pool(x, strides, **options)
    back = np.asarray(max_unpool(values, indices, strides, **options, output_shape=(5, 7)))
    want = np.zeros((2, 35, 3))
    np.put_along_axis(
        want, np.asarray(indices).reshape(2, -1, 3), np.asarray(values).reshape(2, -1, 3), 1
    )
    np.testing.assert_array_equal(back, want.reshape(x.shape))


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
    values, indices = max_pool(x, (2, 3))
    np.testing.assert_array_equal(values[:, 0, 0], [1, np.nan])
    np.testing.assert_array_equal(indices[:, 0, 0], [0, 7])
    gradient = jax.grad(lambda x: max_pool(x, (2, 3)).values.sum())(x)[..., 0]
    np.testing.assert_array_equal(np.flatnonzero(gradient), [0, 7])


def test_pixels_that_fill_no_window_are_dropped_and_come_back_as_zeros():
    """SegNet pools 360 x 480 five times: 45 x 60, then 22 x 30."""
    x = jnp.arange(1.0, 50).reshape(1, 7, 7, 1)
    values, indices = max_pool(x, (2, 2))
    np.testing.assert_array_equal(values[0, :, :, 0], np.add.outer([9, 23, 37], [0, 2, 4]))
    back = max_unpool(values, indices, (2, 2), output_shape=(7, 7))
    np.testing.assert_array_equal(np.flatnonzero(back), np.sort(np.ravel(indices)))
    assert max_unpool(values, indices, (2, 2)).shape == (1, 6, 6, 1)


def test_an_index_outside_of_its_window_puts_nothing_back_and_the_last_of_equal_ones_counts():
    indices = jnp.array([[2], [2], [9]])
    y = max_unpool(jnp.array([[1.0], [2], [3]]), indices, (2,), window_shape=3)
    np.testing.assert_array_equal(y[:, 0], [0, 0, 2, 0, 0, 0, 0])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
def test_an_index_that_does_not_exist_puts_nothing_back(dtype):
    """In 8 bits, -1 is 255, which is an index of 16 x 16 pixels."""
    missing = np.full((1, 1, 1), -1).astype(dtype)
    restored = max_unpool(np.ones((1, 1, 1)), missing, (16, 16))
    assert float(restored.sum()) == (dtype == "uint8")  # which is 255 indeed


def test_of_equal_pixels_the_first_counts_in_any_rank():
    x = np.zeros((4, 2, 6, 1))
    first = np.asarray(max_pool(x, (2, 1, 3)).indices)[..., 0]
    np.testing.assert_array_equal(first, np.arange(48).reshape(4, 2, 6)[::2, :, ::3])
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
    indices = max_pool(random(4, 9, 5, seed=2), STRIDES).indices
    run = lambda x: max_unpool(x, indices, strides=STRIDES)
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
            lambda x, _: max_pool(x, (2,), padding=2),
            ValueError,
            "max_pool: padding must be smaller than the window",
        ),
        (lambda x, _: max_pool(x, (5,)), ValueError, "max_pool: the padded input must hold"),
        (
            lambda x, p: max_unpool(x, p, (2,), output_shape=(10,)),
            ValueError,
            r"max_unpool: output_shape must .* valid sizes are \{8\.\.9\}",
        ),
        (
            lambda x, p: max_unpool(x, p[:2], strides=(2,)),
            ValueError,
            r"indices must .* got \(2, 1\)",
        ),
        (lambda x, _: max_unpool(x, x, strides=(2,)), TypeError, "max_unpool: indices must be int"),
        (lambda x, p: max_unpool(x, p, strides=2), TypeError, "max_unpool: strides must be a seq"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((4, 1)), np.zeros((4, 1), int))
