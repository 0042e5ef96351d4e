"""Resizing by whole factors, and resize-convolution: enlarge with a fixed kernel, then learn.

Coordinates are half-pixel centered, as in `jax.image.resize`: output pixel n looks at input `(n + 1/2)/r − 1/2`. What
lies beyond the border does not count, and the weights of the rest are scaled to the sum 1; for 'fourier' the image
repeats there. So all methods answer a constant with the same constant, and no checkerboard exists before training.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce
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
from tconvjax._geometry import Geometry, Ints, Padding, PaddingMode, Pairs
from tconvjax._lowerings import accumulator, flip_and_swap
from tconvjax._ops.convolution import (
    as_array,
    check_bits,
    gather,
    operands,
    run_face,
    run_gather,
    spatial_shape,
)

Method = Literal["nearest", "linear", "cubic", "lanczos3", "binomial", "fourier"]
METHODS: tuple[str, ...] = get_args(Method)
ResizeConvImplementation = Literal["auto", "fused", "plain"]
RESIZE_CONV_IMPLEMENTATIONS: tuple[str, ...] = get_args(ResizeConvImplementation)
MOST_PHASES = 4096  # filters that are compiled one by one
LONG = 1024  # pixels of an axis beyond which 'fourier' takes a fast transform


def resize(x: ArrayLike, scale: Sequence[int], *, method: Method = "nearest") -> jax.Array:
    """Enlarges images by whole factors: `(*batch, *spatial, channels)` to `(*batch, *(scale · spatial), channels)`.

    Args:
      x: channels last; any number of leading batch axes.
      scale: r >= 1, output pixels per input pixel, one factor per spatial axis; fixes the rank.
      method: 'nearest' repeats pixels, any dtype. The others filter a floating or complex input, half precision in
        float32: 'linear'; 'cubic', of Keys with a = −1/2; 'lanczos3', a sinc under a window of three pixels on either
        side; 'binomial', r ones convolved with themselves twice, `[1, 3, 3, 1]` for r = 2, of zero order 3 for every
        r, so that polynomials of degree 2 come out without ripple; 'fourier', the periodic image of which the input
        are samples and which has no frequency beyond 1/2 cycle per input pixel: no image of the spectrum at all, but
        rings at edges and at the border.

    Returns:
      The enlarged images, dtype kept.

    Raises:
      ValueError: for an unknown method, or fewer axes than `scale` asks for.
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
    return sharding.placed(lambda x: _resize(x, factors, method), image, shape=shape)


def resize_conv(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    scale: Ints,
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
      method: as in `resize`.
      padding: of the convolution, in pixels of the enlarged image; as in `conv`, like all arguments below.
      padding_mode: see there.
      kernel_dilation: see there.
      feature_group_count: see there.
      precision: see there.
      preferred_element_type: see there.
      implementation: 'auto'; 'fused', which never makes the enlarged image; or 'plain', which does, in JAX's own
        operations without a primitive of ours, for exporters. 'auto' is 'fused' for 'nearest' with any border but
        'reflect' and for 'linear' with 'zeros' (of known sizes) or 'replicate', in 32 bits or more. Never changes the
        result beyond rounding.

    Returns:
      The enlarged images, in the promoted dtype.

    Raises:
      ValueError: as `conv` and `resize`; for 'fused' with a method and a border that need the enlarged image.
      TypeError: as `conv` and `resize`.

    Notes:
      A fixed enlargement is a transposed convolution with the footprint of one pixel, so both steps together are one
      transposed convolution of stride r. Its kernel, of size `k + r − 1` for 'nearest', is the sum of the taps that
      see the same input pixel: at k = 3 and r = 2 it has 16 taps where the two steps multiply 36.

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
    enlarged = enlarged_shape(who, x.shape, factors)
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    framed = method == "linear" and padding_mode == "zeros"
    known = all(isinstance(n, int) for n in small)
    fusable = padding_mode in _FUSED.get(method, ()) and (known or not framed)
    if implementation == "fused" and not fusable:
        raise ValueError(
            f"{who}: implementation='fused' needs a border that one footprint describes, and 'linear' with 'zeros' "
            f"known sizes: {', '.join(f'{m!r} with {b}' for m, b in _FUSED.items())}; got method={method!r}, "
            f"padding_mode={padding_mode!r}, spatial shape {small}. Use 'auto'."
        )

    def plain(x: jax.Array, kernel: jax.Array, *resolved: Any) -> jax.Array:
        return run_gather(resize(x, factors, method=method), kernel, *resolved)

    def fused(x: jax.Array, kernel: jax.Array, *resolved: Any) -> jax.Array:
        if framed:
            geometry, pads, _, options = resolved
            return _run_framed(x, kernel, factors, geometry, pads, options)
        return _run_fused(x, kernel, factors, method, *resolved)

    # The summed kernel would round once more in half precision.
    fits = fusable and jnp.finfo(x.dtype).bits >= 32

    return gather(
        who,
        x,
        kernel,
        spatial=enlarged[-1 - len(small) : -1],
        run=fused if implementation == "fused" or (implementation == "auto" and fits) else plain,
        padding=padding,
        padding_mode=padding_mode,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        implementation="dilated" if implementation == "plain" else "auto",
    )


def bilinear_additive(x: ArrayLike, scale: Sequence[int]) -> jax.Array:
    """Enlarges linearly and adds neighboring channels, so that no number is gained: nothing to learn, nothing lost.

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
    channels, phases = image.shape[-1], prod(factors)
    if channels % phases != 0:
        raise ValueError(
            f"{who}: prod(scale) must divide the channels; got channels={channels}, scale={factors} (product {phases})."
        )
    enlarged_shape(who, image.shape, factors)
    split = (*image.shape[:-1], channels // phases, phases)
    add = lambda x: widened(x).reshape(split).sum(-1).astype(x.dtype)
    added = sharding.placed(
        add, image, shape=split[:-1]
    )  # before: the sum commutes with the filter
    return resize(added, factors, method="linear")


# Where resizing and then padding the large image is padding the small image and then resizing; for 'linear' with
# 'zeros' in a frame of few pixels alone.
_FUSED: dict[str, tuple[str, ...]] = {
    "nearest": ("zeros", "circular", "replicate"),
    "linear": ("zeros", "replicate"),
}


def _run_framed(
    x: jax.Array,
    kernel: jax.Array,
    factors: tuple[int, ...],
    geometry: Geometry,
    pads: Pairs,
    options: dict[str, Any],
    axis: int = 0,
) -> jax.Array:
    """'linear' with 'zeros': the inner pixels fused; those that see beyond a border from the few rows they see."""
    if axis == geometry.rank:
        return _run_fused(
            x, kernel, factors, "linear", geometry, ((0, 0),) * axis, "replicate", options
        )
    at, r = x.ndim - 1 - geometry.rank + axis, factors[axis]
    n, new, offset = x.shape[at], geometry.small[axis], geometry.offset[axis]
    low = min(max(pads[axis][0], 0), new)
    high = min(max(pads[axis][1], 0), new - low)
    seen = min(n, (geometry.extent[axis] - 2) // r + 2)  # rows of x under the rows at a border

    def rows(part: Geometry, start: int, size: int, first: int) -> Geometry:
        """Narrows a geometry to few rows, of an image that starts at row `first` of x."""
        return replace(
            part,
            small=(*part.small[:axis], size, *part.small[axis + 1 :]),
            offset=(*part.offset[:axis], offset - start + r * first, *part.offset[axis + 1 :]),
        )

    def border(start: int, size: int, first: int) -> jax.Array:
        image = resize(lax.slice_in_dim(x, first, first + seen, axis=at), factors, method="linear")
        part = replace(geometry, big=image.shape[-geometry.rank - 1 : -1])
        return run_face("gather", image, kernel, rows(part, start, size, first), options)

    pieces = []
    if low:
        pieces.append(border(0, low, 0))
    if low + high < new:
        inner = rows(geometry, low, new - low - high, 0)
        pieces.append(_run_framed(x, kernel, factors, inner, pads, options, axis + 1))
    if high:
        pieces.append(border(new - high, high, n - seen))
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, at)


def _run_fused(
    x: jax.Array,
    kernel: jax.Array,
    factors: tuple[int, ...],
    method: Method,
    geometry: Geometry,
    pads: Pairs,
    padding_mode: PaddingMode,
    options: dict[str, Any],
) -> jax.Array:
    """One transposed convolution of stride r that paints what enlarging and gathering would give.

    Output q meets tap a at `n = q + d·a − p` of the large image, where input m has painted
    `footprint[n − r·m + reach]`.
    """
    rank, groups = geometry.rank, geometry.feature_group_count
    kernel = widened(kernel)
    sizes, offsets, around = [], [], []
    for axis, r in enumerate(factors):
        footprint = np.ones(r) if method == "nearest" else np.trim_zeros(_FOOTPRINTS[method](r))
        reach = (len(footprint) - r) // 2
        k, d = geometry.kernel_size[axis], geometry.kernel_dilation[axis]
        extent = d * (k - 1) + 1
        size = extent - 1 + len(footprint)
        t, a = np.ogrid[:size, :k]
        at = t - (extent - 1) + d * a
        seen = np.where((at >= 0) & (at < len(footprint)), footprint[at % len(footprint)], 0)
        kernel = jnp.moveaxis(
            jnp.tensordot(
                jnp.asarray(seen, kernel.dtype), kernel, (1, axis), precision=lax.Precision.HIGHEST
            ),
            0,
            axis,
        )
        low, high = (
            0 if padding_mode == "zeros" else -(-(max(p, 0) + reach) // r) for p in pads[axis]
        )
        sizes.append(size)
        around.append((low, high))
        offsets.append(extent - 1 - geometry.offset[axis] + reach + r * low)
    x = boundary.pad(x, tuple(around), padding_mode)
    painting = Geometry(
        big=geometry.small,
        small=x.shape[-rank - 1 : -1],
        kernel_size=tuple(sizes),
        strides=factors,
        kernel_dilation=(1,) * rank,
        offset=tuple(offsets),
        feature_group_count=groups,
    )
    turned = flip_and_swap(jnp.flip(kernel, range(rank)), rank, groups)
    return run_face("paint", x, turned, painting, options)


def image_and_factors(
    who: str, x: ArrayLike, name: str, value: Sequence[int]
) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns an image and one positive integer for each of its spatial axes, or refuses what `who` was given."""
    image = as_array(who, "x", x)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(
            f"{who}: {name} must be a sequence with one integer per spatial axis; got {name}={value!r}. "
            "Write (2, 2) for two along height and width."
        )
    factors = geo.ints(who, name, value, minimum=1)
    if not 1 <= len(factors) < image.ndim:
        raise ValueError(
            f"{who}: x must have shape (*batch, *spatial, channels) with one spatial axis per entry of {name}, "
            f"at least one; got shape {image.shape} for {name}={factors}."
        )
    return image, factors


def enlarged_shape(who: str, shape: tuple[int, ...], factors: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of images enlarged by whole factors, or refuses one that is too large."""
    rank = len(factors)
    large = (r * n for r, n in zip(factors, shape[-1 - rank : -1], strict=True))
    new = (*shape[: -1 - rank], *large, shape[-1])
    geo.fits(who, new)
    return new


def check_inexact(who: str, image: jax.Array, name: str = "x") -> None:
    """Raises unless an image is floating or complex, as a filter needs it; `name` is that of the argument."""
    if not jnp.issubdtype(image.dtype, jnp.inexact):
        raise TypeError(
            f"{who}: a filter needs a floating or complex {name}; got dtype {image.dtype}. "
            f"Convert it, for example with {name}.astype(jnp.float32)."
        )
    check_bits(who, name, image)


def widened(x: jax.Array) -> jax.Array:
    """Returns `x` in the dtype to calculate in: float32 for half precision."""
    return x.astype(accumulator(x.dtype))


def filtered(x: jax.Array, axis: int, taps: Sequence[float], stride: int = 1) -> jax.Array:
    """Returns `y[o] = Σ_a x[stride·o + a] · taps[a]` along one axis, as many as lie inside; no matrix product."""
    count = x.shape[axis] - len(taps) + 1
    return reduce(
        jnp.add,
        [
            lax.slice_in_dim(x, a, a + count, stride, axis) * tap
            for a, tap in enumerate(taps)
            if abs(tap) > 1e-12  # not the rounding of a zero
        ],
    )


@partial(jax.jit, static_argnames=("factors", "method"))
def _resize(x: jax.Array, factors: tuple[int, ...], method: Method) -> jax.Array:
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
            y = jnp.stack(_phases(y, axis, _FOOTPRINTS[method](r), r), axis + 1)
            # XLA would fuse the axes and compute the first anew for every tap of the second, which costs more.
            y = lax.optimization_barrier(y)
        y = y.reshape(*before, n * r, *after)
    return y.astype(x.dtype)


def _band_limited(x: jax.Array, axis: int, r: int) -> jax.Array:
    """Returns r times as many samples of the band-limited periodic image, sample m at `(m + 1/2)/r − 1/2`."""
    n = x.shape[axis]
    half = n // 2
    k = np.arange(-half, half + 1)
    share = np.where(2 * abs(k) == n, 0.5, 1.0)  # one frequency, of which nobody knows the sign
    if n <= LONG:  # a product, since XLA's transform aborts where devices share such an axis
        position = (np.arange(r * n) + 0.5) / r - 0.5
        first = np.exp(2j * np.pi * np.outer(position, k) / n) * share / n
        weights = (first @ np.exp(-2j * np.pi * np.outer(k, np.arange(n)) / n)).real
        y = jnp.tensordot(x, jnp.asarray(weights.T, x.dtype), (axis, 0), precision="highest")
        return jnp.moveaxis(y, -1, axis)
    factors = r * share * np.exp(2j * np.pi * k / n * (0.5 / r - 0.5))
    along = [-1 if i == axis else 1 for i in range(x.ndim)]
    spectrum = jnp.take(jnp.fft.fft(x, axis=axis), k % n, axis)
    spectrum *= jnp.asarray(factors.reshape(along), spectrum.dtype)
    low = r * n // 2 - half
    spectrum = boundary.pad_axis(spectrum, axis, low, r * n - low - len(k))
    y = jnp.fft.ifft(jnp.fft.ifftshift(spectrum, axis), axis=axis)
    return y if jnp.iscomplexobj(x) else y.real


def _phases(x: jax.Array, axis: int, footprint: np.ndarray, r: int) -> list[jax.Array]:
    """Returns the r phases of x under a footprint of whole blocks: what one input pixel paints, its own block central.

    Output r·m + p lies at `footprint[r·t + p]` of input m + reach − t.
    """
    reach = len(footprint) // r // 2
    ones = jnp.ones([n if i == axis else 1 for i, n in enumerate(x.shape)], x.dtype)
    image, inside = (boundary.pad_axis(a, axis, reach, reach) for a in (x, ones))
    phases = [tuple(map(float, footprint[p::r][::-1])) for p in range(r)]
    return [filtered(image, axis, w) / filtered(inside, axis, w) for w in phases]


def _sampled(kernel: Callable[[np.ndarray], np.ndarray], radius: int, r: int) -> np.ndarray:
    """Returns the footprint of a kernel that is a function of the distance in input pixels, zero beyond `radius`."""
    distance = np.abs((np.arange(-radius * r, (radius + 1) * r) + 0.5) / r - 0.5)
    return np.where(distance < radius, kernel(distance), 0.0)


def _keys(d: np.ndarray) -> np.ndarray:
    """The cubic kernel of Keys 1981 with a = −1/2, for d < 2."""
    return np.where(d < 1, (1.5 * d - 2.5) * d**2 + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2)


# What one input pixel paints, before the weights of every output are scaled to the sum 1: its own r output pixels and
# whole blocks of r on both sides.
_FOOTPRINTS: dict[str, Callable[[int], np.ndarray]] = {
    "linear": partial(_sampled, lambda d: 1 - d, 1),
    "cubic": partial(_sampled, _keys, 2),
    "lanczos3": partial(_sampled, lambda d: np.sinc(d) * np.sinc(d / 3), 3),
    "binomial": lambda r: np.pad(np.convolve(np.ones(r), np.convolve(np.ones(r), np.ones(r))), 1),
}
