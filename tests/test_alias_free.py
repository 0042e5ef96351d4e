"""Low-pass designs and the filtered nonlinearity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from scipy import signal

from tconvjax import analysis, filtered_activation, linen, lowpass, resize
from tconvjax import nnx as tnn

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("size", "cutoff", "width"), [(12, 0.25, 0.27), (7, 0.1, 0.1), (24, 0.2, 0.2)]
)
def test_kaiser_is_that_of_scipy(size, cutoff, width):
    want = signal.firwin(size, cutoff, width=width, fs=1)
    got = lowpass(filter_size=size, cutoff=cutoff, width=width)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_lanczos_by_hand():
    lobe = np.sin(np.pi / 2) / (np.pi / 2)  # of the window and of the sinc, one tap from the middle
    want = np.array([lobe**2, 1, lobe**2])
    got = lowpass(filter_size=3, cutoff=0.25, window="lanczos")
    np.testing.assert_allclose(got, want / want.sum(), rtol=0, atol=1e-15)


@each("s", (2, 3))
@each("support", (5, 6))
def test_without_a_nonlinearity_low_waves_come_back_in_place(s, support):
    n = 32
    at = np.arange(n)
    wave = np.cos(2 * np.pi * at / n + 0.3)[:, None]
    got = filtered_activation(
        wave, (s,), activation=lambda y: y, support=support, padding_mode="circular"
    )
    np.testing.assert_allclose(got, wave, rtol=0, atol=0.02)


def test_the_filter_lowers_the_error_of_equivariance():
    n = 32
    k = np.fft.fftfreq(n) * n
    noise = np.fft.fft(np.random.default_rng(0).standard_normal((n, 4)), axis=0)
    x = np.fft.ifft(noise * (abs(k) <= n // 4)[:, None], axis=0).real  # half of the band is free
    plain = jax.nn.relu
    smooth = lambda x: filtered_activation(x, (2,), activation=plain, padding_mode="circular")
    # One pixel of the exactly enlarged result is half a pixel of x.
    fine = lambda f: lambda x: resize(f(x), (2,), method="fourier")
    error = lambda f: analysis.equivariance_error(fine(f), x, (1,), 2)
    assert error(smooth) < 0.5 * error(plain)
    assert analysis.equivariance_error(smooth, x, (1,)) < 1e-13


def test_dtypes_and_derivatives():
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 3))
    run = lambda x: filtered_activation(x, (2, 3), activation=jnp.tanh)
    assert run(x.astype(np.float16)).dtype == np.float16
    np.testing.assert_allclose(jax.vmap(run)(x), run(x), rtol=0, atol=1e-13)
    y, u = x[::-1], x[:, ::-1]
    tangent, cotangent = jax.jvp(run, (x,), (u,))[1], jax.vjp(run, x)[1](y)[0]
    np.testing.assert_allclose(np.vdot(cotangent, u), np.vdot(y, tangent), rtol=1e-10)
    layer = tnn.FilteredActivation((2, 3), activation=jnp.tanh)
    np.testing.assert_array_equal(layer(x), run(x))
    twin = linen.FilteredActivation((2, 3), activation=jnp.tanh)
    np.testing.assert_array_equal(twin.apply({}, x), run(x))
    constant = run(np.full((8, 6, 1), 0.7))
    assert np.ptp(constant) < 2e-2


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"activation": 3}, TypeError, "activation must be a function"),
        ({"support": 1}, ValueError, "support must be at least 2"),
        ({"scale": (2000,)}, ValueError, "support times scale"),
        ({"window": "hann"}, ValueError, "window must be one of"),
    ],
)
def test_refuses(wrong, error, message):
    arguments = {"scale": (2,), "activation": jnp.tanh} | wrong
    with pytest.raises(error, match=f"^filtered_activation: {message}"):
        filtered_activation(np.ones((4, 1)), arguments.pop("scale"), **arguments)
    with pytest.raises(ValueError, match=r"^lowpass: filter_size must be at most .*cutoff=0.5"):
        lowpass(filter_size=3, cutoff=0.5)
