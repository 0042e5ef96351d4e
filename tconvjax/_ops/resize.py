"""Resizing to any size, with whole factors as a fast case.

By default, coordinates are half-pixel centered, as in `jax.image.resize`: output pixel n lies at input
`(n + 1/2)/r − 1/2`. Pixels beyond the border have no weight, and the other weights are scaled to the sum 1; for
'fourier' the image is periodic. So every method maps a constant to the same constant.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from math import floor, prod
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from tconvjax import _boundary as boundary
from tconvjax import _geometry as geo
from tconvjax import _sharding as sharding
from tconvjax._arguments import (
    as_array,
    check_inexact,
    enlarged_shape,
    image_and_factors,
    widened,
)
from tconvjax._ops.sampling import KERNELS, NearestMode, Ratio, Rule, resample

Method = Literal[
    "nearest", "linear", "cubic", "lanczos3", "lanczos5", "area", "binomial", "fourier"
]
METHODS: tuple[str, ...] = get_args(Method)
MOST_PHASES = 4096  # each is a filter, compiled one by one
LONG = 1024  # pixels of an axis; beyond, 'fourier' takes a fast transform
# Options beyond `antialias`, and the methods that know them.
KNOWING: dict[str, tuple[str, ...]] = {
    "align_corners": ("nearest", "linear", "cubic", "lanczos3", "lanczos5"),
    "half_pixel_centers": ("nearest", "linear", "cubic", "lanczos3", "lanczos5", "fourier"),
    "exclude_outside": ("linear", "cubic", "lanczos3", "lanczos5"),
    "cubic_coeff_a": ("cubic",),
    "nearest_mode": ("nearest",),
}


def resize(
    x: ArrayLike,
    scale: Sequence[float] | None = None,
    *,
    output_shape: Sequence[int] | None = None,
    method: Method = "nearest",
    antialias: bool = True,
    align_corners: bool = False,
    half_pixel_centers: bool = True,
    exclude_outside: bool = True,
    cubic_coeff_a: float = -0.5,
    nearest_mode: NearestMode = "round_prefer_ceil",
) -> jax.Array:
    """Resizes images: `(*batch, *spatial, channels)` to `(*batch, *floor(scale · spatial), channels)`, or to a shape.

    Args:
      x: channels last; any number of leading batch axes.
      scale: r > 0, output pixels per input pixel, one factor per spatial axis; fixes the rank. Below 1 it shrinks.
      output_shape: new sizes, one per spatial axis; `scale` is then their ratio to the old ones. Given with `scale` s,
        they must be sizes that s steps over: `s·(n − 1) < size < s·(n + 1)`.
      method: 'nearest' repeats pixels, any dtype. The others filter a floating or complex input, half precision in
        float32: 'linear'; 'cubic', of Keys; 'lanczos3' and 'lanczos5', a sinc under a window of three or five pixels on
        either side; 'area', the mean of all pixels that the output pixel touches; 'binomial', for whole r, r ones
        convolved with themselves twice, `[1, 3, 3, 1]` for r = 2, of zero order 3 for every r, so that polynomials of
        degree 2 come out without ripple; 'fourier', the periodic band-limited image through the input samples, without
        frequencies beyond 1/2 cycle per input pixel: it has no image of the spectrum, but rings at edges and at the
        border.
      antialias: widens the filter to the output pixels where an axis shrinks; 'nearest' and 'area' have none to widen.
      align_corners: puts the centers of the corner pixels upon each other, output pixel o of m at input
        `o·(n − 1)/(m − 1)`; antialiasing widens by n/m all the same.
      half_pixel_centers: False puts output pixel o at input o/r; without effect if `align_corners`.
      exclude_outside: gives pixels beyond the border no weight; False repeats the border pixel.
      cubic_coeff_a: a of 'cubic': −1/2 in JAX, Keras and Pillow, −3/4 in PyTorch and by default in ONNX.
      nearest_mode: how 'nearest' rounds a position: 'round_prefer_ceil', 'round_prefer_floor', 'floor' or 'ceil'.

    Returns:
      The resized images, dtype kept.

    Raises:
      ValueError: for an unknown method, an option that the method does not know, sizes that do not fit together, or
        fewer axes than `scale` or `output_shape` has entries; for sizes that are symbolic, except by whole factors.
      TypeError: for a scale or shape that is not a sequence of numbers, neither of the two, or a filter on integers.

    Example:
      >>> resize(jnp.array([[0.0], [4.0]]), (2,), method="linear")[:, 0]
      Array([0., 1., 3., 4.], dtype=float32)
      >>> resize(jnp.array([[0.0], [4.0]]), output_shape=(3,), method="linear", align_corners=True)[:, 0]
      Array([0., 2., 4.], dtype=float32)

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003; Keys 1981, doi:10.1109/TASSP.1981.1163711.

    PyTorch:
      `torch.nn.functional.interpolate` has `antialias=False` by default. Its 'nearest' is `half_pixel_centers=False,
      nearest_mode='floor'`; 'nearest-exact', 'bilinear' and 'area' are the methods here; its 'bicubic' is 'cubic' with
      `cubic_coeff_a=-0.75, exclude_outside=False` and, with `antialias=True`, 'cubic' with the defaults. `scale_factor`
      is `scale`; with `recompute_scale_factor=True` give `output_shape`.
    """
    who = "resize"
    geo.choice(who, "method", method, METHODS)
    geo.choice(who, "nearest_mode", nearest_mode, get_args(NearestMode))
    rule = Rule(
        method,
        bool(antialias),
        bool(align_corners),
        bool(half_pixel_centers),
        bool(exclude_outside),
        _finite(who, cubic_coeff_a),
        nearest_mode,
    )
    _refuse_unknown(who, rule)
    image, factors = image_and_ratios(who, x, scale, output_shape)
    if method != "nearest":
        check_inexact(who, image)
    first = image.ndim - 1 - len(factors)
    factors, large = plan(who, image.shape[first:-1], factors, rule)
    shape = (*image.shape[:first], *large, image.shape[-1])
    geo.fits(who, shape)
    return sharding.placed(lambda x: enlarge(x, factors, rule), image, shape=shape)


def image_and_ratios(
    who: str, x: ArrayLike, scale: Sequence[float] | None, output_shape: Sequence[int] | None
) -> tuple[jax.Array, tuple[float | Ratio, ...]]:
    """Returns an image and, for each of its spatial axes, a factor or the size that it gets, or refuses them."""
    image = as_array(who, "x", x)
    if scale is None and output_shape is None:
        raise TypeError(
            f"{who}: scale or output_shape must be given; got neither. Write scale=(2, 2)."
        )
    factors = None if scale is None else _numbers(who, scale)
    new = None if output_shape is None else geo.ints(who, "output_shape", output_shape, minimum=1)
    name, value = ("output_shape", new) if factors is None else ("scale", factors)
    rank = len(value or ())
    if not 1 <= rank < image.ndim:
        raise ValueError(
            f"{who}: x must have shape (*batch, *spatial, channels) with one spatial axis per entry of {name}, "
            f"at least one; got shape {image.shape} for {name}={value}."
        )
    if new is None:
        return image, factors or ()
    return image, ratios(who, image.shape[-1 - rank : -1], factors, new)


def ratios(
    who: str, spatial: Sequence[int], factors: Sequence[float] | None, new: tuple[int, ...]
) -> tuple[Ratio, ...]:
    """Returns the sizes that an image gets, or refuses those that factors do not step over."""
    if not all(isinstance(n, int) for n in spatial):
        raise ValueError(
            f"{who}: output_shape needs known sizes; got {tuple(spatial)}. Export one size at a time."
        )
    if factors is not None:
        steps = zip(factors, spatial, new, strict=False)
        if len(new) != len(factors) or not all(s * (n - 1) < m < s * (n + 1) for s, n, m in steps):
            raise ValueError(
                f"{who}: output_shape must hold, for factor s and size n of each axis, more than s·(n − 1) and fewer "
                f"than s·(n + 1) pixels; got output_shape={new}, scale={tuple(factors)}, spatial shape "
                f"{tuple(spatial)}. For other sizes use resize without scale."
            )
    return tuple(Ratio(m) for m in new)


def plan(
    who: str, spatial: Sequence[int], factors: Sequence[float | Ratio], rule: Rule
) -> tuple[tuple[int | Ratio, ...], tuple[int, ...]]:
    """Returns what happens to each axis, whole factors or ratios, and the new sizes, or refuses them."""
    steps = tuple(
        _step(n, f, rule) if isinstance(n, int) else _symbolic(who, spatial, f, rule)
        for n, f in zip(spatial, factors, strict=True)
    )
    new = tuple(
        s.size if isinstance(s, Ratio) else s * n for s, n in zip(steps, spatial, strict=True)
    )
    if any(
        isinstance(m, int) and isinstance(n, int) and m < 1 <= n
        for m, n in zip(new, spatial, strict=True)
    ):
        raise ValueError(
            f"{who}: scale must leave at least one pixel along every axis; got spatial shape {tuple(spatial)}, "
            f"scale={tuple(factors)}. Use larger factors."
        )
    if any(
        isinstance(n, int) and n < 1 and isinstance(s, Ratio)
        for n, s in zip(spatial, steps, strict=True)
    ):
        raise ValueError(
            f"{who}: x must have pixels to resize; got spatial shape {tuple(spatial)}."
        )
    if rule.method == "binomial" and any(isinstance(s, Ratio) for s in steps):
        raise ValueError(
            f"{who}: method='binomial' needs whole factors; got spatial shape {tuple(spatial)} to {new}. "
            "Use 'cubic', which is as smooth."
        )
    whole = [s for s in steps if not isinstance(s, Ratio)]
    if rule.method not in {"nearest", "area"} and max(whole, default=1) > MOST_PHASES:
        raise ValueError(
            f"{who}: scale must be at most {MOST_PHASES} where every phase has a filter of its own; got "
            f"scale={tuple(whole)}, method={rule.method!r}. Enlarge in steps or by 'nearest'."
        )
    return steps, new


def _step(n: int, factor: float | Ratio, rule: Rule) -> int | Ratio:
    if isinstance(factor, Ratio):
        whole = n > 0 and factor.size % n == 0
        r = factor.size // n if whole else 0
        ratio = factor
    else:
        r = int(factor) if factor >= 1 and factor == int(factor) else 0
        ratio = Ratio(floor(n * factor), None if r else float(factor))
    return r if r == 1 or (r and rule.usual) else ratio


def _symbolic(who: str, spatial: Sequence[int], factor: float | Ratio, rule: Rule) -> int:
    whole = not isinstance(factor, Ratio) and factor >= 1 and factor == int(factor)
    if not whole or not rule.usual or rule.method == "fourier":
        raise ValueError(
            f"{who}: method={rule.method!r} needs, with these options, a spatial shape of known sizes; got "
            f"{tuple(spatial)}. Export one size at a time."
        )
    assert not isinstance(factor, Ratio)
    return int(factor)


def _numbers(who: str, scale: Sequence[float]) -> tuple[float, ...]:
    """Returns factors as numbers, whole ones as ints, or refuses them."""
    value = geo.as_list(scale)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(
            f"{who}: scale must be a sequence with one number per spatial axis; got scale={value!r}. "
            "Write (2, 2) for two along height and width."
        )
    numbers = [geo.as_list(v) for v in value]
    for number in numbers:
        geo.positive(who, "scale", number)
    factors = tuple(int(v) if v == int(v) else float(v) for v in numbers)
    for factor in factors:
        geo.integer(who, "scale", int(factor))
    return factors


def _finite(who: str, a: float) -> float:
    if isinstance(a, bool) or not isinstance(a, int | float | np.number) or not np.isfinite(a):
        raise TypeError(
            f"{who}: cubic_coeff_a must be a finite number; got {a!r}. Write -0.5 or -0.75."
        )
    return float(a)


def _refuse_unknown(who: str, rule: Rule) -> None:
    """Raises for an option that the method would ignore."""
    for name, methods in KNOWING.items():
        value = getattr(rule, name)
        if rule.method not in methods and value != getattr(Rule(rule.method), name):
            raise ValueError(
                f"{who}: {name} belongs to {', '.join(map(repr, methods))}; got {name}={value!r} with "
                f"method={rule.method!r}. Leave it out."
            )


def bilinear_additive(
    x: ArrayLike, scale: Sequence[int], *, output_shape: Sequence[int] | None = None
) -> jax.Array:
    """Enlarges linearly and adds neighboring channels: as many numbers as before, and nothing to learn.

    `(*batch, *spatial, C · prod(scale))` to `(*batch, *(scale · spatial), C)`: output channel c is the sum of the input
    channels `c · prod(scale)` and the `prod(scale) − 1` after it, each enlarged by `resize(.., method='linear')`.

    Args:
      x: floating or complex, channels last; any number of leading batch axes.
      scale: r >= 1, output pixels per input pixel, one factor per spatial axis; fixes the rank.
      output_shape: spatial shape to produce, as in `resize` with a `scale`.

    Returns:
      The enlarged images, dtype kept.

    Raises:
      ValueError: if the product of `scale` does not divide the channels, or for another `output_shape`.
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
    enlarged_shape(who, image.shape, factors, output_shape)
    split = (*image.shape[:-1], channels // count, count)
    add = lambda x: widened(x).reshape(split).sum(-1).astype(x.dtype)
    # The sum commutes with the filter, so it comes first: there are fewer channels to enlarge.
    added = sharding.placed(add, image, shape=split[:-1])
    return resize(added, factors, output_shape=output_shape, method="linear")


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


@partial(jax.jit, static_argnames=("factors", "rule"))
def enlarge(x: jax.Array, factors: tuple[int | Ratio, ...], rule: Rule) -> jax.Array:
    """`resize` after its checks."""
    method = rule.method
    y = x if method == "nearest" else widened(x)
    for axis, r in enumerate(factors, start=x.ndim - 1 - len(factors)):
        if r == 1:
            continue
        if isinstance(r, Ratio):
            y = lax.optimization_barrier(resample(y, axis, r, rule))  # for the reason below
            continue
        before, n, after = y.shape[:axis], y.shape[axis], y.shape[axis + 1 :]
        if method in {"nearest", "area"}:
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


def _sampled(method: str, r: int) -> np.ndarray:
    """Returns the footprint of a kernel, which is zero beyond its radius."""
    radius, kernel = KERNELS[method]
    distance = np.abs((np.arange(-radius * r, (radius + 1) * r) + 0.5) / r - 0.5)
    return np.where(distance < radius, kernel(distance, -0.5), 0.0)


# Weights of one input pixel in its own r output pixels and in whole blocks of r on both sides, before the weights of
# every output pixel are scaled to the sum 1.
FOOTPRINTS: dict[str, Callable[[int], np.ndarray]] = {
    **{method: partial(_sampled, method) for method in KERNELS},
    "binomial": lambda r: np.pad(np.convolve(np.ones(r), np.convolve(np.ones(r), np.ones(r))), 1),
}
