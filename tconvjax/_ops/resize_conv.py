"""Resize-convolution: enlarge with a fixed kernel, then learn; no checkerboard exists before training."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from tconvjax import _arguments as arguments
from tconvjax import _boundary as boundary
from tconvjax import _faces as faces
from tconvjax import _geometry as geo
from tconvjax._arguments import Bordered, flip_and_swap, operator
from tconvjax._geometry import Geometry, Ints, Padding, PaddingMode
from tconvjax._ops.convolution import gather
from tconvjax._ops.resize import FOOTPRINTS, METHODS, Method, enlarge, plan, ratios
from tconvjax._ops.sampling import Ratio, Rule

ResizeConvImplementation = Literal["auto", "fused", "plain"]
RESIZE_CONV_IMPLEMENTATIONS: tuple[str, ...] = get_args(ResizeConvImplementation)

# Borders for which padding the resized image equals resizing the padded image; for 'linear' with 'zeros' the two differ
# in a frame of a few pixels.
FUSED: dict[str, tuple[str, ...]] = {
    "nearest": ("zeros", "circular", "replicate"),
    "linear": ("zeros", "replicate"),
}


def resize_conv(
    x: ArrayLike,
    kernel: ArrayLike,
    scale: Ints,
    *,
    output_shape: Sequence[int] | None = None,
    method: Method = "nearest",
    padding: Padding = "SAME",
    padding_mode: PaddingMode = "zeros",
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
      output_shape: sizes of the result, one per spatial axis, instead of those that follow from `scale`: the image is
        resized by the ratio of the sizes, which must be some that factors s step over: the enlarged axis of n pixels
        holds more than `s·(n − 1)` and fewer than `s·(n + 1)`.
      method: as in `resize`.
      padding: of the convolution, in pixels of the enlarged image; as in `conv`, like all arguments below.
      padding_mode: see there.
      kernel_dilation: see there.
      feature_group_count: see there.
      precision: see there.
      preferred_element_type: see there.
      implementation: 'auto'; 'fused', which never makes the enlarged image; or 'plain', which makes it, in JAX's own
        operations without a primitive of ours, for exporters. 'auto' is 'fused' for 'nearest' with any border but
        'reflect' and for 'linear' with 'zeros' (of known sizes) or 'replicate', by whole factors, in 32 bits or more.
        Never changes the result beyond rounding.

    Returns:
      The enlarged images, in the promoted dtype.

    Raises:
      ValueError: as `conv` and `resize`; for 'fused' with a method, a border or sizes that need the enlarged image.
      TypeError: as `conv` and `resize`.

    Notes:
      A fixed enlargement is a transposed convolution with the footprint of one pixel, so both steps together are one
      transposed convolution of stride r. Its kernel, of size `k + r − 1` for 'nearest', adds the taps that lie on
      copies of one input pixel: at k = 3 and r = 2 it has 16 taps where the two steps multiply 36.

    Example:
      >>> resize_conv(jnp.zeros((4, 4, 3)), jnp.zeros((3, 3, 3, 8)), 2).shape
      (8, 8, 8)

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003.
    """
    who = "resize_conv"
    geo.choice(who, "implementation", implementation, RESIZE_CONV_IMPLEMENTATIONS)
    geo.choice(who, "method", method, METHODS)
    x, kernel = arguments.operands(who, x, kernel)
    small = arguments.spatial_shape(who, x.shape, kernel)
    factors = geo.per_axis(who, "scale", scale, len(small))
    rule = Rule(method)
    steps, large = _enlarged(
        who, small, kernel, factors, rule, output_shape, padding, kernel_dilation
    )
    geo.fits(who, (*x.shape[: -1 - len(small)], *large, x.shape[-1]))
    bordered = arguments.resolve_gather(
        who,
        x,
        kernel,
        padding=padding,
        padding_mode=padding_mode,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        implementation="dilated" if implementation == "plain" else "auto",
        spatial=large,
    )
    framed = method == "linear" and padding_mode == "zeros"
    known = all(isinstance(n, int) for n in small)
    whole = not any(isinstance(step, Ratio) for step in steps)
    fusable = whole and padding_mode in FUSED.get(method, ()) and (known or not framed)
    if implementation == "fused" and not fusable:
        raise ValueError(
            f"{who}: implementation='fused' needs whole factors, a border that one footprint describes, and "
            f"'linear' with 'zeros' known sizes: {', '.join(f'{m!r} with {b}' for m, b in FUSED.items())}; got "
            f"method={method!r}, padding_mode={padding_mode!r}, spatial shape {small} to {large}. Use 'auto'."
        )
    # In half precision the summed kernel would be rounded once more.
    exact = fusable and jnp.finfo(x.dtype).bits >= 32
    if implementation == "plain" or (implementation == "auto" and not exact):
        return _gather_enlarged(x, kernel, bordered, steps, rule)
    if framed:
        return _paint_framed(x, kernel, bordered, factors)
    return _paint_footprints(x, kernel, bordered, factors, method)


def _enlarged(
    who: str,
    small: tuple[int, ...],
    kernel: jax.Array,
    factors: tuple[int, ...],
    rule: Rule,
    output_shape: Sequence[int] | None,
    padding: Padding,
    kernel_dilation: Ints,
) -> tuple[tuple[int | Ratio, ...], tuple[int, ...]]:
    """Returns what happens to each axis and the sizes of the enlarged image, from which the result has its own."""
    if output_shape is None:
        return plan(who, small, factors, rule)
    rank = len(small)
    new = geo.ints(who, "output_shape", output_shape, minimum=1)
    if len(new) != rank:
        raise ValueError(
            f"{who}: output_shape must have one size per spatial axis; got output_shape={new} for {rank} spatial axes."
        )
    dilation = geo.per_axis(who, "kernel_dilation", kernel_dilation, rank)
    resolved = geo.resolve_padding(who, padding, rank)
    extent = geo.kernel_extent(kernel.shape[:-2], dilation)
    if resolved == "VALID":
        resolved = ((0, 0),) * rank
    if not isinstance(resolved, str):  # else 'SAME' or 'SAME_LOWER'
        cut = (e - 1 - low - high for e, (low, high) in zip(extent, resolved, strict=True))
        new = tuple(m + c for m, c in zip(new, cut, strict=True))
    return plan(who, small, ratios(who, small, factors, new), rule)


@operator
def _gather_enlarged(
    x: jax.Array,
    kernel: jax.Array,
    bordered: Bordered,
    factors: tuple[int | Ratio, ...],
    rule: Rule,
) -> jax.Array:
    """The two steps one after the other."""
    return gather(enlarge(x, factors, rule), kernel, bordered)


@operator
def _paint_framed(
    x: jax.Array, kernel: jax.Array, bordered: Bordered, factors: tuple[int, ...]
) -> jax.Array:
    return _framed(x, kernel, bordered, factors, axis=0)


def _framed(
    x: jax.Array, kernel: jax.Array, bordered: Bordered, factors: tuple[int, ...], axis: int
) -> jax.Array:
    """'linear' with 'zeros': inner pixels fused, pixels at a border from the few rows of x that they need."""
    call, pads = bordered.call, bordered.pads
    geometry = call.geometry
    if axis == geometry.rank:
        inner = bordered._replace(pads=((0, 0),) * axis, mode="replicate")
        return _paint_footprints(x, kernel, inner, factors, "linear")
    array_axis, r = x.ndim - 1 - geometry.rank + axis, factors[axis]
    n, new, offset = x.shape[array_axis], geometry.small[axis], geometry.offset[axis]
    low = min(max(pads[axis][0], 0), new)
    high = min(max(pads[axis][1], 0), new - low)
    border_rows = min(n, (geometry.extent[axis] - 2) // r + 2)  # rows of x that a border needs

    def rows(part: Geometry, start: int, size: int, first: int) -> Geometry:
        """Narrows a geometry to `size` rows from `start` on, of an image that starts at row `first` of x."""
        return replace(
            part,
            small=(*part.small[:axis], size, *part.small[axis + 1 :]),
            offset=(*part.offset[:axis], offset - start + r * first, *part.offset[axis + 1 :]),
        )

    def border(start: int, size: int, first: int) -> jax.Array:
        image = enlarge(
            lax.slice_in_dim(x, first, first + border_rows, axis=array_axis),
            factors,
            Rule("linear"),
        )
        part = replace(geometry, big=image.shape[-geometry.rank - 1 : -1])
        return faces.run(
            "gather", image, kernel, replace(call, geometry=rows(part, start, size, first))
        )

    pieces = []
    if low:
        pieces.append(border(0, low, 0))
    if low + high < new:
        narrow = replace(call, geometry=rows(geometry, low, new - low - high, 0))
        pieces.append(_framed(x, kernel, bordered._replace(call=narrow), factors, axis + 1))
    if high:
        pieces.append(border(new - high, high, n - border_rows))
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, array_axis)


@operator
def _paint_footprints(
    x: jax.Array, kernel: jax.Array, bordered: Bordered, factors: tuple[int, ...], method: Method
) -> jax.Array:
    """Enlarges and convolves in one: a transposed convolution of stride r.

    Output q meets tap a at `n = q + d·a − p` of the large image, where input m has painted
    `footprint[n − r·m + reach]`.
    """
    call, pads, mode = bordered.call, bordered.pads, bordered.mode
    geometry = call.geometry
    rank, groups = geometry.rank, geometry.feature_group_count
    kernel = arguments.widened(kernel)
    sizes, offsets, image_pads = [], [], []
    for axis, r in enumerate(factors):
        footprint = np.ones(r) if method == "nearest" else np.trim_zeros(FOOTPRINTS[method](r))
        reach = (len(footprint) - r) // 2
        k, d = geometry.kernel_size[axis], geometry.kernel_dilation[axis]
        extent = d * (k - 1) + 1
        size = extent - 1 + len(footprint)
        t, a = np.ogrid[:size, :k]
        index = t - (extent - 1) + d * a  # into the footprint, of tap a at t
        weights = np.where(
            (index >= 0) & (index < len(footprint)), footprint[index % len(footprint)], 0
        )
        kernel = jnp.moveaxis(
            jnp.tensordot(
                jnp.asarray(weights, kernel.dtype),
                kernel,
                (1, axis),
                precision=lax.Precision.HIGHEST,
            ),
            0,
            axis,
        )
        low, high = (0 if mode == "zeros" else -(-(max(p, 0) + reach) // r) for p in pads[axis])
        sizes.append(size)
        image_pads.append((low, high))
        offsets.append(extent - 1 - geometry.offset[axis] + reach + r * low)
    if mode != "zeros":
        x = boundary.pad(x, tuple(image_pads), mode)
    paint_geometry = Geometry(
        big=geometry.small,
        small=x.shape[-rank - 1 : -1],
        kernel_size=tuple(sizes),
        strides=factors,
        kernel_dilation=(1,) * rank,
        offset=tuple(offsets),
        feature_group_count=groups,
    )
    swapped = flip_and_swap(jnp.flip(kernel, range(rank)), rank, groups)
    return faces.run("paint", x, swapped, replace(call, geometry=paint_geometry))
