"""Fixed filters, the same for every channel: upsample-filter-downsample of any rate, and anti-aliased pooling."""

from collections.abc import Sequence
from functools import partial
from math import comb, prod
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from tconvjax import geometry as geo
from tconvjax.geometry import Geometry, Ints, PaddingMode, Pairs
from tconvjax.ops import boundary, sharding
from tconvjax.ops.convolution import face_options, operands, run_face
from tconvjax.ops.resize import check_inexact, filtered, image_and_factors, widened

MANY_TAPS = 144  # beyond which a loop over all taps is long to compile, and a product faster


def upfirdn(
    x: ArrayLike,
    filter: ArrayLike,
    *,
    up: Ints = 1,
    down: Ints = 1,
    padding: int | Sequence[int | Sequence[int]] = 0,
) -> jax.Array:
    """Inserts zeros, filters, and keeps some: `(*batch, *spatial, channels)` to `(*batch, *new_spatial, channels)`.

    `up − 1` zeros follow every pixel, `padding` frames the result, the filter runs over it where it fits (a true
    convolution: it is flipped), and every `down`-th pixel stays: `new = (up·n + low + high − k) // down + 1`.

    Args:
      x: channels last; any number of leading batch axes.
      filter: `(*filter_size,)`, fixes the rank: a vector for signals, a matrix for images. All channels take the same.
      up: pixels per input pixel after the zeros are inserted, >= 1; an int serves all axes.
      down: pixels there per output pixel, >= 1; an int serves all axes.
      padding: zeros around the zero-inserted image: an int, or one int or (low, high) pair per axis; negative ones
        crop.

    Returns:
      The filtered images, in the promoted dtype; products of full precision on every device.

    Raises:
      ValueError: if no output pixel is left, or for values that do not fit together.
      TypeError: for two integer operands, or options of the wrong kind.

    Notes:
      To blur what a transposed convolution painted, filter its result: on a CPU a loop over few taps costs less than
      the products that the same taps would add to the kernel.

    Example:
      >>> x = jnp.array([[1.0], [2.0], [3.0]])
      >>> upfirdn(x, jnp.array([0.5, 1.0, 0.5]), up=2, padding=((1, 1),))[:, 0]  # between pixels, their mean
      Array([1. , 1.5, 2. , 2.5, 3. , 1.5], dtype=float32)

    References:
      Karras et al. 2020, arXiv:1912.04958. `scipy.signal.upfirdn(h, x, up, down)` is `padding=((k - 1, k - up),)`.

    PyTorch:
      `upfirdn2d` of StyleGAN takes `padding=(left, right, top, bottom)`, here `((top, bottom), (left, right))`.
    """
    who = "upfirdn"
    x, filter = operands(who, x, filter, "filter")
    k = geo.ints(who, "the shape of filter", filter.shape, minimum=1)
    rank = len(k)
    if not 1 <= rank < x.ndim:
        raise ValueError(
            f"{who}: the input must have shape (*batch, *spatial, channels) with one spatial axis per axis of filter, "
            f"at least one; got shape {x.shape} for filter shape {k}."
        )
    up, down = (geo.per_axis(who, *option, rank) for option in (("up", up), ("down", down)))
    if isinstance(padding, str) or (isinstance(padding, Sequence) and len(padding) != rank):
        raise ValueError(
            f"{who}: padding must be an int, or one int or (low, high) pair per spatial axis; got padding={padding!r} "
            f"for {rank} spatial axes."
        )
    pads = cast(Pairs, geo.resolve_padding(who, padding, rank))  # no string is left
    first = x.ndim - 1 - rank
    n = geo.sizes(who, "spatial shape", x.shape[first:-1])
    full = tuple(m * u + lo + hi - t + 1 for m, u, (lo, hi), t in zip(n, up, pads, k, strict=True))
    if any(isinstance(m, int) and m < 1 for m in full):
        raise ValueError(
            f"{who}: the zero-inserted, padded image must hold the filter along every axis; got spatial shape {n}, "
            f"up={up}, padding={pads}, filter shape {k}. Pad more or use a smaller filter."
        )
    new = tuple((m - 1) // d + 1 for m, d in zip(full, down, strict=True))
    # Channels are one more spatial axis, along which the filter has one tap, so that it serves them all.
    c, one = x.shape[-1:], (1,)
    ones = one * (rank + 1)
    if up == one * rank:
        face, kept = "gather", one * rank
        lows = tuple(lo for lo, _ in pads)
        geometry = Geometry(n + c, new + c, k + one, down + one, ones, (*lows, 0))
    else:
        # Flipping is built into painting. The few users of both rates can afford the pixels not kept.
        face, kept = "paint", down
        lows = tuple(t - 1 - lo for t, (lo, _) in zip(k, pads, strict=True))
        geometry = Geometry(full + c, n + c, k + one, up + one, ones, (*lows, 0))
    implementation = "elementwise" if prod(k) <= MANY_TAPS else "auto"
    options = face_options(who, x, lax.Precision.HIGHEST, None, implementation)

    def run(x: jax.Array, filter: jax.Array) -> jax.Array:
        kernel = jnp.flip(filter) if face == "gather" else filter
        y = run_face(face, x[..., None], kernel[..., None, None, None], geometry, options)[..., 0]
        return y[(..., *(slice(None, None, d) for d in kept), slice(None))]

    return sharding.placed(run, x, filter, shape=(*x.shape[:first], *new, x.shape[-1]))


def blur_pool(
    x: ArrayLike,
    strides: Sequence[int],
    *,
    filter_size: int = 4,
    padding_mode: PaddingMode = "reflect",
) -> jax.Array:
    """Blurs, then keeps every s-th pixel: `(*batch, *spatial, channels)` to `(*batch, *ceil(spatial / s), channels)`.

    Shifts of the input change the result less than they change that of a strided layer. The blur is the binomial
    filter of `filter_size` taps and sum 1, along one axis after the other.

    Args:
      x: floating or complex, channels last; any number of leading batch axes.
      strides: s >= 1, input pixels per output pixel, one per spatial axis; fixes the rank.
      filter_size: f >= 1, taps along each axis. The center of the image moves by `1 − s/2` input pixels for even ones,
        not at all at s = 2, and by `(1 − s)/2` for odd ones.
      padding_mode: what the blur sees beyond the border, `(f − 1) // 2` pixels before and `f // 2` after: 'zeros',
        'circular', 'reflect' (without repeating the border pixel) or 'replicate'.

    Returns:
      The smaller images, dtype kept; half precision calculates in float32.

    Raises:
      ValueError: for values out of range, or an image too small for 'reflect'.
      TypeError: for integer images, or strides that are not a sequence of integers.

    Example:
      >>> blur_pool(jnp.arange(8.0)[:, None], (2,))[:, 0]  # the filter is [1, 3, 3, 1] / 8
      Array([0.75, 2.5 , 4.5 , 6.25], dtype=float32)

    References:
      Zhang 2019, arXiv:1904.11486.
    """
    who = "blur_pool"
    image, factors = image_and_factors(who, x, "strides", strides)
    check_inexact(who, image)
    size = geo.positive_int(who, "filter_size", filter_size)
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    first = image.ndim - 1 - len(factors)
    spatial = image.shape[first:-1]
    pads = (((size - 1) // 2, size // 2),) * len(factors)
    boundary.check(who, spatial, pads, padding_mode)
    new = ((n - 1) // s + 1 for n, s in zip(spatial, factors, strict=True))
    return sharding.placed(
        lambda x: _blur(x, factors, pads, padding_mode),
        image,
        shape=(*image.shape[:first], *new, image.shape[-1]),
    )


@partial(jax.jit, static_argnames=("strides", "pads", "mode"))
def _blur(x: jax.Array, strides: tuple[int, ...], pads: Pairs, mode: PaddingMode) -> jax.Array:
    y = boundary.pad(widened(x), pads, mode)
    order = sum(pads[0])
    taps = [comb(order, a) / 2**order for a in range(order + 1)]
    for axis, s in enumerate(strides, start=x.ndim - 1 - len(strides)):
        y = filtered(y, axis, taps, s)
    return y.astype(x.dtype)
