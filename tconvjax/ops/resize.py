"""Resizing by whole factors, and resize-convolution: enlarge with a fixed kernel, then learn.

Coordinates are half-pixel centered, as in `jax.image.resize`: output pixel n looks at input `(n + 1/2)/r − 1/2`, edges
clamped. Both methods answer a constant with a constant, so no checkerboard exists before training.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from tconvjax import geometry as geo
from tconvjax.geometry import Ints, Padding
from tconvjax.ops.convolution import check_channels, operands, run_face, spatial_shape

Method = Literal["nearest", "linear"]
METHODS: tuple[str, ...] = get_args(Method)
ResizeConvImplementation = Literal["auto", "plain"]
RESIZE_CONV_IMPLEMENTATIONS: tuple[str, ...] = get_args(ResizeConvImplementation)


def resize(x: ArrayLike, scale: Sequence[int], *, method: Method = "nearest") -> jax.Array:
    """Enlarges images by whole factors: `(*batch, *spatial, channels)` to `(*batch, *(scale · spatial), channels)`.

    Args:
      x: channels last; any number of leading batch axes.
      scale: output pixels per input pixel, >= 1, one factor per spatial axis; fixes the rank.
      method: 'nearest' repeats pixels, any dtype; 'linear' interpolates, floating or complex.

    Returns:
      The enlarged images, dtype kept.

    Raises:
      ValueError: for an unknown method, or fewer axes than `scale` asks for.
      TypeError: for a scale that is not a sequence of integers, or linear interpolation of integers.

    Example:
      >>> resize(jnp.array([[0.0], [4.0]]), (2,), method="linear")[:, 0]
      Array([0., 1., 3., 4.], dtype=float32)

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003.

    PyTorch:
      `torch.nn.Upsample(scale_factor=r, mode='nearest' | 'bilinear', align_corners=False)`.
    """
    x = jnp.asarray(x)
    if not isinstance(scale, Sequence) or isinstance(scale, str):
        raise TypeError(
            f"resize: scale must be a sequence with one factor per spatial axis; got scale={scale!r}. "
            "Write (2, 2) for twice the height and width."
        )
    factors = geo.ints("resize", "scale", scale, minimum=1)
    geo.choice("resize", "method", method, METHODS)
    rank = len(factors)
    if x.ndim < rank + 1:
        raise ValueError(
            f"resize: the input must have shape (*batch, *spatial, channels) with one spatial axis per entry of scale; "
            f"got shape {x.shape} for scale={factors}."
        )
    first = x.ndim - rank - 1
    if method == "nearest":
        for axis, r in enumerate(factors, start=first):
            shape = x.shape
            x = jnp.broadcast_to(
                jnp.expand_dims(x, axis + 1), (*shape[: axis + 1], r, *shape[axis + 1 :])
            )
            x = x.reshape(*shape[:axis], r * shape[axis], *shape[axis + 1 :])
        return x
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"resize: linear interpolation needs a floating or complex input; got dtype {x.dtype}. "
            "Convert it, for example with x.astype(jnp.float32)."
        )
    shape = (
        *x.shape[:first],
        *(r * n for r, n in zip(factors, x.shape[first:-1], strict=True)),
        x.shape[-1],
    )
    enlarged: jax.Array = jax.image.resize(x, shape, "linear")
    return enlarged


def resize_conv(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    scale: Ints,
    method: Method = "nearest",
    padding: Padding = "SAME",
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: ResizeConvImplementation = "auto",
) -> jax.Array:
    """Enlarges, then convolves: the upsampling that starts without a checkerboard.

    `(*batch, *spatial, in)` and `(*kernel_size, in // groups, out)` give `(*batch, *(scale · spatial), out)` with
    'SAME' padding.

    Args:
      x: floating or complex, channels last; any number of leading batch axes.
      kernel: fixes the rank; acts on the enlarged image.
      scale: output pixels per input pixel, >= 1; an int serves all axes.
      method: 'nearest' or 'linear', as in `resize`.
      padding: of the convolution, in pixels of the enlarged image; as in `conv`, like all arguments below.
      kernel_dilation: see there.
      feature_group_count: see there.
      precision: see there.
      preferred_element_type: see there.
      implementation: 'plain' makes the enlarged image and convolves it; 'auto' chooses.

    Returns:
      The enlarged images, in the promoted dtype.

    Raises:
      ValueError, TypeError: as `conv` and `resize`.

    Example:
      >>> resize_conv(jnp.zeros((4, 4, 3)), jnp.zeros((3, 3, 3, 8)), scale=2).shape
      (8, 8, 8)

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003.
    """
    who = "resize_conv"
    geo.choice(who, "implementation", implementation, RESIZE_CONV_IMPLEMENTATIONS)
    geo.choice(who, "method", method, METHODS)
    x, kernel = operands(who, x, kernel)
    small = spatial_shape(who, x.shape, kernel)
    factors = geo.per_axis(who, "scale", scale, len(small))
    geometry = geo.conv_geometry(
        who,
        tuple(r * n for r, n in zip(factors, small, strict=True)),
        kernel.shape[:-2],
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    check_channels(who, x.shape, kernel.shape, geometry.feature_group_count)
    enlarged = resize(x, factors, method=method)
    options = (precision, preferred_element_type, "auto")
    return run_face(who, "gather", enlarged, kernel, geometry, *options)
