"""Theory and measurement meet: what integers and weights predict is what images show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tconvjax import analysis, conv_transpose, initializers, metrics

pytestmark = pytest.mark.slow
CHANNELS = 16


def smooth(images=32, size=32):
    """Random positive fields, smooth on the scale of four pixels, periodic."""
    noise = np.random.default_rng(0).normal(size=(images, size, size, CHANNELS))
    fields = ndimage.gaussian_filter(noise, (0, 4, 4, 0), mode="wrap")
    return jnp.asarray(1 + fields / fields.std(), jnp.float32)


def kernels():
    """Kernels of stride 2 and size 4, the worse before the better."""
    shape = 4, 4, CHANNELS, CHANNELS
    key = jax.random.key(0)
    iid = initializers.variance_scaling_transpose(2)(key, shape)
    uneven = jnp.pad(jnp.ones((3, 3, 1, 1)), ((0, 1), (0, 1), (0, 0), (0, 0))) / 2.25
    mixing = jax.random.normal(jax.random.key(1), (1, 1, CHANNELS, CHANNELS)) / 4
    pyramid = jnp.outer(*[jnp.array([1.0, 3.0, 3.0, 1.0]) / 4] * 2)[..., None, None]
    nearest = jnp.pad(jnp.ones((2, 2, 1, 1)), ((1, 1), (1, 1), (0, 0), (0, 0)))
    return {
        "random": iid,
        "ones k3": uneven * mixing,
        "balanced": initializers.balanced_transpose(2)(key, shape),
        "nearest": nearest * mixing,
        "[1, 3, 3, 1]": pyramid * mixing,
    }


def enlarged(x, kernel):
    return conv_transpose(x, kernel, strides=2, padding=1, padding_mode="circular")


@pytest.fixture(scope="module")
def measured():
    x, rows = smooth(), {}
    for name, kernel in kernels().items():
        y = jax.jit(enlarged)(x, kernel)
        rows[name] = {
            "share": float(analysis.harmonic_share(kernel, 2)),
            "order": analysis.zero_order(kernel, 2),
            "fraction": float(metrics.phase_mean_fraction(y, 2).mean()),
            "contrast": float(metrics.band_contrast(y, 2).diagonal),
        }
    return rows


def test_predictions(measured):
    assert measured["random"]["share"] == pytest.approx(0.75, abs=0.05)
    assert measured["ones k3"]["share"] == pytest.approx(0.19, abs=1e-3)
    assert [row["order"] for row in measured.values()] == [0, 0, 1, 1, 3]
    assert all(row["share"] < 1e-9 for row in list(measured.values())[2:])


def test_images_are_ranked_as_predicted(measured):
    """A larger share is a larger pattern, and none is below what noise gives: flat on constants, whatever the order."""
    random, ones, *flat = (row["fraction"] for row in measured.values())
    assert random > ones > 100 * max(flat)
    null = 3 / (64 * 64 - 1)
    assert ones > 20 * null > null > max(flat)


def test_band_contrast_goes_on_where_the_share_is_zero(measured):
    """On smooth images a kernel of higher zero order leaves less at the harmonics."""
    random, ones, balanced, nearest, pyramid = (row["contrast"] for row in measured.values())
    assert min(random, ones) > max(balanced, nearest) + 3
    assert min(balanced, nearest) > pyramid
