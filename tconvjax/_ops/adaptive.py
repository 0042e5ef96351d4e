"""Upsampling with a kernel or a position for every output pixel, computed by the caller from the image.

Sampled values are averages of pixels, as are reassembled values if every kernel has the sum 1: then constants stay
constant for any learned parameters.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from tconvjax import _boundary as boundary
from tconvjax import _geometry as geo
from tconvjax import _sharding as sharding
from tconvjax._arguments import (
    as_array,
    check_bits,
    check_inexact,
    enlarged_shape,
    image_and_factors,
    widened,
)
from tconvjax._geometry import Ints, PaddingMode, Pairs


def carafe(
    x: ArrayLike,
    kernels: ArrayLike,
    scale: Ints,
    *,
    window: Ints = 5,
    padding_mode: PaddingMode = "zeros",
    output_shape: Sequence[int] | None = None,
) -> jax.Array:
    """Reassembles features: every output pixel is a weighted sum over a window around its input pixel.

    `(*batch, *spatial, channels)` and `(*batch, *(scale · spatial), taps)` give
    `(*batch, *(scale · spatial), channels)`; all channels share the kernels.

    Args:
      x: floating or complex, channels last; any number of leading batch axes.
      kernels: one for each output pixel, with `taps = prod(window)` weights of the neighbors, the last axis counting
        first. After a softmax over taps constants stay constant.
      scale: r >= 1, output pixels per input pixel, one factor per spatial axis; an int serves all axes of `window`.
      window: odd, input pixels, one number per spatial axis; an int serves all axes of `scale`.
      padding_mode: pixels beyond the border: 'zeros', as published, which darkens the frame; 'circular', 'reflect' or
        'replicate'.
      output_shape: spatial shape of kernels and result, less than scale pixels from scale times the input; pixels
        behind the last cell read the border.

    Returns:
      The enlarged images, dtype of x; half precision adds in float32.

    Raises:
      ValueError: for an even window, kernels of another shape, or another `output_shape`.
      TypeError: for integer images, or unless the scale or the window is a sequence of integers.

    Example:
      >>> kernels = jnp.zeros((8, 8, 9)).at[..., 4].set(1)  # the middle of nine: 'nearest'
      >>> carafe(jnp.ones((4, 4, 3)), kernels, (2, 2), window=3).shape
      (8, 8, 3)

    References:
      Wang et al. 2019, arXiv:1905.02188.

    PyTorch:
      `mmcv.ops.carafe(x, kernels, window, 1, r)`, channels first.
    """
    who = "carafe"
    window = geo.as_list(window)
    fixed = next((v for v in (window, output_shape) if isinstance(v, Sequence)), None)
    rank = None if fixed is None else len(fixed)
    image, factors = image_and_factors(who, x, "scale", scale, rank if _is_single(scale) else None)
    check_inexact(who, image)
    w = as_array(who, "kernels", kernels)
    check_inexact(who, w, "kernels")
    if jnp.iscomplexobj(w) and not jnp.iscomplexobj(image):
        raise TypeError(
            f"{who}: kernels must be real for a real x; got kernels of {w.dtype} and x of {image.dtype}. "
            "Convert x, for example with x.astype(kernels.dtype)."
        )
    sizes = odd_window(who, window, len(factors))
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    spatial = image.shape[-1 - len(factors) : -1]
    shape = enlarged_shape(who, image.shape, factors, output_shape)
    expected = (*shape[:-1], prod(sizes))
    if w.shape != expected:
        raise ValueError(
            f"{who}: kernels must have shape (*batch, *(scale · spatial), prod(window)) = {expected}; got {w.shape}."
        )
    extra = geo.extra_cells(spatial, shape[-1 - len(factors) : -1], factors)
    pads = tuple((k // 2, k // 2 + more) for k, more in zip(sizes, extra, strict=True))
    boundary.check(who, spatial, pads, padding_mode)
    return sharding.placed(
        lambda x, w: _reassembled(x, w, factors, sizes, pads, padding_mode),
        image,
        w,
        shape=shape,
    )


def dysample(
    x: ArrayLike, offsets: ArrayLike, scale: Ints, *, output_shape: Sequence[int] | None = None
) -> jax.Array:
    """Samples the image at one position per output pixel, linearly between pixels.

    `(*batch, *spatial, channels)` and `(*batch, *(scale · spatial), groups, rank)` give
    `(*batch, *(scale · spatial), channels)`. Without offsets this is `resize(x, scale, method='linear')`.

    Args:
      x: floating or complex, channels last; any number of leading batch axes.
      offsets: in input pixels, from the position that 'linear' samples, one number per spatial axis in their order;
        groups of consecutive channels have their own. Positions beyond the border, also infinite ones, move onto it;
        NaN makes its pixel NaN.
      scale: r >= 1, output pixels per input pixel, one factor per spatial axis; an int serves all axes of `offsets`.
      output_shape: spatial shape of offsets and result, less than scale pixels from scale times the input.

    Returns:
      The enlarged images, dtype of x; half precision calculates in float32.

    Raises:
      ValueError: for offsets of another shape, another `output_shape`, or if groups do not divide the channels.
      TypeError: for integer images, or a scale that is no integer and no sequence of integers.

    Example:
      >>> dysample(jnp.array([[0.0], [4.0]]), jnp.zeros((4, 1, 1)), 2)[:, 0]
      Array([0., 1., 3., 4.], dtype=float32)

    References:
      Liu et al. 2023, arXiv:2308.15085.

    PyTorch:
      `torch.nn.functional.grid_sample(.., padding_mode='border', align_corners=False)`, of positions in [−1, 1].
    """
    who = "dysample"
    shifts = as_array(who, "offsets", offsets)
    axes = shifts.shape[-1] if shifts.ndim and _is_single(scale) else None
    image, factors = image_and_factors(who, x, "scale", scale, axes)
    check_inexact(who, image)
    rank = len(factors)
    shape = enlarged_shape(who, image.shape, factors, output_shape)
    groups = shifts.shape[-2] if shifts.ndim > 1 else 1
    expected = (*shape[:-1], groups, rank)
    if shifts.shape != expected or not jnp.issubdtype(shifts.dtype, jnp.floating):
        raise ValueError(
            f"{who}: offsets must be floating, of shape (*batch, *(scale · spatial), groups, rank), here "
            f"{(*shape[:-1], '..', rank)}; got {shifts.dtype}{list(shifts.shape)}."
        )
    if groups == 0 or image.shape[-1] % groups != 0:
        raise ValueError(
            f"{who}: groups of offsets must divide the channels; got groups={groups}, channels={image.shape[-1]}."
        )
    check_bits(who, "offsets", shifts)
    if 0 in shape:  # no channels, or no images
        return image.reshape(shape)
    return sharding.placed(
        lambda x, shifts: _sampled(x, shifts, factors),
        image,
        shifts,
        shape=shape,
    )


def _is_single(value: Ints) -> bool:
    """Whether one number serves all axes."""
    return not hasattr(value, "__len__")


def odd_window(who: str, window: Ints, rank: int) -> tuple[int, ...]:
    """Returns `window` as one odd integer per spatial axis."""
    sizes = geo.per_axis(who, "window", window, rank)
    if any(k % 2 == 0 for k in sizes):
        raise ValueError(f"{who}: window must be odd, to have a middle; got window={sizes}.")
    return sizes


@partial(jax.jit, static_argnames=("factors", "sizes", "pads", "mode"))
def _reassembled(
    x: jax.Array,
    kernels: jax.Array,
    factors: tuple[int, ...],
    sizes: tuple[int, ...],
    pads: Pairs,
    mode: PaddingMode,
) -> jax.Array:
    rank = len(factors)
    batch, large = x.shape[: -1 - rank], kernels.shape[-1 - rank : -1]
    padded = boundary.pad(x, pads, mode)
    spatial = tuple(n - k + 1 for n, k in zip(padded.shape[-1 - rank : -1], sizes, strict=True))
    kernels = boundary.cut(kernels, tuple(r * n for r, n in zip(factors, spatial, strict=True)))
    # Phases behind their pixels: (*batch, n_1, r_1, n_2, r_2, .., 1); in the image, common to all phases, every r is 1.
    split = tuple(n for pair in zip(spatial, factors, strict=True) for n in pair)
    unit_split = tuple(n for size in spatial for n in (size, 1))
    y = jnp.zeros((), widened(x[..., :0]).dtype)
    of_taps = jnp.split(kernels.reshape(*batch, *split, prod(sizes)), prod(sizes), -1)
    for corner, weights in zip(product(*map(range, sizes)), of_taps, strict=True):
        window = tuple(slice(a, a + n) for a, n in zip(corner, spatial, strict=True))
        pixels = widened(padded[(..., *window, slice(None))]).reshape(
            *batch, *unit_split, x.shape[-1]
        )
        y = y + pixels * weights.astype(y.dtype)
    y = y.reshape(*batch, *kernels.shape[-1 - rank : -1], x.shape[-1])
    return boundary.cut(y, large).astype(x.dtype)


@partial(jax.jit, static_argnames=("factors",))
def _sampled(x: jax.Array, offsets: jax.Array, factors: tuple[int, ...]) -> jax.Array:
    rank, groups = len(factors), offsets.shape[-2]
    batch, spatial = x.shape[: -1 - rank], x.shape[-1 - rank : -1]
    large = offsets.shape[-2 - rank : -2]
    image = widened(x).reshape(-1, *spatial, groups, x.shape[-1] // groups)
    shifts = offsets.astype(image.real.dtype).reshape(-1, *large, groups, rank)

    def sample(image: jax.Array, shifts: jax.Array) -> jax.Array:  # one channel
        positions = [
            (jnp.arange(m, dtype=shifts.dtype).reshape(shape) + 0.5) / r - 0.5 + shifts[..., axis]
            for axis, (r, m, shape) in enumerate(
                zip(factors, large, _vector_shapes(rank), strict=True)
            )
        ]
        # All positions from one pixel beyond the border on give the same value, and an index must be finite.
        positions = [
            jnp.clip(a, -1, jnp.asarray(n).astype(a.dtype))
            for a, n in zip(positions, spatial, strict=True)
        ]
        with jax.numpy_dtype_promotion("standard"):  # JAX multiplies complex pixels by real weights
            return map_coordinates(image, positions, order=1, mode="nearest")

    of_group = jax.vmap(sample, (-1, None), -1)
    of_image = jax.vmap(of_group, (-2, -2), -2)
    return jax.vmap(of_image)(image, shifts).reshape(*batch, *large, x.shape[-1]).astype(x.dtype)


def _vector_shapes(rank: int) -> list[tuple[int, ...]]:
    """Returns for each axis the shape of a vector along it."""
    return [tuple(-1 if i == axis else 1 for i in range(rank)) for axis in range(rank)]
