"""XLA's own convolution, one per face, and the definition of the transposes by JAX's own autodiff.

`dilated` inserts zeros into the small image (lhs_dilation) to paint and into the kernel that the small image is to
correlate; whether the zeros are multiplied is XLA's affair. `linear_transpose` is the reference that all others equal.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tconvjax import _boundary as boundary
from tconvjax import _sharding as sharding
from tconvjax._boundary import pad_axis
from tconvjax._geometry import Geometry, Pairs
from tconvjax._lowerings.protocol import Lowering, Options, flip_and_swap
from tconvjax._lowerings.strips import UNLIMITED, Limits, in_strips


def _dimension_numbers(rank: int, lhs: str, rhs: str) -> lax.ConvDimensionNumbers:
    """Dimension numbers with spatial axes between the first and the two (one) last letters."""
    space = "".join(chr(ord("0") + axis) for axis in range(rank))
    return lax.conv_dimension_numbers(
        (1,) * (rank + 2),
        (1,) * (rank + 2),
        (lhs.replace("*", space), rhs.replace("*", space), f"N{space}C"),
    )


def _convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    pads: Pairs,
    dimension_numbers: lax.ConvDimensionNumbers,
    options: Options,
    **sizes: Any,
) -> jax.Array:
    """XLA's convolution; no device of `options.mesh` holds a part of the space of an image or of a kernel.

    XLA's partitioner is wrong there: see docs/upstream/convolution_space_and_features.py.
    """
    numbers = dimension_numbers
    lhs = sharding.whole(lhs, numbers.lhs_spec[2:], options.mesh)
    rhs = sharding.whole(rhs, numbers.rhs_spec[2:], options.mesh)
    out = lax.conv_general_dilated(
        lhs, rhs, strides, pads, dimension_numbers=numbers, **sizes, **options.product
    )
    return sharding.whole(out, numbers.out_spec[2:], options.mesh)


def _roomy(geometry: Geometry) -> Geometry:
    """Adds one pixel to the end of the big image along axes on which XLA would abort the process.

    With an axis of stride > 1 that is padded on neither side, XLA's algebraic simplifier on CPU may exchange image and
    kernel of a zero-inserted convolution and then fail its own shape check (seen in jaxlib 0.10.1, 0.10.2 and 0.12.0):
    see docs/upstream/transposed_convolution_abort.py.
    """
    spare = (
        int(s > 1 and p == e - 1 and m == s * (n - 1) + 2 - e)
        for s, p, e, m, n in zip(
            geometry.strides,
            geometry.offset,
            geometry.extent,
            geometry.big,
            geometry.small,
            strict=True,
        )
    )
    return replace(geometry, big=tuple(m + r for m, r in zip(geometry.big, spare, strict=True)))


def gather(x: jax.Array, w: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
    """The convolution."""
    geometry, pads = integer_padding(geometry)
    x = boundary.pad(x, pads, "zeros")
    roomy = _roomy(geometry)  # for the transpose that JAX may make of this
    for axis, (m, r) in enumerate(zip(geometry.big, roomy.big, strict=True), start=1):
        x = pad_axis(x, axis, 0, r - m)
    # Pixels that no window reaches may stay: a negative padding is for crops alone, and ONNX has none.
    pads = tuple(
        (lo, hi if hi >= 0 else min(hi + s - 1, 0))
        for (lo, hi), s in zip(roomy.padding, geometry.strides, strict=True)
    )
    x, pads = _padded(x, pads, geometry.extent, geometry, options)
    return _convolution(
        x,
        w,
        geometry.strides,
        pads,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=_dimension_numbers(geometry.rank, "N*C", "*IO"),
        feature_group_count=geometry.feature_group_count,
        options=options,
    )


def _padded(
    x: jax.Array, pads: Pairs, window: Sequence[int], geometry: Geometry, options: Options
) -> tuple[jax.Array, Pairs]:
    """Returns an image and the padding that is left to XLA's convolution: none on a CPU where it goes wrong.

    A window larger than the image itself makes it up to 100 times slower; groups that make an image larger than the one
    they read, twice; a crop may abort the process (an axis of one pixel, padded by one and cropped by one, jaxlib
    0.10.1).
    """
    if options.platform != "cpu":
        return x, pads
    outgrown = any(map(_more, window, x.shape[1:-1]))
    grown = geometry.feature_group_count > 1 and any(map(_more, geometry.small, geometry.big))
    cropped = any(p < 0 for pair in pads for p in pair)
    if not (outgrown or grown or cropped):
        return x, pads
    # Behind a barrier, or XLA would take the padding back into the convolution.
    return lax.optimization_barrier(boundary.pad(x, pads, "zeros")), ((0, 0),) * len(pads)


def _more(a: object, b: object) -> bool:
    """Whether one size is known to be larger than another; symbolic ones are not."""
    return isinstance(a, int) and isinstance(b, int) and a > b


def integer_padding(geometry: Geometry) -> tuple[Geometry, Pairs]:
    """Splits off the padding where it depends on a symbolic size, which XLA's convolution does not take."""
    pads = geometry.padding
    if all(isinstance(p, int) for pair in pads for p in pair):
        return geometry, ((0, 0),) * geometry.rank
    big = tuple(m + lo + hi for m, (lo, hi) in zip(geometry.big, pads, strict=True))
    return replace(geometry, big=big, offset=(0,) * geometry.rank), pads


def paint(y: jax.Array, w: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
    """The transposed convolution: a convolution of the zero-inserted small image with the reversed kernel."""
    geometry, beyond = integer_padding(geometry)
    roomy = _roomy(geometry)
    pads = tuple(
        (e - 1 - lo, e - 1 - hi) for e, (lo, hi) in zip(geometry.extent, roomy.padding, strict=True)
    )
    out = _convolution(
        y,
        flip_and_swap(w, geometry.rank, geometry.feature_group_count),
        (1,) * geometry.rank,
        pads,
        lhs_dilation=geometry.strides,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=_dimension_numbers(geometry.rank, "N*C", "*IO"),
        feature_group_count=geometry.feature_group_count,
        options=options,
    )
    for axis, (m, r) in enumerate(zip(geometry.big, roomy.big, strict=True), start=1):
        out = pad_axis(out, axis, 0, m - r)
    return boundary.fold(out, geometry.big, beyond, "zeros")


def _turns(x: jax.Array, y: jax.Array, geometry: Geometry) -> bool:
    """Whether the images change places in a kernel gradient, as they can without strides.

    XLA's product is faster with the more channels as columns; the sum is then taken over the big image.
    """
    sizes = (*geometry.big, *geometry.small)
    return (
        max(geometry.strides) == 1
        and _more(x.shape[-1], y.shape[-1])
        and all(isinstance(n, int) for n in sizes)
        and 4 * prod(geometry.big) <= 5 * prod(geometry.small)
    )


def _correlate(x: jax.Array, y: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
    if options.platform == "cpu" and _turns(x, y, geometry):
        out = _correlate(y, x, geometry.turned, options)
        return flip_and_swap(out, geometry.rank, geometry.feature_group_count)
    geometry, pads = integer_padding(geometry)
    x = boundary.pad(x, pads, "zeros")
    window = tuple(s * (n - 1) + 1 for n, s in zip(geometry.small, geometry.strides, strict=True))
    x, pads = _padded(x, geometry.padding, window, geometry, options)
    # The batch is contracted like a feature, the small image is the kernel: strides and dilation change places. Groups
    # lie side by side as features: `batch_group_count`, which says the same of x as it is and which JAX's own gradient
    # of a grouped convolution uses, gives wrong numbers where the batch is sharded over one axis of a mesh that has
    # others (jaxlib 0.10.1 and 0.12.0; docs/upstream/batch_group_count_gradient.py).
    g = geometry.feature_group_count
    groups = jnp.moveaxis(x.reshape(*x.shape[:-1], g, x.shape[-1] // g), -2, 0)
    lhs, rhs, numbers = groups.reshape(g * x.shape[0], *groups.shape[2:]), y, ("C*N", "I*O")
    if options.platform == "cpu":
        # Written out, as XLA on CPU does it for itself, but not inside of loops and branches, where a convolution in
        # any other layout runs some 80 times slower (jaxlib 0.10.1 and 0.12.0).
        lhs = groups.transpose(groups.ndim - 1, *range(2, groups.ndim - 1), 0, 1)
        lhs = lhs.reshape(*lhs.shape[:-2], g * x.shape[0])
        rhs, numbers = jnp.moveaxis(y, 0, -2), ("N*C", "*IO")
    out = _convolution(
        lhs,
        rhs,
        geometry.kernel_dilation,
        pads,
        rhs_dilation=geometry.strides,
        dimension_numbers=_dimension_numbers(geometry.rank, *numbers),
        feature_group_count=g,
        options=options,
    )
    return jnp.moveaxis(out, 0, -2)


def _transposed_paint(
    y: jax.Array, w: jax.Array, geometry: Geometry, options: Options
) -> jax.Array:
    y, w = (a.astype(options.preferred_element_type) for a in (y, w))
    in_features = w.shape[-2] * geometry.feature_group_count
    x = sharding.like(y, (y.shape[0], *geometry.big, in_features), y.dtype)
    (out,) = jax.linear_transpose(lambda x: gather(x, w, geometry, options), x)(y)
    return out


def _transposed_correlate(
    x: jax.Array, y: jax.Array, geometry: Geometry, options: Options
) -> jax.Array:
    x, y = (a.astype(options.preferred_element_type) for a in (x, y))
    in_features = x.shape[-1] // geometry.feature_group_count
    w = sharding.like(x, (*geometry.kernel_size, in_features, y.shape[-1]), x.dtype)
    (out,) = jax.linear_transpose(lambda w: gather(x, w, geometry, options), w)(y)
    return out


# Of the two libraries behind XLA's convolutions on a CPU, YNNPACK slows down with the length of the sum: 4096 pixels
# are as fast at once as in strips; 16384 take up to four times as long, and in strips of 1024 to 4096 the time hardly
# differs. Eigen, which gets what has 16 columns and summands of a pixel at most, is fastest at once. Few columns and
# groups want all images in a strip.
STRIPS = Limits(whole=4096, strip=2048)
STRIPS_OF_GROUPS = Limits(whole=2048, strip=1024, by_rows=True)


def _limits(x: jax.Array, y: jax.Array, geometry: Geometry) -> Limits:
    if geometry.feature_group_count > 1:
        return STRIPS_OF_GROUPS
    columns = (x if _turns(x, y, geometry) else y).shape[-1]
    if geometry.rank != 2 or max(x.shape[0], columns) <= 16:
        return UNLIMITED
    return STRIPS._replace(by_rows=columns < 32)


correlate = in_strips(_correlate, _limits)
DILATED = Lowering(gather, paint, correlate)
LINEAR_TRANSPOSE = Lowering(gather, _transposed_paint, _transposed_correlate)
