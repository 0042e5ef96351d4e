"""Fixed filters, the same for every channel: upsample-filter-downsample of any rate, anti-aliased pooling, holds."""

from collections.abc import Sequence
from functools import partial, reduce
from math import comb, prod
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from tconvjax import _boundary as boundary
from tconvjax import _faces as faces
from tconvjax import _geometry as geo
from tconvjax import _sharding as sharding
from tconvjax._arguments import (
    check_bits,
    check_inexact,
    face_call,
    image_and_factors,
    operands,
    widened,
)
from tconvjax._geometry import Geometry, Ints, PaddingMode, Pairs
from tconvjax._ops.pooling import is_larger
from tconvjax._ops.resize import filtered

LONGEST = 1024  # taps of a fixed filter
MANY_TAPS = 144  # beyond, a loop over all taps takes long to compile, and a product is faster


def upfirdn(
    x: ArrayLike,
    filter: ArrayLike,
    up: Ints = 1,
    down: Ints = 1,
    *,
    padding: int | Sequence[int | Sequence[int]] = 0,
) -> jax.Array:
    """Inserts zeros, filters, and drops pixels: `(*batch, *spatial, channels)` to `(*batch, *new_spatial, channels)`.

    `up − 1` zeros follow every pixel, `padding` frames the result, the filter runs over it where it fits (a true
    convolution: it is flipped), and every `down`-th pixel stays: `new = (up·n + low + high − k) // down + 1`.

    Args:
      x: channels last; any number of leading batch axes.
      filter: `(*filter_size,)`, fixes the rank: a vector for signals, a matrix for images; the same for all channels.
      up: pixels of the zero-inserted image per input pixel, >= 1; an int serves all axes.
      down: pixels of the zero-inserted image per output pixel, >= 1; an int serves all axes.
      padding: zeros around the zero-inserted image: an int, or one int or (low, high) pair per axis; negative ones
        crop.

    Returns:
      The filtered images, in the promoted dtype; products of full precision on every device.

    Raises:
      ValueError: if no output pixel is left, or for values that do not fit together.
      TypeError: for two integer operands, or options of the wrong kind.

    Notes:
      To blur the result of a transposed convolution, filter it afterwards: on a CPU a loop over few taps costs less
      than the products that the same taps would add to the kernel.

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
            f"{who}: x must have shape (*batch, *spatial, channels) with one spatial axis per axis of filter, "
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
    geo.fits(who, (*x.shape[:first], *full, x.shape[-1]))
    new = tuple((m - 1) // d + 1 for m, d in zip(full, down, strict=True))
    # Channels are one more spatial axis with one tap, so one filter serves them all.
    c, one = x.shape[-1:], (1,)
    ones = one * (rank + 1)
    if up == one * rank:
        face, kept = "gather", one * rank
        offset = tuple(lo for lo, _ in pads)
        geometry = Geometry(n + c, new + c, k + one, down + one, ones, (*offset, 0))
    else:
        # Painting flips the filter. With both rates, which is rare, it computes pixels that are dropped.
        face, kept = "paint", down
        offset = tuple(t - 1 - lo for t, (lo, _) in zip(k, pads, strict=True))
        geometry = Geometry(full + c, n + c, k + one, up + one, ones, (*offset, 0))
    implementation = "elementwise" if prod(k) <= MANY_TAPS else "auto"
    call = face_call(who, geometry, x, lax.Precision.HIGHEST, None, implementation)

    def run(x: jax.Array, filter: jax.Array) -> jax.Array:
        kernel = jnp.flip(filter) if face == "gather" else filter
        y = faces.run(face, x[..., None], kernel[..., None, None, None], call)[..., 0]
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

    Shifts of the input change the result less than they change the result of a strided layer. The blur is the binomial
    filter of `filter_size` taps and sum 1, along one axis after the other.

    Args:
      x: floating or complex, channels last; any number of leading batch axes.
      strides: s >= 1, input pixels per output pixel, one per spatial axis; fixes the rank.
      filter_size: f >= 1, taps along each axis. The image moves by `s/2 − 1` input pixels for even ones, not at all at
        s = 2, and by `(s − 1)/2` for odd ones.
      padding_mode: pixels beyond the border, `(f − 1) // 2` before and `f // 2` after: 'zeros', 'circular', 'reflect'
        (without repeating the border pixel) or 'replicate'.

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
    taps = (_binomial(who, filter_size),) * len(factors)
    return _smoothed(who, image, taps, factors, padding_mode)


def max_blur_pool(
    x: ArrayLike,
    strides: Sequence[int],
    *,
    filter_size: int = 4,
    padding_mode: PaddingMode = "reflect",
    aligned: bool = False,
) -> jax.Array:
    """Takes the largest pixel under a sliding window, blurs, then keeps every s-th: max-pooling without its aliasing.

    `(*batch, *spatial, channels)` to `(*batch, *ceil(spatial / s), channels)`. The window has the size of the strides
    and moves by one pixel; it covers `(s − 1) // 2` pixels before and `s // 2` after, but none beyond the border. The
    rest is `blur_pool`.

    The image moves, by `(s − 1) // 2 + (f − 1) // 2 − (f − 1)/2` input pixels: at s = 2 by half a pixel to the front
    for every even f, 4 among them, and not at all for odd f. Levels add up: three of s = 2 and f = 4 move it by −3.5
    pixels, `−(1 + 2 + 4)/2`.

    Args:
      x: floating, channels last; any number of leading batch axes.
      strides: s >= 1, input pixels per output pixel, one per spatial axis; fixes the rank.
      filter_size: f, as in `blur_pool`; odd if `aligned`.
      padding_mode: as in `blur_pool`.
      aligned: the window covers the `s − 1` pixels after its own and none before, as in a max-pool, so that the image
        stays in place for every s.

    Returns:
      The smaller images, dtype kept.

    Raises:
      ValueError: as `blur_pool`, and for an even filter if `aligned`.
      TypeError: as `blur_pool`, and for complex images.

    Example:
      >>> max_blur_pool(jnp.array([0.0, 4, 0, 0, 0, 0])[:, None], (2,), filter_size=3)[:, 0]
      Array([4., 1., 0.], dtype=float32)

    References:
      Zhang 2019, arXiv:1904.11486.
    """
    who = "max_blur_pool"
    image, factors = image_and_factors(who, x, "strides", strides)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(
            f"{who}: the largest pixel needs a floating input; got dtype {image.dtype}. "
            "Convert it, for example with x.astype(jnp.float32)."
        )
    check_bits(who, "x", image)
    taps = (_binomial(who, filter_size),) * len(factors)
    check_aligned(who, filter_size, aligned=aligned)
    first = image.ndim - 1 - len(factors)
    _check_border(who, image.shape[first:-1], taps, padding_mode, (0,) * len(taps))
    before = tuple(0 if aligned else (s - 1) // 2 for s in factors)
    largest = sharding.placed(lambda x: _largest(x, factors, before), image, shape=image.shape)
    return _smoothed(who, largest, taps, factors, padding_mode)


def hold(
    x: ArrayLike,
    scale: Sequence[int],
    *,
    order: int = 0,
    padding_mode: PaddingMode = "replicate",
    output_shape: Sequence[int] | None = None,
) -> jax.Array:
    """Removes the pattern of a layer with these strides by a hold of this order: `x` to the same shape.

    The filter along each axis is s ones, convolved with themselves `order` more times and scaled to the sum 1. Its
    zeros lie on all stride harmonics, so for any kernel, trained or not, constants come out constant away from the
    border, and `analysis.zero_order` rises by `order + 1`.

    Args:
      x: result of a transposed or sub-pixel convolution, floating or complex, channels last.
      scale: s >= 1, strides of that layer, one per spatial axis; fixes the rank.
      order: >= 0; 0 averages s pixels. At s = 2 the orders 0, 1, 2 are [1, 1], [1, 2, 1], [1, 3, 3, 1]; StyleGAN2
        takes the last.
      padding_mode: pixels beyond the border, as in `blur_pool`, for f = (order + 1)(s − 1) + 1 taps. The image moves by
        −1/2 pixel if f is even.
      output_shape: spatial shape to produce, less than scale pixels from that of x: cropped at the high end, or
        continued over the border.

    Returns:
      The filtered images, dtype kept; half precision calculates in float32.

    Raises:
      ValueError: for values out of range, or an image too small for 'reflect'.
      TypeError: for integer images, or a scale that is not a sequence of integers.

    Example:
      >>> hold(jnp.array([1.0, 3, 1, 3, 1, 3])[:, None], (2,), padding_mode="circular")[:, 0]
      Array([2., 2., 2., 2., 2., 2.], dtype=float32)

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658; Kinoshita & Kiya 2020, arXiv:2002.02117; Karras et al. 2020,
      arXiv:1912.04958.
    """
    who = "hold"
    image, factors = image_and_factors(who, x, "scale", scale)
    geo.ints(who, "order", (order,), minimum=0)
    _refuse_long(who, "order", order, tuple((order + 1) * (s - 1) + 1 for s in factors))
    boxes = (np.ones(s) / s for s in factors)
    taps = tuple(tuple(reduce(np.convolve, [box] * (order + 1)).tolist()) for box in boxes)
    small = image.shape[-1 - len(factors) : -1]
    large = geo.sizes_near(who, output_shape, small, factors)
    extra = tuple(m - n for m, n in zip(large, small, strict=True))
    return _smoothed(who, image, taps, (1,) * len(factors), padding_mode, extra)


@partial(jax.jit, static_argnames=("window", "before"))
def _largest(x: jax.Array, window: tuple[int, ...], before: tuple[int, ...]) -> jax.Array:
    """Returns the largest pixel under a sliding window that starts `before` the pixel, without a border.

    Of equal pixels the first counts, and gets the gradient.

    By comparisons: XLA's gradient of a `reduce_window` is wrong where the image is split in space over one axis of a
    mesh of two axes (docs/upstream/reduce_window_gradient.py).
    """

    def larger(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(is_larger(a, b), a, b)

    first = x.ndim - 1 - len(window)
    for axis, s, low in reversed(list(zip(range(first, x.ndim - 1), window, before, strict=True))):
        pads = [(low, s - 1 - low, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        padded = lax.pad(x, jnp.full((), -jnp.inf, x.dtype), pads)
        shifted = (lax.slice_in_dim(padded, a, a + x.shape[axis], axis=axis) for a in range(s))
        x = reduce(larger, shifted)
    return x


def check_aligned(who: str, filter_size: int, *, aligned: bool) -> None:
    """Raises for an even filter if `aligned`."""
    if aligned and filter_size % 2 == 0:
        raise ValueError(
            f"{who}: aligned=True needs an odd filter_size, as an even filter has no pixel in its middle; got "
            f"filter_size={filter_size}. Use {filter_size - 1} or {filter_size + 1}."
        )


def _refuse_long(who: str, name: str, value: int, taps: tuple[int, ...]) -> None:
    """Raises if a fixed filter has too many taps for a loop over them."""
    if max(taps) > LONGEST:
        raise ValueError(
            f"{who}: the filter must have at most {LONGEST} taps along every axis; got {name}={value}, which makes "
            f"{taps}. Use a shorter filter."
        )


def _binomial(who: str, filter_size: int) -> tuple[float, ...]:
    size = geo.positive_int(who, "filter_size", filter_size)
    _refuse_long(who, "filter_size", size, (size,))
    return tuple(comb(size - 1, a) / 2 ** (size - 1) for a in range(size))


def _smoothed(
    who: str,
    image: jax.Array,
    taps: tuple[tuple[float, ...], ...],
    strides: tuple[int, ...],
    mode: PaddingMode,
    extra: Sequence[int] = (),
) -> jax.Array:
    """Filters along one axis after the other, with f taps on `(f − 1) // 2` pixels before and `f // 2` after.

    `extra` pixels are appended to the result at the high ends.
    """
    check_inexact(who, image)
    first = image.ndim - 1 - len(strides)
    spatial = image.shape[first:-1]
    extra = extra or (0,) * len(strides)
    pads = _check_border(who, spatial, taps, mode, extra)
    new = ((n + more - 1) // s + 1 for n, more, s in zip(spatial, extra, strides, strict=True))
    return sharding.placed(
        lambda x: _filtered(x, taps, strides, pads, mode),
        image,
        shape=(*image.shape[:first], *new, image.shape[-1]),
    )


def _check_border(
    who: str,
    spatial: Sequence[int],
    taps: tuple[tuple[float, ...], ...],
    mode: PaddingMode,
    extra: Sequence[int],
) -> Pairs:
    """Returns the pixels that filters need before and after every axis, or refuses an image that cannot be padded."""
    geo.choice(who, "padding_mode", mode, geo.PADDING_MODES)
    pads = tuple(
        ((len(t) - 1) // 2, len(t) // 2 + more) for t, more in zip(taps, extra, strict=True)
    )
    boundary.check(who, spatial, pads, mode)
    return pads


@partial(jax.jit, static_argnames=("taps", "strides", "pads", "mode"))
def _filtered(
    x: jax.Array,
    taps: tuple[tuple[float, ...], ...],
    strides: tuple[int, ...],
    pads: Pairs,
    mode: PaddingMode,
) -> jax.Array:
    y = boundary.pad(widened(x), pads, mode)
    axes = range(x.ndim - 1 - len(strides), x.ndim - 1)
    for axis, axis_taps, s in zip(axes, taps, strides, strict=True):
        y = filtered(y, axis, axis_taps, s)
    return y.astype(x.dtype)
