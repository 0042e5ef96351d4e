"""Random images to measure layers with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tconvjax import pixel_unshuffle


def power_law(key: jax.Array, shape: tuple[int, ...], exponent: float = 1.0) -> jax.Array:
    """Returns periodic Gaussian fields of mean 0 and variance 1, whose amplitude falls as 1 / frequency^exponent.

    Natural images have an exponent near 1 (Field 1987, doi:10.1364/JOSAA.4.002379); 0 is white noise without a mean.

    Args:
      key: of the fields.
      shape: `(batch, *spatial, channels)`; every image and channel has a field of its own.
      exponent: of the amplitude.
    """
    axes = tuple(range(1, len(shape) - 1))
    frequencies = [jnp.fft.fftfreq(shape[axis]) for axis in axes]
    grid = jnp.stack(jnp.meshgrid(*frequencies, indexing="ij"))
    squared = (grid**2).sum(0)[None, ..., None]
    gain = jnp.where(squared > 0, jnp.maximum(squared, 1e-12) ** (-exponent / 2), 0)
    waves = jnp.fft.fftn(jax.random.normal(key, shape), axes=axes)
    field = jnp.fft.ifftn(waves * gain, axes=axes).real
    return field / jnp.sqrt(jnp.mean(gain**2))


def interior(x: jax.Array, margin: int, rank: int) -> jax.Array:
    """Crops that many pixels from both ends of each of `rank` spatial axes; channels are last."""
    index = (..., *[slice(margin, n - margin) for n in x.shape[-1 - rank : -1]], slice(None))
    return x[index]


def energy_by_phase(images: jax.Array, margin: int) -> jax.Array:
    """Returns the mean energy of the four phases of images `(batch, h, w, channels)` away from the border, `(2, 2)`."""
    phases = pixel_unshuffle(interior(images, margin, 2), (2, 2))
    return (phases.reshape(-1, 2, 2) ** 2).mean(0)


def periodic(
    module: Callable[[jax.Array], jax.Array], rank: int, margin: int
) -> Callable[[jax.Array], jax.Array]:
    """Returns a module that enlarges, with images that go on periodically beyond their border.

    Args:
      module: of images `(batch, *spatial, channels)`.
      rank: number of spatial axes.
      margin: pixels of the input that the result may depend on beyond its own.
    """

    def enlarge(x: jax.Array) -> jax.Array:
        space = x.shape[1:-1]
        around = ((0, 0), *((margin, margin),) * rank, (0, 0))
        y = module(jnp.pad(x, around, mode="wrap"))
        scale = y.shape[1] // (space[0] + 2 * margin)
        return interior(y, scale * margin, rank)

    return enlarge
