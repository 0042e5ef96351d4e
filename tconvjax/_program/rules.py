"""Rules of the audit: how evenly an equation enlarges or reduces an image, and what to use instead."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from math import inf, isfinite, prod
from typing import Any, Literal

import numpy as np

from tconvjax._analysis import weights as analysis
from tconvjax._geometry import Geometry
from tconvjax._program.convolutions import Convolution, convolution_of
from tconvjax._program.finding import Cost, Finding, Severity
from tconvjax._program.program import Place, Unknown, Value
from tconvjax._program.shuffles import pixel_shuffle

FLAT = 1e-3  # harmonic share up to which a constant counts as constant
MOST_TURNS = 256  # of a loop over layers whose weights are judged


def findings_of(place: Place) -> Iterator[Finding]:
    """Yields the findings of one equation."""
    name = place.equation.primitive.name
    convolution = convolution_of(place.equation, place.inputs)
    if convolution is not None:
        if max(convolution.geometry.strides) == 1:
            return
        if convolution.face == "paint":
            rule = _painted_gradient if place.backward else _transposed_convolution
            yield rule(place, convolution)
        elif convolution.face == "gather" and not place.backward:
            yield _strided_convolution(place, convolution)
    elif place.backward:
        return  # the forward equation already has its finding
    elif name in {"reduce_window_sum", "reduce_window"}:
        yield from _strided_pool(place)
    elif name == "jit" and place.equation.params.get("name") in {"_resize", "_resize_nearest"}:
        yield from _resize(place, place.inputs[0])
    elif name == "reshape":
        yield from _pixel_shuffle(place)
        (source, *_) = place.inputs
        if source.made_by == "broadcast_in_dim":  # repeated pixels
            yield from _resize(place, source.inputs[0])


def _transposed_convolution(place: Place, convolution: Convolution) -> Finding:
    geometry = convolution.geometry
    k, s, extent = geometry.kernel_size, geometry.strides, geometry.extent
    overlap = _overlap(k, s, geometry.kernel_dilation)
    kernels, weights = _kernels(convolution)
    numbers = [_share_and_variance_ratio(kernel, geometry) for kernel in kernels]
    share = _most(share for share, _ in numbers)
    variance = max((variance for _, variance in numbers), default=overlap)
    batch, small, big = _sizes(place, convolution)
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
        f"ResizeConv(kernel_size={conv}, scale={s}), in which a constant stays constant before and after training, or "
        f"ConvTranspose(kernel_size={_whole(extent, s)}, strides={s}) initialized by initializers.balanced_transpose"
    )
    taps = "output pixels receive equal numbers of taps"
    if overlap > 1:
        taps = f"output pixels receive unequal numbers of taps (max/min {overlap:g})"
    return _finding(
        place,
        kind="transposed_convolution",
        severity=_severity(share, weights, uneven=overlap > 1),
        what=f"transposed convolution, kernel {_by(k)}, stride {_by(s)}, {small} -> {big} channels",
        why=taps + _energy_clause(share, weights),
        remedy=remedy,
        kernel_size=k,
        strides=s,
        overlap_ratio=overlap,
        variance_ratio=variance,
        harmonic_share=share,
        weights=weights,
        center_shift=_shift(geometry),
        period=_period(place, convolution.space, s),
        cost=cost(k, k),
        remedy_cost=cost(conv, fused),
        image=convolution.image,
    )


def _painted_gradient(place: Place, convolution: Convolution) -> Finding:
    """Judges the input gradient of a strided convolution, which has the weights of that convolution."""
    geometry = convolution.geometry
    k, s = geometry.kernel_size, geometry.strides
    return _uneven_gradient(
        place,
        kind="transposed_convolution",
        what=f"input gradient of a strided convolution, kernel {_by(k)}, stride {_by(s)}",
        remedy=f"kernel_size={_whole(geometry.extent, s)} in that convolution, or stride 1 and then "
        f"blur_pool(strides={s})",
        overlap=_overlap(k, s, geometry.kernel_dilation),
        kernel_size=k,
        strides=s,
        center_shift=_shift(geometry),
        image=convolution.image,
    )


def _strided_convolution(place: Place, convolution: Convolution) -> Finding:
    geometry = convolution.geometry
    k, s = geometry.kernel_size, geometry.strides
    even = _whole(geometry.extent, s)
    batch, small, big = _sizes(place, convolution)
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
        image=convolution.image,
    )


def _strided_pool(place: Place) -> Iterator[Finding]:
    params = place.equation.params
    if "jaxpr" in params and [e.primitive.name for e in params["jaxpr"].eqns] != ["add"]:
        return
    axes = [i for i, stride in enumerate(params["window_strides"]) if stride > 1]
    source = place.inputs[0]
    constant = source.made_by == "broadcast_in_dim" and not source.inputs[0].shape
    if not axes or constant:  # the pool of a constant counts the pixels of each window
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
        image=source,
    )


def _uneven_gradient(place: Place, *, overlap: float, **rest: Any) -> Finding:
    """Judges an operation that reduces images, by the taps through which its gradient paints."""
    return _finding(
        place,
        severity="none" if overlap == 1 else "medium" if overlap == inf else "low",
        why=f"input pixels receive their gradient through unequal numbers of taps (max/min {overlap:g})",
        overlap_ratio=overlap,
        variance_ratio=overlap,
        harmonic_share=None,
        weights="none",
        period=rest["strides"],
        **rest,
    )


def _pixel_shuffle(place: Place) -> Iterator[Finding]:
    shuffle = pixel_shuffle(place)
    if shuffle is None:
        return
    convolutions, r = shuffle.convolutions, shuffle.factors
    share_of = functools.partial(
        _share_before_shuffle, split=shuffle.split, phase_digits=shuffle.phase_digits
    )
    shares, weights = [], "none"
    for convolution in convolutions:
        kernels, weights = _kernels(convolution)
        turned = convolution.face == "paint"
        shares += [share_of(np.swapaxes(w, -1, -2) if turned else w) for w in kernels]
    share = _most(shares)
    yield _finding(
        place,
        kind="pixel_shuffle",
        severity=_severity(share, weights, uneven=False),
        what=f"pixel shuffle by {_by(r)}",
        why="every phase has a kernel of its own" + _energy_clause(share, weights),
        remedy="initializers.icnr for the convolution before it, or a blur after it",
        kernel_size=convolutions[0].geometry.kernel_size if convolutions else None,
        strides=r,
        overlap_ratio=1.0,
        variance_ratio=1.0,
        harmonic_share=share,
        weights=weights,
        center_shift=(0.0,) * len(r),
        period=_period(place, shuffle.axes, r),
        image=shuffle.source,
    )


def _resize(place: Place, source: Value) -> Iterator[Finding]:
    """Lists `jax.image.resize` and repeated pixels, which are clean."""
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
        image=source,
    )


def _finding(
    place: Place,
    *,
    what: str,
    why: str,
    severity: Severity,
    remedy: str,
    image: Value,
    **rest: Any,
) -> Finding:
    """Fills in the fields that all rules share, without the stack axis of this library's faces."""
    stack = place.equation.primitive.name.startswith("tconv_")
    clean = f"{what}: clean, a constant stays constant."
    file, line = place.where
    return Finding(
        severity=severity,
        primitive=place.equation.primitive.name,
        file=file,
        line=line,
        message=clean if severity == "none" else f"{what}: {why}. Use {remedy}.",
        remedy=remedy,
        input_shape=image.shape[stack:],
        output_shape=place.shape[stack:],
        **rest,
    )


# Structure.


def _sizes(place: Place, convolution: Convolution) -> tuple[int | None, int, int]:
    """Returns the number of images, None if a size is symbolic, and the channels of the small and the big image."""
    geometry, kernel = convolution.geometry, convolution.kernel.shape
    stack = kernel[0] if len(kernel) > geometry.rank + 2 else 1
    taps = prod(geometry.kernel_size)
    written = place.shape[convolution.features]
    read = prod(kernel) * geometry.feature_group_count // max(1, stack * taps * written)
    images = None
    if all(isinstance(n, int) for n in place.shape):
        outside = geometry.big if convolution.face == "paint" else geometry.small
        images = prod(place.shape) // max(1, written * prod(outside))
    return (images, read, written) if convolution.face == "paint" else (images, written, read)


def _period(place: Place, axes: Sequence[int], s: Sequence[int]) -> tuple[int, ...]:
    """Returns the period of a pattern of period s in the largest image that the program returns."""
    stack = place.equation.primitive.name.startswith("tconv_")
    shape, axes = place.shape[stack:], [a - stack for a in axes]
    single = [(1, *image) for image in place.images if shape[0] == 1]  # a layer's own batch
    images = [
        image
        for image in (*place.images, *single)
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
    """Returns the displacement of small against big pixels from half-pixel alignment, in big pixels."""
    sizes = zip(geometry.extent, geometry.strides, geometry.offset, strict=True)
    return tuple((e - s) / 2 - p for e, s, p in sizes)


# Numbers.


def _kernels(
    convolution: Convolution,
) -> tuple[list[np.ndarray], Literal["given", "drawn", "none"]]:
    """Returns the kernels of the forward convolution, one for each turn of a loop, and the origin of the weights."""
    value, canonical = convolution.kernel, convolution.canonical
    try:
        turns = range(min(value.turns, MOST_TURNS))
        kernels = [w for turn in turns for w in canonical(np.asarray(value.compute(turn)))]
    except Unknown:
        return [], "none"
    return kernels, "drawn" if value.drawn else "given"


def _most(shares: Iterable[float | None]) -> float | None:
    """Returns the largest share, None if none is known."""
    return max((share for share in shares if share is not None), default=None)


def _overlap(k: Sequence[int], s: Sequence[int], d: Sequence[int]) -> float:
    """Returns the largest over the smallest number of taps of a phase."""
    ratio = 1.0
    for n, t, e in zip(k, s, d, strict=True):
        counts = np.bincount(e * np.arange(n) % t, minlength=t).tolist()
        ratio *= max(counts) / min(counts) if all(counts) else inf
    return ratio


def _share_and_variance_ratio(kernel: np.ndarray, geometry: Geometry) -> tuple[float | None, float]:
    """Returns harmonic share and variance ratio of the phases of a transposed convolution."""
    wide = np.zeros((*geometry.extent, *kernel.shape[-2:]), np.result_type(kernel, np.float32))
    wide[tuple(slice(None, None, d) for d in geometry.kernel_dilation)] = kernel
    s = geometry.strides
    share = float(analysis.harmonic_share(wide, s, transpose_kernel=True))
    powers = analysis.phase_gains(abs(wide) ** 2, s, transpose_kernel=True).sum((-1, -2))
    least, most = float(powers.min()), float(powers.max())
    return share if isfinite(share) else None, most / least if least > 0 else inf


def _share_before_shuffle(
    kernel: np.ndarray, *, split: Sequence[int], phase_digits: Sequence[int]
) -> float | None:
    """Returns the harmonic share of a convolution before a pixel shuffle; for the options see `Shuffle`."""
    gains = kernel.astype(np.result_type(kernel, np.float32)).sum(tuple(range(kernel.ndim - 2)))
    gains = gains.reshape(-1, *split)
    deviation = gains - gains.mean(tuple(1 + digit for digit in phase_digits), keepdims=True)
    energy = (abs(gains) ** 2).sum()
    share = float((abs(deviation) ** 2).sum() / energy) if energy else 0.0
    return share if isfinite(share) else None


def _severity(share: float | None, weights: str, *, uneven: bool) -> Severity:
    if share is not None and share <= FLAT:
        return "none"
    if share is None or weights == "drawn":
        return "high" if uneven else "medium"
    return "high" if share > 0.1 else "medium" if share > 0.01 else "low"


def _energy_clause(share: float | None, weights: str) -> str:
    if share is None:
        return ""
    of = "these" if weights == "given" else "random"
    return f", and {of} weights put {share:.1%} of a constant's energy on the pattern"


def _whole(sizes: Sequence[int], s: Sequence[int]) -> tuple[int, ...]:
    """Returns the next multiples of the strides."""
    return tuple(-(-n // t) * t for n, t in zip(sizes, s, strict=True))


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
