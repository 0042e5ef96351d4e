"""Channels into space and back, and sub-pixel convolution: many channels at low resolution, then one shuffle.

Output pixel `r·m + p` of an axis takes phase p of input pixel m. The phases of all axes are numbered like the digits
of a number, the last axis fastest.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from math import prod
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from tconvjax import _boundary as boundary
from tconvjax import _geometry as geo
from tconvjax import _sharding as sharding
from tconvjax._arguments import (
    Bordered,
    Implementation,
    as_array,
    enlarged_shape,
    image_and_factors,
    operands,
    resolve_gather,
    spatial_shape,
)
from tconvjax._geometry import Ints, Padding, PaddingMode
from tconvjax._ops.convolution import gather

Order = Literal["CRD", "DCR"]
ORDERS: tuple[str, ...] = get_args(Order)


def pixel_shuffle(x: ArrayLike, scale: Sequence[int], *, order: Order = "CRD") -> jax.Array:
    """Moves channels into space: `(*batch, H, W, C·r²)` becomes `(*batch, H·r, W·r, C)`; any rank, any factors.

    Args:
      x: channels last, any dtype; the last `len(scale)` axes before them are spatial.
      scale: r >= 1, output pixels per input pixel, one factor per spatial axis; fixes the rank.
      order: input channel is `c·r² + phase` ('CRD') or `phase·C + c` ('DCR').

    Returns:
      The same values in new places; dtype kept.

    Raises:
      ValueError: if the product of `scale` does not divide the channels, or for an unknown order.
      TypeError: for a scale that is not a sequence of integers.

    Example:
      >>> pixel_shuffle(jax.numpy.zeros((4, 5, 12)), (2, 2)).shape  # 12 = 3 · (2 · 2)
      (8, 10, 3)

    References:
      Shi et al. 2016, arXiv:1609.05158.

    PyTorch:
      'CRD' is `torch.nn.PixelShuffle` with channels last; TensorFlow's `depth_to_space` is 'DCR'.
    """
    who = "pixel_shuffle"
    y, factors = image_and_factors(who, x, "scale", scale)
    geo.choice(who, "order", order, ORDERS)
    channels, count = y.shape[-1], prod(factors)
    if channels % count != 0:
        raise ValueError(
            f"{who}: prod(scale) must divide the channels; got channels={channels}, scale={factors} (product {count})."
        )
    batch, spatial = y.shape[: -1 - len(factors)], y.shape[-1 - len(factors) : -1]
    split = (channels // count, *factors) if order == "CRD" else (*factors, channels // count)
    new = enlarged_shape(who, (*batch, *spatial, channels // count), factors)

    def shuffle(y: jax.Array) -> jax.Array:
        y = y.reshape(*batch, *spatial, *split)
        return y.transpose(_interleaved(y.ndim, len(factors), order)).reshape(new)

    return sharding.placed(shuffle, y, shape=new)


def pixel_unshuffle(x: ArrayLike, scale: Sequence[int], *, order: Order = "CRD") -> jax.Array:
    """Undoes `pixel_shuffle`: `(*batch, H, W, C)` becomes `(*batch, H/r, W/r, C·r²)`.

    Args:
      x: channels last, any dtype; the last `len(scale)` axes before them are spatial.
      scale: r >= 1, input pixels per output pixel, one factor per spatial axis; fixes the rank.
      order: output channel is `c·r² + phase` ('CRD') or `phase·C + c` ('DCR').

    Returns:
      The same values in new places; dtype kept.

    Raises:
      ValueError: if an entry of `scale` does not divide its spatial axis, or for an unknown order.
      TypeError: for a scale that is not a sequence of integers.

    Example:
      >>> pixel_unshuffle(jax.numpy.zeros((8, 10, 3)), (2, 2)).shape  # 12 = 3 · (2 · 2)
      (4, 5, 12)

    References:
      Shi et al. 2016, arXiv:1609.05158.

    PyTorch:
      'CRD' is `torch.nn.PixelUnshuffle` with channels last; TensorFlow's `space_to_depth` is 'DCR'.
    """
    who = "pixel_unshuffle"
    y, factors = image_and_factors(who, x, "scale", scale)
    geo.choice(who, "order", order, ORDERS)
    batch, spatial = y.shape[: -1 - len(factors)], y.shape[-1 - len(factors) : -1]
    if any(n % r != 0 for n, r in zip(spatial, factors, strict=True)):
        raise ValueError(
            f"{who}: scale must divide the spatial shape; got spatial shape {spatial}, scale={factors}. "
            "Crop or pad first."
        )
    small = tuple(n // r for n, r in zip(spatial, factors, strict=True))
    new = (*batch, *small, y.shape[-1] * prod(factors))

    def unshuffle(y: jax.Array) -> jax.Array:
        y = y.reshape(*batch, *chain(*zip(small, factors, strict=True)), y.shape[-1])
        axes = _interleaved(y.ndim, len(factors), order)
        return y.transpose(sorted(range(y.ndim), key=axes.__getitem__)).reshape(new)

    return sharding.placed(unshuffle, y, shape=new)


def subpixel_conv(
    x: ArrayLike,
    kernel: ArrayLike,
    scale: Ints,
    *,
    order: Order = "CRD",
    padding: Padding = "SAME",
    padding_mode: PaddingMode = "zeros",
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: Implementation = "auto",
    output_shape: Sequence[int] | None = None,
) -> jax.Array:
    """Convolves, then shuffles: every phase of the output has a kernel of its own.

    `(*batch, *spatial, in)` and `(*kernel_size, in // groups, out · prod(scale))` give
    `(*batch, *(scale · spatial), out)` with 'SAME' padding.

    Args:
      x: floating or complex, channels last; any number of leading batch axes.
      kernel: fixes the rank; acts on the image before it is enlarged.
      scale: output pixels per input pixel, >= 1; an int serves all axes.
      order: how `out` and the phases share the last axis of the kernel, as in `pixel_shuffle`.
      padding: of the convolution, in input pixels; as in `conv`, like all arguments below.
      padding_mode: see there.
      kernel_dilation: see there.
      feature_group_count: see there.
      precision: see there.
      preferred_element_type: see there.
      implementation: see there.
      output_shape: spatial shape to produce, less than scale pixels from scale times that of the convolution. Where
        both exist, pixels are those of the call without it; others continue the convolution over the padding.

    Returns:
      The enlarged images, in the promoted dtype.

    Raises:
      ValueError: if the product of `scale` does not divide the last axis of the kernel, or for another `output_shape`;
        else as `conv`.
      TypeError: as `conv`.

    Example:
      >>> x, kernel = jax.numpy.zeros((4, 5, 3)), jax.numpy.zeros((3, 3, 3, 32))  # 32 = 8 · (2 · 2)
      >>> subpixel_conv(x, kernel, scale=2).shape
      (8, 10, 8)

    References:
      Shi et al. 2016, arXiv:1609.05158; Aitken et al. 2017, arXiv:1707.02937, for its initialization.

    PyTorch:
      `torch.nn.Sequential(Conv2d(in, out * r**2, k, padding=k // 2), PixelShuffle(r))`, k odd, is 'CRD'.
    """
    options = {
        "padding": padding,
        "padding_mode": padding_mode,
        "kernel_dilation": kernel_dilation,
        "feature_group_count": feature_group_count,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        "implementation": implementation,
    }
    return biased_subpixel_conv(
        x, kernel, None, scale, order=order, output_shape=output_shape, **options
    )


def biased_subpixel_conv(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: jax.Array | None,
    scale: Ints,
    *,
    order: Order,
    output_shape: Sequence[int] | None = None,
    **options: Any,
) -> jax.Array:
    """`subpixel_conv` with a bias for every output of the kernel, or None, added before the shuffle."""
    who = "subpixel_conv"
    geo.choice(who, "order", order, ORDERS)
    x, kernel = operands(who, x, kernel)
    factors = geo.per_axis(who, "scale", scale, len(spatial_shape(who, x.shape, kernel)))
    if kernel.shape[-1] % prod(factors) != 0:
        raise ValueError(
            f"{who}: prod(scale) must divide the last axis of the kernel, out · prod(scale); got "
            f"kernel shape {kernel.shape}, scale={factors} (product {prod(factors)})."
        )
    bordered, large = _continued(who, x, kernel, factors, output_shape, options)
    if order == "CRD" and bordered.call.geometry.feature_group_count == 1:
        # In the order 'DCR' the shuffle moves whole rows of channels, and a kernel is cheaper to reorder than an image.
        reorder = partial(_crd_to_dcr, phase_count=prod(factors))
        kernel = sharding.placed(reorder, kernel, shape=kernel.shape)
        bias = None if bias is None else reorder(bias)
        order = "DCR"
    y = gather(x, kernel, bordered)
    if bias is not None:
        y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
    return at_size(pixel_shuffle(y, factors, order=order), large)


def pixel_conv_transpose(
    x: ArrayLike,
    kernels: Sequence[ArrayLike],
    *,
    padding_mode: PaddingMode = "zeros",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: Implementation = "auto",
    output_shape: Sequence[int] | None = None,
) -> jax.Array:
    """Doubles an image and computes neighboring pixels one from the other, instead of independently.

    `(*batch, H, W, in)` to `(*batch, 2H, 2W, out)`. In every block of four, pixel (0, 0) comes from a convolution of
    the input, (1, 1) from a convolution of those pixels, and the two others from both, by the cross of a third kernel:

        c_0 = conv(x, kernels[0])      c_1 = conv(c_0, kernels[1])      z = c_0 at phase (0, 0), c_1 at (1, 1), else 0
        result = z + conv(z, taps of kernels[2] that lie an odd distance from its middle)

    Args:
      x: floating or complex, channels last, two spatial axes; any number of leading batch axes.
      kernels: three, `(*kernel_size, in, out)`, `(*kernel_size, out, out)` and `(*kernel_size, out, out)`, the last of
        odd size.
      padding_mode: of the convolutions, whose padding is 'SAME'; as in `conv`, like all arguments below.
      precision: see there.
      preferred_element_type: see there.
      implementation: see there.
      output_shape: spatial shape to produce, at most a pixel from twice that of x; the first convolution continues
        over its padding.

    Returns:
      The enlarged images, in the promoted dtype.

    Raises:
      ValueError: for another `output_shape`, unless there are three kernels that fit; else as `conv`.
      TypeError: as `conv`.

    Example:
      >>> kernels = [jax.numpy.zeros((3, 3, *io)) for io in ((8, 4), (4, 4), (4, 4))]
      >>> pixel_conv_transpose(jax.numpy.zeros((5, 6, 8)), kernels).shape
      (10, 12, 4)

    References:
      Gao et al. 2017, arXiv:1705.06820, whose PixelTCL has a third kernel of 3 x 3: a cross.
    """
    who = "pixel_conv_transpose"
    rule = "kernels must be a sequence of three arrays"
    if not isinstance(kernels, Sequence):
        raise TypeError(f"{who}: {rule}; got {type(kernels).__name__}.")
    if len(kernels) != 3:
        raise ValueError(f"{who}: {rule}; got {len(kernels)}.")
    first, second, third = (
        as_array(who, f"kernels[{i}]", kernel) for i, kernel in enumerate(kernels)
    )
    out = first.shape[-1:]
    fit = all(kernel.ndim == 4 and kernel.shape[2:] == out * 2 for kernel in (second, third))
    if first.ndim != 4 or not fit or any(k % 2 == 0 for k in third.shape[:2]):
        raise ValueError(
            f"{who}: kernels must have shapes (*kernel_size, in, out), (*kernel_size, out, out) and, of odd size, "
            f"(*kernel_size, out, out) with two spatial axes; got {first.shape}, {second.shape}, {third.shape}."
        )

    options: dict[str, Any] = {
        "padding_mode": padding_mode,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        "implementation": implementation,
    }

    def conv(x: ArrayLike, kernel: jax.Array) -> jax.Array:
        image, kernel = operands(who, x, kernel)
        return gather(image, kernel, resolve_gather(who, image, kernel, **options))

    image, first = operands(who, x, first)
    bordered, large = _continued(who, image, first, (2, 2), output_shape, options)
    c_0 = gather(image, first, bordered)
    c_1 = conv(c_0, second)
    zeros = jnp.zeros_like(c_0)
    z = pixel_shuffle(jnp.concatenate([c_0, zeros, zeros, c_1], -1), (2, 2), order="DCR")
    rows, columns = (np.arange(k) - k // 2 for k in third.shape[:2])
    odd = (rows[:, None] + columns) % 2 == 1
    return at_size(z + conv(z, third * jnp.asarray(odd[..., None, None], third.dtype)), large)


def _continued(
    who: str,
    x: jax.Array,
    kernel: jax.Array,
    scale: tuple[int, ...],
    output_shape: Sequence[int] | None,
    options: Mapping[str, Any],
) -> tuple[Bordered, tuple[int, ...]]:
    """Returns a convolution that makes as many pixels as the enlarged image needs, and the size of the latter."""
    bordered = resolve_gather(who, x, kernel, **options)
    small, pads = bordered.call.geometry.small, bordered.call.geometry.padding
    large = geo.enlarged_sizes(who, output_shape, small, scale)
    extra = geo.extra_cells(small, large, scale)
    if any(extra):
        longer = tuple((low, high + more) for (low, high), more in zip(pads, extra, strict=True))
        bordered = resolve_gather(who, x, kernel, **{**options, "padding": longer})
    return bordered, large


def at_size(y: jax.Array, large: Sequence[int]) -> jax.Array:
    """Crops an image to a spatial shape at the high ends, or appends zeros there."""
    shape = (*y.shape[: -1 - len(large)], *large, y.shape[-1])
    return sharding.placed(lambda y: boundary.cut(y, large), y, shape=shape)


def _crd_to_dcr(kernel: jax.Array, phase_count: int) -> jax.Array:
    """Reorders the outputs of a kernel from 'CRD' to 'DCR'."""
    split = kernel.reshape(*kernel.shape[:-1], kernel.shape[-1] // phase_count, phase_count)
    return split.swapaxes(-1, -2).reshape(kernel.shape)


def _interleaved(ndim: int, rank: int, order: Order) -> tuple[int, ...]:
    """Returns the transpose that moves each phase axis behind its spatial axis, in an array of `ndim` axes.

    From (*batch, H, W, C, r, r) or, in 'DCR', (*batch, H, W, r, r, C) to (*batch, H, r, W, r, C).
    """
    first = ndim - 1 - 2 * rank
    spatial, last = range(first, first + rank), range(first + rank, ndim)
    channel, phase_axes = (last[0], last[1:]) if order == "CRD" else (last[-1], last[:-1])
    return *range(first), *chain(*zip(spatial, phase_axes, strict=True)), channel
