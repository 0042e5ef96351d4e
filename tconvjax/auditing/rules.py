"""What makes an image larger, or smaller, how evenly, and what to use instead."""

from collections.abc import Callable, Iterator, Sequence
from math import inf, isfinite, prod
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from tconvjax import analysis
from tconvjax.auditing.finding import Cost, Finding, Severity
from tconvjax.auditing.program import Place, Unknown, Value
from tconvjax.geometry import Geometry
from tconvjax.ops.lowerings import flip_and_swap
from tconvjax.ops.reading import read

FLAT = 1e-3  # harmonic share up to which a constant counts as constant
DEEP = 24  # elementwise operations between a convolution and its pixel shuffle


def found(place: Place) -> Iterator[Finding]:
    """Yields what there is to say of one equation."""
    name = place.equation.primitive.name
    layer = layer_of(place.equation)
    if layer is not None:
        if max(layer.geometry.strides) > 1 and layer.face == "paint":
            yield _transposed_convolution(place, layer)
        elif max(layer.geometry.strides) > 1 and layer.face == "gather":
            yield _strided_convolution(place, layer)
    elif name in {"reduce_window_sum", "reduce_window"}:
        yield from _strided_pool(place)
    elif name == "jit" and place.equation.params.get("name") in {"_resize", "_resize_nearest"}:
        yield from _resize(place, place.inputs[0])
    elif name == "reshape":
        (source, *_) = place.inputs
        if source.made_by == "transpose" and source.inputs[0].made_by == "reshape":
            yield from _pixel_shuffle(place, source, source.inputs[0])
        elif source.made_by == "broadcast_in_dim":  # pixels are repeated
            yield from _resize(place, source.inputs[0])


class Layer(NamedTuple):
    """A convolution, read as a face.

    Attributes:
      face: 'gather', 'paint' or 'correlate'.
      geometry: of the face.
      image: which input is the image.
      kernel: which input is the kernel.
      canonical: brings the kernel into the layout `(*kernel_size, in // groups, out)` of the forward convolution.
      space: spatial axes of the result.
      features: feature axis of the result.
    """

    face: str
    geometry: Geometry
    image: int
    kernel: int
    canonical: Callable[[np.ndarray], np.ndarray]
    space: tuple[int, ...]
    features: int


def layer_of(equation: Any) -> Layer | None:
    """Reads an equation as a convolution, if it is one."""
    name = equation.primitive.name
    if name.startswith("tconv_"):
        geometry = equation.params["geometry"]
        space = tuple(range(2, 2 + geometry.rank))
        face = name.removeprefix("tconv_")
        return Layer(face, geometry, 0, 1, lambda w: w[0], space, 2 + geometry.rank)
    if name != "conv_general_dilated":
        return None
    lhs, rhs, out = (v.aval.shape for v in (*equation.invars, *equation.outvars))
    # As layers write it, whose images may be smaller than their kernels; kernel gradients dilate rhs, if anything.
    plain = max(equation.params["rhs_dilation"], default=1) == 1
    reading = read(lhs, rhs, out, equation.params, kernel_is_rhs=plain)
    if reading is None:
        return None
    arrays, axes, flipped, geometry = reading
    (role,) = (role for role, name in arrays.items() if name == "out")
    kernel = arrays["w"]

    def canonical(w: np.ndarray) -> np.ndarray:
        w = w.transpose(axes[kernel])
        turned = flip_and_swap(jnp.asarray(w), geometry.rank, geometry.feature_group_count)
        return np.asarray(turned) if flipped == kernel else w

    _, features, *space = equation.params["dimension_numbers"].out_spec
    face = {"y": "gather", "x": "paint", "w": "correlate"}[role]
    at = 0 if kernel == "lhs" else 1
    return Layer(face, geometry, 1 - at, at, canonical, tuple(space), features)


def _transposed_convolution(place: Place, layer: Layer) -> Finding:
    geometry = layer.geometry
    k, s, extent = geometry.kernel_size, geometry.strides, geometry.extent
    overlap = _overlap(k, s, geometry.kernel_dilation)
    kernel, weights = _weights(place.inputs[layer.kernel], layer)
    share, variance = None, overlap
    if kernel is not None:
        share, variance = _of_painting(kernel, geometry)
    batch, small, big = _sizes(place, layer)
    pairs = small * big // geometry.feature_group_count

    def cost(size: Sequence[int], painted: Sequence[int]) -> Cost | None:
        if batch is None:
            return None
        seen = tuple(-(-e // t) for e, t in zip(painted, s, strict=True))
        flops = 2 * batch * prod(geometry.small) * prod(painted) * pairs
        return Cost(flops, prod(size) * pairs, seen)

    conv = tuple(max(1, e - t + 1) for e, t in zip(extent, s, strict=True))
    fused = tuple(c + t - 1 for c, t in zip(conv, s, strict=True))
    remedy = (
        f"ResizeConv(kernel_size={conv}, scale={s}), flat before and after training, or ConvTranspose("
        f"kernel_size={_whole(extent, s)}, strides={s}) started with initializers.balanced_transpose"
    )
    taps = "taps are even"
    if overlap > 1:
        taps = f"pixels are painted by unequally many taps (most/fewest {overlap:g})"
    return _finding(
        place,
        kind="transposed_convolution",
        severity=_severity(share, weights, uneven=overlap > 1),
        what=f"transposed convolution, kernel {_by(k)}, stride {_by(s)}, {small} -> {big} channels",
        why=taps + _energy(share, weights),
        remedy=remedy,
        kernel_size=k,
        strides=s,
        overlap_ratio=overlap,
        variance_ratio=variance,
        harmonic_share=share,
        weights=weights,
        center_shift=_shift(geometry),
        period=_period(place, layer.space, s),
        cost=cost(k, k),
        remedy_cost=cost(conv, fused),
        image=layer.image,
    )


def _strided_convolution(place: Place, layer: Layer) -> Finding:
    geometry = layer.geometry
    k, s = geometry.kernel_size, geometry.strides
    even = _whole(geometry.extent, s)
    batch, small, big = _sizes(place, layer)
    pairs = small * big // geometry.feature_group_count

    def cost(size: tuple[int, ...]) -> Cost | None:
        if batch is None:
            return None
        flops = 2 * batch * prod(geometry.small) * prod(size) * pairs
        return Cost(flops, prod(size) * pairs, size)

    return _uneven_gradient(
        place,
        kind="strided_convolution",
        what=f"strided convolution, kernel {_by(k)}, stride {_by(s)}, {big} -> {small} channels",
        remedy=f"kernel_size={even}, or stride 1 and then blur_pool(strides={s})",
        overlap=_overlap(k, s, geometry.kernel_dilation),
        kernel_size=k,
        strides=s,
        center_shift=_shift(geometry),
        cost=cost(k),
        remedy_cost=cost(even),
        image=layer.image,
    )


def _strided_pool(place: Place) -> Iterator[Finding]:
    params = place.equation.params
    if "jaxpr" in params and [e.primitive.name for e in params["jaxpr"].eqns] != ["add"]:
        return
    axes = [i for i, stride in enumerate(params["window_strides"]) if stride > 1]
    if not axes:
        return
    k, s, d = (
        tuple(params[name][i] for i in axes)
        for name in ("window_dimensions", "window_strides", "window_dilation")
    )
    lows = (params["padding"][i][0] for i in axes)
    yield _uneven_gradient(
        place,
        kind="strided_pool",
        what=f"sum over windows of {_by(k)}, stride {_by(s)}",
        remedy=f"windows of {_by(_whole(k, s))}, or blur_pool(strides={s})",
        overlap=_overlap(k, s, d),
        kernel_size=k,
        strides=s,
        center_shift=tuple((e - t) / 2 - low for e, t, low in zip(k, s, lows, strict=True)),
        image=0,
    )


def _uneven_gradient(place: Place, *, overlap: float, **rest: Any) -> Finding:
    """Something that makes images smaller, and whose gradient paints."""
    return _finding(
        place,
        severity="none" if overlap == 1 else "medium" if overlap == inf else "low",
        why=f"its gradient reaches pixels through unequally many taps (most/fewest {overlap:g})",
        overlap_ratio=overlap,
        variance_ratio=overlap,
        harmonic_share=None,
        weights="none",
        period=rest["strides"],
        **rest,
    )


def _pixel_shuffle(place: Place, turned: Value, split: Value) -> Iterator[Finding]:
    """A reshape that splits channels, a transpose, a reshape that merges them into space."""
    source = split.inputs[0]
    before, merged = _groups(source.shape, split.shape), _groups(place.shape, turned.shape)
    if before is None or merged is None:
        return
    made = _convolution_before(source)
    channel = made[2] if made else len(source.shape) - 1
    order = turned.equation.params["permutation"]
    axes, phases = [], []
    for axis, parts in enumerate(merged):
        parts = [order[i] for i in parts if turned.shape[i] != 1]
        if any(p in before[channel] for p in parts) and len(parts) > 1:
            if len(parts) != 2 or parts[1] not in before[channel] or parts[0] in before[channel]:
                return  # space into channels, or something else
            if axis == 0 and len(source.shape) > 2:
                return  # into the batch, as the heads of an attention
            axes.append(axis)
            phases.append(parts[1])
    if not axes:
        return
    r = tuple(split.shape[p] for p in phases)
    share, weights, k = None, "none", None
    if made:
        value, layer, _ = made
        k = layer.geometry.kernel_size
        kernel, weights = _weights(value.inputs[layer.kernel], layer)
        if kernel is not None:
            kernel = np.swapaxes(kernel, -1, -2) if layer.face == "paint" else kernel
            sizes = [split.shape[i] for i in before[channel]]
            share = _of_phases(kernel, sizes, [before[channel].index(p) for p in phases])
    yield _finding(
        place,
        kind="pixel_shuffle",
        severity=_severity(share, weights, uneven=False),
        what=f"pixel shuffle by {_by(r)}",
        why="every phase has a kernel of its own" + _energy(share, weights),
        remedy="initializers.icnr for the convolution before it, or a blur after it",
        kernel_size=k,
        strides=r,
        overlap_ratio=1.0,
        variance_ratio=1.0,
        harmonic_share=share,
        weights=weights,
        center_shift=(0.0,) * len(r),
        period=_period(place, axes, r),
        image_shape=source.shape,
    )


def _resize(place: Place, source: Value) -> Iterator[Finding]:
    """`jax.image.resize`, and pixels that are repeated: clean."""
    if len(source.shape) != len(place.shape):
        return
    sizes = list(zip(source.shape, place.shape, strict=True))
    known = [isinstance(a, int) and isinstance(b, int) for a, b in sizes]
    axes = [i for i, (a, b) in enumerate(sizes) if known[i] and b > a > 1]
    if not axes:
        return
    scale = tuple(-(-sizes[i][1] // sizes[i][0]) for i in axes)
    yield _finding(
        place,
        kind="resize",
        severity="none",
        what=f"resize by {_by(scale)}",
        why="",
        remedy="",
        kernel_size=None,
        strides=scale,
        overlap_ratio=1.0,
        variance_ratio=1.0,
        harmonic_share=0.0,
        weights="none",
        center_shift=(0.0,) * len(scale),
        period=_period(place, axes, scale),
        image_shape=source.shape,
    )


def _finding(
    place: Place,
    *,
    what: str,
    why: str,
    severity: Severity,
    remedy: str,
    image: int = 0,
    image_shape: tuple[int, ...] | None = None,
    **rest: Any,
) -> Finding:
    """Fills in what is the same for all; the faces of this library have a stack axis that no user knows."""
    stack = place.equation.primitive.name.startswith("tconv_")
    source = place.inputs[image].shape if image_shape is None else image_shape
    clean = f"{what}: clean, a constant stays constant."
    file, line = place.where
    return Finding(
        severity=severity,
        primitive=place.equation.primitive.name,
        file=file,
        line=line,
        message=clean if severity == "none" else f"{what}: {why}. Use {remedy}.",
        remedy=remedy,
        input_shape=source[stack:],
        output_shape=place.shape[stack:],
        **rest,
    )


# Structure.


def _convolution_before(value: Value) -> tuple[Value, Layer, int] | None:
    """Returns the convolution that made an image, through elementwise operations, and the image's feature axis."""
    dropped = 0
    for _ in range(DEEP):
        if value.equation is None:
            return None
        layer = layer_of(value.equation)
        if layer is not None:
            return value, layer, layer.features - dropped
        alike = [v for v in value.inputs if v.shape == value.shape]
        stacked = [v for v in value.inputs if v.shape == (1, *value.shape)]
        if not alike and not stacked:
            return None
        dropped += not alike
        value = (alike or stacked)[0]
    return None


def _groups(coarse: Sequence[int], fine: Sequence[int]) -> list[list[int]] | None:
    """Returns which axes of `fine` make each axis of `coarse`, or None if the reshape is not a split of axes."""
    groups: list[list[int]] = []
    i = 0
    for n, size in enumerate(coarse):
        parts: list[int] = []
        last = n == len(coarse) - 1
        # Equality alone, which symbolic sizes have too.
        while i < len(fine) and (not parts or prod(fine[j] for j in parts) != size or last):
            parts.append(i)
            i += 1
        if prod(fine[j] for j in parts) != size:
            return None
        groups.append(parts)
    return groups


def _sizes(place: Place, layer: Layer) -> tuple[int | None, int, int]:
    """Returns the number of images, None if a size is symbolic, and the channels of a small and of a big one."""
    geometry, kernel = layer.geometry, place.inputs[layer.kernel].shape
    stack = kernel[0] if len(kernel) > geometry.rank + 2 else 1
    taps = prod(geometry.kernel_size)
    written = place.shape[layer.features]
    read = prod(kernel) * geometry.feature_group_count // max(1, stack * taps * written)
    images = None
    if all(isinstance(n, int) for n in place.shape):
        outside = geometry.big if layer.face == "paint" else geometry.small
        images = prod(place.shape) // max(1, written * prod(outside))
    return (images, read, written) if layer.face == "paint" else (images, written, read)


def _period(place: Place, axes: Sequence[int], s: Sequence[int]) -> tuple[int, ...]:
    """Returns the period of a pattern of period s in the largest image that the program returns."""
    stack = place.equation.primitive.name.startswith("tconv_")
    shape, axes = place.shape[stack:], [a - stack for a in axes]
    images = [
        image
        for image in place.images
        if len(image) == len(shape)
        and (0 in axes or image[0] == shape[0])
        and all(isinstance(n, int) for a in axes for n in (image[a], shape[a]))
    ]
    if not images:
        return tuple(s)
    image = max(images, key=lambda image: prod(image[a] for a in axes))
    return tuple(
        max(1, round(t * image[a] / max(1, shape[a]))) for t, a in zip(s, axes, strict=True)
    )


def _shift(geometry: Geometry) -> tuple[float, ...]:
    """Returns how far the centers of small and big pixels lie from half-pixel alignment, in big pixels."""
    sizes = zip(geometry.extent, geometry.strides, geometry.offset, strict=True)
    return tuple((e - s) / 2 - p for e, s, p in sizes)


# Numbers.


def _weights(
    value: Value, layer: Layer
) -> tuple[np.ndarray | None, Literal["given", "drawn", "none"]]:
    """Returns the kernel of the forward convolution, if it can be known, and how it was."""
    try:
        kernel = layer.canonical(np.asarray(value.compute()))
    except Unknown:
        return None, "none"
    return kernel, "drawn" if value.drawn else "given"


def _overlap(k: Sequence[int], s: Sequence[int], d: Sequence[int]) -> float:
    """Returns most over fewest taps of a phase."""
    ratio = 1.0
    for n, t, e in zip(k, s, d, strict=True):
        counts = np.bincount(e * np.arange(n) % t, minlength=t).tolist()
        ratio *= max(counts) / min(counts) if all(counts) else inf
    return ratio


def _of_painting(kernel: np.ndarray, geometry: Geometry) -> tuple[float | None, float]:
    """Returns harmonic share and variance ratio of the phases of a transposed convolution."""
    wide = np.zeros((*geometry.extent, *kernel.shape[-2:]), np.result_type(kernel, np.float32))
    wide[tuple(slice(None, None, d) for d in geometry.kernel_dilation)] = kernel
    s = geometry.strides
    share = float(analysis.harmonic_share(wide, s, transpose_kernel=True))
    powers = analysis.phase_gains(abs(wide) ** 2, s, transpose_kernel=True).sum((-1, -2))
    least, most = float(powers.min()), float(powers.max())
    return share if isfinite(share) else None, most / least if least > 0 else inf


def _of_phases(kernel: np.ndarray, split: Sequence[int], phases: Sequence[int]) -> float | None:
    """Returns the harmonic share of a convolution before a pixel shuffle, whose features are split so."""
    gains = kernel.astype(np.result_type(kernel, np.float32)).sum(tuple(range(kernel.ndim - 2)))
    gains = gains.reshape(-1, *split)
    deviation = gains - gains.mean(tuple(1 + p for p in phases), keepdims=True)
    energy = (abs(gains) ** 2).sum()
    share = float((abs(deviation) ** 2).sum() / energy) if energy else 0.0
    return share if isfinite(share) else None


def _severity(share: float | None, weights: str, *, uneven: bool) -> Severity:
    if share is not None and share <= FLAT:
        return "none"
    if share is None or weights == "drawn":
        return "high" if uneven else "medium"
    return "high" if share > 0.1 else "medium" if share > 0.01 else "low"


def _energy(share: float | None, weights: str) -> str:
    if share is None:
        return ""
    of = "these" if weights == "given" else "random"
    return f", and {of} weights put {share:.1%} of a constant's energy on the pattern"


def _whole(sizes: Sequence[int], s: Sequence[int]) -> tuple[int, ...]:
    """Returns the next multiples of the strides."""
    return tuple(-(-n // t) * t for n, t in zip(sizes, s, strict=True))


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
