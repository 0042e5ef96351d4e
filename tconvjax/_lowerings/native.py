"""XLA's own convolution, one per face, and the definition of the transposes by JAX's own autodiff.

`dilated` inserts zeros into the small image: as the image (lhs_dilation) to paint, as the kernel (rhs_dilation) to
correlate. XLA may skip or multiply these zeros. `linear_transpose` is the reference that all others equal.
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
from tconvjax._arguments import Call, flip_and_swap
from tconvjax._geometry import Geometry, Pairs
from tconvjax._lowerings.protocol import Lowering
from tconvjax._lowerings.strips import UNLIMITED, Limits, in_strips


def _dimension_numbers(rank: int, lhs: str, rhs: str) -> lax.ConvDimensionNumbers:
    """Returns dimension numbers whose spatial axes stand in the place of `*`."""
    space = "".join(chr(ord("0") + axis) for axis in range(rank))
    return lax.conv_dimension_numbers(
        (1,) * (rank + 2),
        (1,) * (rank + 2),
        (lhs.replace("*", space), rhs.replace("*", space), f"N{space}C"),
    )


def _convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    call: Call,
    *,
    window_strides: Sequence[int],
    padding: Pairs,
    dimension_numbers: lax.ConvDimensionNumbers,
    **options: Any,
) -> jax.Array:
    """XLA's convolution; images and kernels are not split in space over the devices of `call.mesh`.

    XLA's partitioner is wrong on such splits: docs/upstream/convolution_space_and_features.py.
    """
    numbers, mesh = dimension_numbers, call.mesh
    if mesh is not None:
        lhs = sharding.keep_whole(lhs, numbers.lhs_spec[2:], mesh)
        rhs = sharding.keep_whole(rhs, numbers.rhs_spec[2:], mesh)
    out = lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        dimension_numbers=numbers,
        precision=call.precision,
        preferred_element_type=call.dtype,
        **options,
    )
    return out if mesh is None else sharding.keep_whole(out, numbers.out_spec[2:], mesh)


def _avoid_xla_abort(geometry: Geometry) -> Geometry:
    """Adds one pixel to the end of the big image along axes on which XLA would abort the process.

    If an axis of stride > 1 is padded on neither side, XLA's algebraic simplifier on CPU may exchange image and kernel
    of a zero-inserted convolution and then fail its own shape check (seen in jaxlib 0.10.1, 0.10.2 and 0.12.0):
    docs/upstream/transposed_convolution_abort.py.
    """
    spare = tuple(
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
    if not any(spare):
        return geometry
    return replace(geometry, big=tuple(m + r for m, r in zip(geometry.big, spare, strict=True)))


def gather(x: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    """The convolution."""
    geometry, pads = integer_padding(call.geometry)
    x = boundary.pad(x, pads, "zeros") if pads else x
    safe = _avoid_xla_abort(geometry)  # JAX may transpose this convolution
    if safe is not geometry:
        spare = ((0, r - m) for m, r in zip(geometry.big, safe.big, strict=True))
        x = boundary.pad(x, tuple(spare), "zeros")
    # Pixels that no window reaches stay: negative paddings only crop, and ONNX has none.
    pads = tuple(
        (lo, hi if hi >= 0 else min(hi + s - 1, 0))
        for (lo, hi), s in zip(safe.padding, geometry.strides, strict=True)
    )
    x, pads = _padded(x, pads, geometry.extent, call)
    return _convolution(
        x,
        w,
        call,
        window_strides=geometry.strides,
        padding=pads,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=_dimension_numbers(geometry.rank, "N*C", "*IO"),
        feature_group_count=geometry.feature_group_count,
    )


def _padded(
    x: jax.Array, pads: Pairs, window: Sequence[int], call: Call
) -> tuple[jax.Array, Pairs]:
    """Returns an image and the padding that is left to XLA's convolution: on a CPU none where XLA is slow.

    A window larger than the image makes XLA up to 100 times slower; groups whose result is larger than their image make
    it twice as slow.
    """
    x, pads = _cropped(x, pads)
    if call.platform != "cpu":
        return x, pads
    geometry = call.geometry
    outgrown = any(map(_known_larger, window, x.shape[1:-1]))
    grown = geometry.feature_group_count > 1 and any(
        map(_known_larger, geometry.small, geometry.big)
    )
    if not (outgrown or grown):
        return x, pads
    # Without the barrier XLA would fold the padding back into the convolution.
    return lax.optimization_barrier(boundary.pad(x, pads, "zeros")), ((0, 0),) * len(pads)


def _cropped(x: jax.Array, pads: Pairs) -> tuple[jax.Array, Pairs]:
    """Pads an image and slices from it what a negative padding crops; without one, leaves all to XLA's convolution.

    On a CPU, XLA may abort the process over a convolution with a crop, for example if one pixel is padded by one and
    cropped by one (openxla/xla#48713).
    """
    if all(p >= 0 for pair in pads for p in pair):
        return x, pads
    x = boundary.pad(x, tuple((max(low, 0), max(high, 0)) for low, high in pads), "zeros")
    for axis, (low, high) in enumerate(pads, start=1):
        x = lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis)
    return x, ((0, 0),) * len(pads)


def _known_larger(a: object, b: object) -> bool:
    """Whether a is larger than b; False if one of them is symbolic."""
    return isinstance(a, int) and isinstance(b, int) and a > b


def integer_padding(geometry: Geometry) -> tuple[Geometry, Pairs]:
    """Splits off a padding that depends on a symbolic size: XLA's convolution does not take it.

    Returns the remaining geometry and the padding split off, () if none.
    """
    pads = geometry.padding
    if all(isinstance(p, int) for pair in pads for p in pair):
        return geometry, ()
    big = tuple(m + lo + hi for m, (lo, hi) in zip(geometry.big, pads, strict=True))
    return replace(geometry, big=big, offset=(0,) * geometry.rank), pads


def paint(y: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    """The transposed convolution: a convolution of the zero-inserted small image with the reversed kernel."""
    geometry, outer_pads = integer_padding(call.geometry)
    safe = _avoid_xla_abort(geometry)
    pads = tuple(
        (e - 1 - lo, e - 1 - hi) for e, (lo, hi) in zip(geometry.extent, safe.padding, strict=True)
    )
    out = _convolution(
        y,
        flip_and_swap(w, geometry.rank, geometry.feature_group_count),
        call,
        window_strides=(1,) * geometry.rank,
        padding=tuple((max(low, 0), max(high, 0)) for low, high in pads),
        lhs_dilation=geometry.strides,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=_dimension_numbers(geometry.rank, "N*C", "*IO"),
        feature_group_count=geometry.feature_group_count,
    )
    for axis, (low, high) in enumerate(pads, start=1):
        if min(low, high) < 0:  # as in `_cropped`
            out = lax.slice_in_dim(out, max(-low, 0), out.shape[axis] - max(-high, 0), axis=axis)
    if safe is not geometry:
        spare = tuple((0, r - m) for m, r in zip(geometry.big, safe.big, strict=True))
        out = boundary.fold(out, geometry.big, spare, "zeros")
    return boundary.fold(out, call.geometry.big, outer_pads, "zeros") if outer_pads else out


def _exchanges(x: jax.Array, y: jax.Array, geometry: Geometry) -> bool:
    """Whether a kernel gradient of stride 1 exchanges its images.

    XLA's product is faster if the image with more channels gives the columns; the sum then runs over the big image.
    """
    sizes = (*geometry.big, *geometry.small)
    return (
        max(geometry.strides) == 1
        and _known_larger(x.shape[-1], y.shape[-1])
        and all(isinstance(n, int) for n in sizes)
        and 4 * prod(geometry.big) <= 5 * prod(geometry.small)
    )


def _correlate(x: jax.Array, y: jax.Array, call: Call) -> jax.Array:
    geometry = call.geometry
    if call.platform == "cpu" and _exchanges(x, y, geometry):
        out = _correlate(y, x, replace(call, geometry=geometry.exchanged))
        return flip_and_swap(out, geometry.rank, geometry.feature_group_count)
    geometry, pads = integer_padding(geometry)
    x = boundary.pad(x, pads, "zeros") if pads else x
    window = tuple(s * (n - 1) + 1 for n, s in zip(geometry.small, geometry.strides, strict=True))
    x, pads = _padded(x, geometry.padding, window, call)
    # The batch is contracted like a feature, the small image is the kernel: strides and dilation change places. Groups
    # lie side by side as features. JAX's own gradient leaves x as it is and passes `batch_group_count`, but that gives
    # wrong numbers where the batch is sharded over one of several mesh axes (seen in jaxlib 0.10.1 and 0.12.0:
    # docs/upstream/batch_group_count_gradient.py).
    g = geometry.feature_group_count
    groups = jnp.moveaxis(x.reshape(*x.shape[:-1], g, x.shape[-1] // g), -2, 0)
    lhs, rhs, numbers = groups.reshape(g * x.shape[0], *groups.shape[2:]), y, ("C*N", "I*O")
    if call.platform == "cpu":
        # XLA on CPU makes this transpose itself, but not inside loops and branches: there any other layout runs some 80
        # times slower (seen in jaxlib 0.10.1 and 0.12.0: jax-ml/jax#12868).
        lhs = groups.transpose(groups.ndim - 1, *range(2, groups.ndim - 1), 0, 1)
        lhs = lhs.reshape(*lhs.shape[:-2], g * x.shape[0])
        rhs, numbers = jnp.moveaxis(y, 0, -2), ("N*C", "*IO")
    out = _convolution(
        lhs,
        rhs,
        call,
        window_strides=geometry.kernel_dilation,
        padding=pads,
        rhs_dilation=geometry.strides,
        dimension_numbers=_dimension_numbers(geometry.rank, *numbers),
        feature_group_count=g,
    )
    return jnp.moveaxis(out, 0, -2)


def _transposed_paint(y: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    y, w = (a.astype(call.dtype) for a in (y, w))
    in_features = w.shape[-2] * call.geometry.feature_group_count
    x = sharding.abstract_like(y, (y.shape[0], *call.geometry.big, in_features), y.dtype)
    (out,) = jax.linear_transpose(lambda x: gather(x, w, call), x)(y)
    return out


def _transposed_correlate(x: jax.Array, y: jax.Array, call: Call) -> jax.Array:
    x, y = (a.astype(call.dtype) for a in (x, y))
    in_features = x.shape[-1] // call.geometry.feature_group_count
    w = sharding.abstract_like(x, (*call.geometry.kernel_size, in_features, y.shape[-1]), x.dtype)
    (out,) = jax.linear_transpose(lambda w: gather(x, w, call), w)(y)
    return out


# Two libraries compute XLA's convolutions on a CPU. YNNPACK slows down with the length of the sum: 4096 pixels are as
# fast at once as in strips; 16384 take up to four times as long, and in strips of 1024 to 4096 the time hardly differs.
# Eigen gets sums of at most 16 columns and 16 images, and is fastest at once. Few columns and groups are faster with
# all images in a strip.
STRIPS = Limits(whole=4096, strip=2048)
STRIPS_OF_GROUPS = Limits(whole=2048, strip=1024, by_rows=True)


def _limits(x: jax.Array, y: jax.Array, geometry: Geometry) -> Limits:
    if geometry.feature_group_count > 1:
        return STRIPS_OF_GROUPS
    columns = (x if _exchanges(x, y, geometry) else y).shape[-1]
    if geometry.rank != 2 or max(x.shape[0], columns) <= 16:
        return UNLIMITED
    return STRIPS._replace(by_rows=columns < 32)


correlate = in_strips(_correlate, _limits)
DILATED = Lowering(gather, paint, correlate)
LINEAR_TRANSPOSE = Lowering(gather, _transposed_paint, _transposed_correlate)
