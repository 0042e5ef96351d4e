"""Values of a metric on images without a pattern."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tconvjax import _geometry as geo
from tconvjax._arguments import as_array


class Null(NamedTuple):
    """Mean and upper point of a statistic by chance, each with the structure and shapes of its value."""

    mean: Any
    upper: Any


def null(
    metric: Callable[..., Any],
    images: ArrayLike | jax.ShapeDtypeStruct,
    *args: Any,
    samples: int = 200,
    level: float = 0.95,
    key: jax.Array | None = None,
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array] = jax.random.normal,
) -> Null:
    """Returns the mean and the 95 % point of `metric(noise, *args)` for white noise in place of the images.

    Known values for M images of H x W pixels: `phase_mean_fraction` has mean `(Πs − 1)/(H·W − 1)`, `coherence`
    1/M, `band_contrast` 0 dB for many images, `checkerboard_coefficient` 0.75, `radial_spectrum` the variance times the
    channels, the accuracy of `detectability` 0.5. Content is not white: images without much power at high frequencies
    lie far below these values in most metrics, so a value above `upper` is a finding, but one below it proves nothing.

    Args:
      metric: a function of images and `args`, such as `phase_mean_fraction`; its value may be any pytree of arrays. For
        options, and for statistics of a statistic (the mean over a set), use a lambda.
      images: only their shape is used: `(*batch, *spatial, channels)`. One image is enough for metrics of single
        images, whose values are independent; a statistic of a set needs as many as were measured.
      *args: further arguments of `metric`, such as the period.
      samples: sets of noise, >= 1; the upper point is good to about `1.5/sqrt(samples)` of the spread at 0.95.
      level: the part of the noise below `upper`, in [0, 1].
      key: key of the noise; the default is fixed, so that equal calls give equal nulls.
      draw: `draw(key, shape)` gives one sample, for nulls other than noise, such as permutations (see `detectability`).

    Returns:
      `mean` and `upper`, each like the value of `metric`: tuples stay tuples, values per image stay values per image.

    Raises:
      ValueError, TypeError: for options out of range; errors of `metric` for images of this shape pass through.

    Example:
      >>> from tconvjax.metrics import phase_mean_fraction
      >>> mean, upper = null(phase_mean_fraction, jnp.zeros((32, 32, 1)), 2, samples=2000)
      >>> print(f"{mean:.4f} {3 / 1023:.4f} {upper:.3f}")
      0.0029 0.0029 0.008

    References:
      The Monte Carlo test of Barnard 1963, doi:10.1111/j.2517-6161.1963.tb00517.x.
    """
    geo.positive_int("null", "samples", samples)
    if not isinstance(level, numbers.Real) or not 0 <= level <= 1:
        raise ValueError(f"null: level must be a number in [0, 1]; got level={level!r}.")
    if not isinstance(images, jax.ShapeDtypeStruct):
        images = as_array("null", "images", images)
    shape = images.shape
    keys = jax.random.split(jax.random.key(0) if key is None else key, samples)
    values = jax.lax.map(lambda k: metric(draw(k, shape), *args), keys)
    return Null(
        jax.tree.map(lambda v: v.mean(0), values),
        jax.tree.map(lambda v: jnp.quantile(v, level, axis=0), values),
    )
