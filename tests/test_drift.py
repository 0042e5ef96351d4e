"""How far the levels of a segmentation network move an image, predicted for every downsampler."""

import typing

import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import nnx

from experiments.tasks import segmentation
from experiments.upsamplers import Downsampler, downsampler
from tconvjax import resize

pytestmark = pytest.mark.usefixtures("promotion", "x64")


def flat(layer):
    """Gives the convolutions of a downsampler the taps [1, 2, 1], whose center is their middle."""
    for _, part in nnx.iter_graph(layer):
        if hasattr(part, "kernel"):
            part.kernel = nnx.Param(jnp.array([1.0, 2.0, 1.0])[:, None, None])
    return layer


@each("name", typing.get_args(Downsampler))
def test_predicted_drift_is_where_a_pixel_comes_out_of_every_downsampler(name):
    levels, period = 2, 4
    options = segmentation.Options(kernel_size=2, levels=levels, downsampler=name)
    down = flat(downsampler(name, 1, (3,), (2,), nnx.Rngs(0)))
    places = np.arange(16, 16 + period)
    y = jnp.asarray(np.eye(32)[places])[..., None]
    for _ in range(levels):
        y = down(y)
    y = np.asarray(resize(y, (period,)))[..., 0]
    centers = (y * np.arange(32)).sum(1) / y.sum(1)
    predicted = segmentation.predicted_drift(options)
    np.testing.assert_allclose(np.mean(centers - places), predicted, atol=1e-9)
