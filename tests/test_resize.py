"""resize and resize_conv."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import each

from tconvjax import conv, resize, resize_conv


@each("shape", ((5, 2), (4, 3, 2), (2, 4, 3, 2), (2, 3, 2, 3, 1)))
def test_nearest_repeats_pixels(shape, key):
    x = jax.random.normal(key, shape)
    rank = min(len(shape) - 1, 3)
    scale = (2, 3, 1)[:rank]
    want = np.asarray(x)
    for axis, r in enumerate(scale, start=len(shape) - 1 - rank):
        want = np.repeat(want, r, axis)
    got = resize(x, scale)
    np.testing.assert_array_equal(got, want)
    integers = (10 * x).astype(int)
    np.testing.assert_array_equal(resize(integers, scale), (10 * want).astype(int))


@each("scale", ((2,), (3,), (4,)))
def test_linear_is_half_pixel_centered_with_clamped_edges(scale):
    n, r = 5, scale[0]
    x = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    at = np.clip((np.arange(n * r) + 0.5) / r - 0.5, 0, n - 1)
    want = np.stack([np.interp(at, np.arange(n), x[:, c]) for c in range(2)], -1)
    np.testing.assert_allclose(resize(x, scale, method="linear"), want, atol=1e-6)


@each("method", ("nearest", "linear"))
def test_keeps_constants_and_commutes_with_convolution_by_one(method, key):
    assert jnp.ptp(resize(jnp.full((3, 4, 1), 0.7), (2, 3), method=method)) < 1e-6
    x = jax.random.normal(key, (5, 4, 3))
    kernel = jax.random.normal(key, (1, 1, 3, 2))
    np.testing.assert_allclose(
        resize(conv(x, kernel), (2, 2), method=method),
        resize_conv(x, kernel, scale=2, method=method),
        atol=1e-5,
    )


@each("method", ("nearest", "linear"))
def test_resize_conv_is_resize_then_conv_and_has_its_gradients(method, key):
    x = jax.random.normal(key, (2, 4, 5, 2))
    kernel = jax.random.normal(key, (3, 2, 2, 3))
    run = lambda x, w: resize_conv(x, w, scale=(2, 3), method=method, implementation="plain")
    enlarged = np.asarray(resize(x, (2, 3), method=method), np.float64)
    pads = [oracles.conv_pads(n, k, 1, 1, "SAME") for n, k in ((8, 3), (15, 2))]
    want = oracles.conv(enlarged, np.asarray(kernel, np.float64), (1, 1), pads, (1, 1), 1)
    np.testing.assert_allclose(run(x, kernel), want, atol=1e-5)
    grads = jax.grad(lambda *a: jnp.sum(run(*a) ** 2), argnums=(0, 1))(x, kernel)
    for gradient, argument in zip(grads, (x, kernel), strict=True):
        np.testing.assert_allclose(
            jnp.vdot(gradient, argument), 2 * jnp.sum(run(x, kernel) ** 2), rtol=1e-4
        )  # the loss is quadratic in each argument


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("scale", "method", "error", "message"),
    [
        (2, "nearest", TypeError, r"Write \(2, 2\)"),
        ((2, 0), "nearest", ValueError, "scale must be at least 1"),
        ((2, 2.0), "nearest", TypeError, "scale must be an integer; got 2.0"),
        ((2, 2), "liner", ValueError, "Did you mean 'linear'?"),
        ((2,) * 4, "nearest", ValueError, "one spatial axis per entry of scale"),
    ],
)
def test_refuses(scale, method, error, message):
    with pytest.raises(error, match=message):
        resize(jnp.zeros((4, 4, 1)), scale, method=method)


@pytest.mark.refuses
def test_refuses_to_interpolate_integers():
    with pytest.raises(TypeError, match="got dtype int32"):
        resize(jnp.zeros((4, 1), int), (2,), method="linear")
    x, kernel = jnp.zeros((4, 1)), jnp.zeros((3, 1, 1))
    for wrong, message in (
        ({"implementation": "fuse"}, "implementation must be one of 'auto', 'plain'"),
        ({"padding": "FULL"}, "padding must be one of"),
        ({"method": "cubic"}, "method must be one of"),
        ({"kernel": jnp.zeros((3, 2, 1))}, "got 1 channels"),
    ):
        with pytest.raises(ValueError, match=f"^resize_conv: .*{message}"):
            resize_conv(x, **{"kernel": kernel, "scale": 2} | wrong)
