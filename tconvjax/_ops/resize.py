"""Resizing by whole factors.

Coordinates are half-pixel centered, as in `jax.image.resize`: output pixel n lies at input `(n + 1/2)/r − 1/2`. Pixels
beyond the border have no weight, and the other weights are scaled to the sum 1; for 'fourier' the image is periodic. So
every method maps a constant to the same constant.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from math import prod
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from tconvjax import _boundary as boundary
from tconvjax import _geometry as geo
from tconvjax import _sharding as sharding
from tconvjax._arguments import check_inexact, enlarged_shape, image_and_factors, widened

Method = Literal["nearest", "linear", "cubic", "lanczos3", "binomial", "fourier"]
METHODS: tuple[str, ...] = get_args(Method)
MOST_PHASES = 4096  # each is a filter, compiled one by one
LONG = 1024  # pixels of an axis; beyond, 'fourier' takes a fast transform


def resize(x: ArrayLike, scale: Sequence[int], *, method: Method = "nearest") -> jax.Array:
    """Enlarges images by whole factors: `(*batch, *spatial, channels)` to `(*batch, *(scale · spatial), channels)`.

    Args:
      x: channels last; any number of leading batch axes.
      scale: r >= 1, output pixels per input pixel, one factor per spatial axis; fixes the rank.
      method: 'nearest' repeats pixels, any dtype. The others filter a floating or complex input, half precision in
        float32: 'linear'; 'cubic', of Keys with a = −1/2; 'lanczos3', a sinc under a window of three pixels on either
        side; 'binomial', r ones convolved with themselves twice, `[1, 3, 3, 1]` for r = 2, of zero order 3 for every
        r, so that polynomials of degree 2 come out without ripple; 'fourier', the periodic band-limited image through
        the input samples, without frequencies beyond 1/2 cycle per input pixel: it has no image of the spectrum, but
        rings at edges and at the border.

    Returns:
      The enlarged images, dtype kept.

    Raises:
      ValueError: for an unknown method, or fewer axes than `scale` has entries.
      TypeError: for a scale that is not a sequence of integers, or a filter on integers.

    Example:
      >>> resize(jnp.array([[0.0], [4.0]]), (2,), method="linear")[:, 0]
      Array([0., 1., 3., 4.], dtype=float32)

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003; Keys 1981, doi:10.1109/TASSP.1981.1163711.

    PyTorch:
      `torch.nn.Upsample(scale_factor=r, mode='nearest' | 'bilinear', align_corners=False)`; 'cubic' is its 'bicubic'
      with `antialias=True`, which changes a to −1/2.
    """
    image, factors = image_and_factors("resize", x, "scale", scale)
    geo.choice("resize", "method", method, METHODS)
    if method != "nearest":
        check_inexact("resize", image)
    first = image.ndim - 1 - len(factors)
    spatial = image.shape[first:-1]
    if method == "fourier" and not all(isinstance(n, int) for n in spatial):
        raise ValueError(
            f"resize: method='fourier' needs a spatial shape of known sizes; got {spatial}. Export one size at a time."
        )
    shape = enlarged_shape("resize", image.shape, factors)
    if method != "nearest" and max(factors) > MOST_PHASES:
        raise ValueError(
            f"resize: scale must be at most {MOST_PHASES} where every phase has a filter of its own; got "
            f"scale={factors}, method={method!r}. Enlarge in steps or by 'nearest'."
        )
    return sharding.placed(lambda x: enlarge(x, factors, method), image, shape=shape)


def bilinear_additive(x: ArrayLike, scale: Sequence[int]) -> jax.Array:
    """Enlarges linearly and adds neighboring channels: as many numbers as before, and nothing to learn.

    `(*batch, *spatial, C · prod(scale))` to `(*batch, *(scale · spatial), C)`: output channel c is the sum of the input
    channels `c · prod(scale)` and the `prod(scale) − 1` after it, each enlarged by `resize(.., method='linear')`.

    Args:
      x: floating or complex, channels last; any number of leading batch axes.
      scale: r >= 1, output pixels per input pixel, one factor per spatial axis; fixes the rank.

    Returns:
      The enlarged images, dtype kept.

    Raises:
      ValueError: if the product of `scale` does not divide the channels.
      TypeError: for integer images, or a scale that is not a sequence of integers.

    Example:
      >>> bilinear_additive(jnp.array([[0.0, 1.0], [4.0, 1.0]]), (2,))[:, 0]
      Array([1., 2., 4., 5.], dtype=float32)

    References:
      Wojna et al. 2019, arXiv:1707.05847.
    """
    who = "bilinear_additive"
    image, factors = image_and_factors(who, x, "scale", scale)
    check_inexact(who, image)
    channels, count = image.shape[-1], prod(factors)
    if channels % count != 0:
        raise ValueError(
            f"{who}: prod(scale) must divide the channels; got channels={channels}, scale={factors} (product {count})."
        )
    enlarged_shape(who, image.shape, factors)
    split = (*image.shape[:-1], channels // count, count)
    add = lambda x: widened(x).reshape(split).sum(-1).astype(x.dtype)
    # The sum commutes with the filter, so it comes first: there are fewer channels to enlarge.
    added = sharding.placed(add, image, shape=split[:-1])
    return resize(added, factors, method="linear")


def filtered(x: jax.Array, axis: int, taps: Sequence[float], stride: int = 1) -> jax.Array:
    """Returns `y[o] = Σ_a x[stride·o + a] · taps[a]` along one axis, for windows inside x; no matrix product."""
    count = x.shape[axis] - len(taps) + 1
    return reduce(
        jnp.add,
        [
            lax.slice_in_dim(x, a, a + count, stride, axis) * tap
            for a, tap in enumerate(taps)
            if abs(tap) > 1e-12  # smaller ones are rounded zeros
        ],
    )


@partial(jax.jit, static_argnames=("factors", "method"))
def enlarge(x: jax.Array, factors: tuple[int, ...], method: Method) -> jax.Array:
    """`resize` after its checks."""
    y = x if method == "nearest" else widened(x)
    for axis, r in enumerate(factors, start=x.ndim - 1 - len(factors)):
        if r == 1:
            continue
        before, n, after = y.shape[:axis], y.shape[axis], y.shape[axis + 1 :]
        if method == "nearest":
            y = jnp.broadcast_to(jnp.expand_dims(y, axis + 1), (*before, n, r, *after))
        elif method == "fourier":
            y = _band_limited(y, axis, r)
        else:
            y = jnp.stack(_phase_images(y, axis, FOOTPRINTS[method](r), r), axis + 1)
            # Without the barrier XLA fuses the axes and computes the first anew for every tap of the second.
            y = lax.optimization_barrier(y)
        y = y.reshape(*before, n * r, *after)
    return y.astype(x.dtype)


def _band_limited(x: jax.Array, axis: int, r: int) -> jax.Array:
    """Returns r times as many samples of the band-limited periodic image, sample m at `(m + 1/2)/r − 1/2`."""
    n = x.shape[axis]
    half = n // 2
    k = np.arange(-half, half + 1)
    share = np.where(2 * abs(k) == n, 0.5, 1.0)  # n/2 and −n/2 are one frequency
    if n <= LONG:
        # A product: XLA's FFT may abort where the axis is split over devices (openxla/xla#45402).
        position = (np.arange(r * n) + 0.5) / r - 0.5
        first = np.exp(2j * np.pi * np.outer(position, k) / n) * share / n
        weights = (first @ np.exp(-2j * np.pi * np.outer(k, np.arange(n)) / n)).real
        y = jnp.tensordot(x, jnp.asarray(weights.T, x.dtype), (axis, 0), precision="highest")
        return jnp.moveaxis(y, -1, axis)
    factors = r * share * np.exp(2j * np.pi * k / n * (0.5 / r - 0.5))
    vector_shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    spectrum = jnp.take(jnp.fft.fft(x, axis=axis), k % n, axis)
    spectrum *= jnp.asarray(factors.reshape(vector_shape), spectrum.dtype)
    low = r * n // 2 - half
    spectrum = boundary.pad_axis(spectrum, axis, low, r * n - low - len(k))
    y = jnp.fft.ifft(jnp.fft.ifftshift(spectrum, axis), axis=axis)
    return y if jnp.iscomplexobj(x) else y.real


def _phase_images(x: jax.Array, axis: int, footprint: np.ndarray, r: int) -> list[jax.Array]:
    """Returns the r phases of the enlarged image; the footprint is whole blocks, the middle one of its own pixel.

    Output r·m + p gets `footprint[r·t + p]` times input m + reach − t.
    """
    reach = len(footprint) // r // 2
    ones = jnp.ones([n if i == axis else 1 for i, n in enumerate(x.shape)], x.dtype)
    around = [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)]
    image, inside = jnp.pad(x, around), jnp.pad(ones, around)
    weights = [tuple(map(float, footprint[p::r][::-1])) for p in range(r)]
    return [filtered(image, axis, w) / filtered(inside, axis, w) for w in weights]


def _sampled(kernel: Callable[[np.ndarray], np.ndarray], radius: int, r: int) -> np.ndarray:
    """Returns the footprint of a kernel, a function of the distance in input pixels that is zero beyond `radius`."""
    distance = np.abs((np.arange(-radius * r, (radius + 1) * r) + 0.5) / r - 0.5)
    return np.where(distance < radius, kernel(distance), 0.0)


def _keys(d: np.ndarray) -> np.ndarray:
    """The cubic kernel of Keys 1981 with a = −1/2, for d < 2."""
    return np.where(d < 1, (1.5 * d - 2.5) * d**2 + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2)


# Weights of one input pixel in its own r output pixels and in whole blocks of r on both sides, before the weights of
# every output pixel are scaled to the sum 1.
FOOTPRINTS: dict[str, Callable[[int], np.ndarray]] = {
    "linear": partial(_sampled, lambda d: 1 - d, 1),
    "cubic": partial(_sampled, _keys, 2),
    "lanczos3": partial(_sampled, lambda d: np.sinc(d) * np.sinc(d / 3), 3),
    "binomial": lambda r: np.pad(np.convolve(np.ones(r), np.convolve(np.ones(r), np.ones(r))), 1),
}
