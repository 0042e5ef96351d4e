"""Words of the audit: what an enlargement does to a constant, how severe that is, and what to use instead."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import inf, isfinite, prod
from typing import Any

import numpy as np

from tconvjax._geometry import Geometry
from tconvjax._program.convolutions import Convolution
from tconvjax._program.filters import MOST_TURNS
from tconvjax._program.finding import Cost, Finding, Kind, Measured, Severity
from tconvjax._program.lanes import Lane, LaneBook
from tconvjax._program.layouts import layout_of
from tconvjax._program.naming import leaf_of
from tconvjax._program.program import RESIZES, Place, Unknown, Value
from tconvjax._program.signals import FLAT, Enlargement
from tconvjax._program.tiles import MOST_PERIOD, convolved, dilated

# rms of a pattern that counts as visible, of the range of the output: half a grey level.
VISIBLE = 0.5 / 255
MEASURABLE = 3.0  # dB of contrast that count as a pattern


def findings_of(
    enlargements: Iterable[Enlargement],
    images: Sequence[Value],
    lanes: LaneBook,
    data: Mapping[Enlargement, Measured],
) -> list[tuple[int, Finding]]:
    """Returns a finding, with the number of its place, for each enlargement that the program uses; equal ones once."""
    found: dict[Any, tuple[int, Finding]] = {}
    for e in enlargements:
        if not e.ended:
            continue
        finding = _finding_of(e, images, lanes)
        if e in data:
            finding = _with_effect(finding, data[e])
        same = _same(finding, e)
        number, first = found.get(same, (e.place.number, replace(finding, count=0)))
        worst = max(first, finding, key=lambda f: f.harmonic_share or 0.0)
        found[same] = number, replace(worst, count=first.count + 1)
    return list(found.values())


def _with_effect(finding: Finding, effect: Measured) -> Finding:
    """Judges a finding by what it does on data instead of by its weights."""
    severity: Severity = "none" if finding.severity == "none" else "low"
    if not isfinite(effect.contrast):
        severity = finding.severity
    elif severity == "low" and effect.contrast >= MEASURABLE:
        severity = "high" if effect.visible >= VISIBLE else "medium"
    said = (
        f"On these data it puts {effect.share:.2g} of its own energy on the pattern, which is {effect.rms:.3g} rms "
        f"({255 * effect.visible:.2g} of 255 grey levels) and {effect.contrast:+.1f} dB of contrast of the output."
    )
    return replace(finding, severity=severity, measured=effect, message=f"{finding.message} {said}")


def _same(finding: Finding, e: Enlargement) -> Any:
    """What equal findings of one layer have in common; without a name, a layer is known by its weights."""
    return (
        finding.layer or e.kernel,
        finding.kernel_size,
        finding.kind,
        finding.severity,
        finding.line,
        finding.file,
        finding.strides,
        finding.output_shape,
    )


def _finding_of(e: Enlargement, images: Sequence[Value], lanes: LaneBook) -> Finding:
    period = _period(e, images, lanes)
    if e.place.backward:
        return _gradient(e, period)
    if e.means in {"shuffle", "interleaving"}:
        return _phases(e, period)
    if e.convolution is not None:
        return _transposed_convolution(e, e.convolution, period)
    return _matrix(e, period) if e.means == "matrix" else _zeros(e, period)


def _transposed_convolution(e: Enlargement, convolution: Convolution, period: Any) -> Finding:
    geometry = _geometry(e, convolution)
    k, s, extent = geometry.kernel_size, geometry.strides, geometry.extent
    overlap = _overlap(k, s, geometry.kernel_dilation)
    batch, small, big = _sizes(e.place, convolution)
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
    if e.overlap > 1:
        taps = f"output pixels receive unequal numbers of taps (max/min {e.overlap:g})"
    return _enlargement(
        e,
        period,
        kind="transposed_convolution",
        severity=_severity(e, uneven=e.overlap > 1),
        what=f"transposed convolution, kernel {_by(k)}, stride {_by(s)}, {small} -> {big} channels",
        why=taps + _energy_clause(e),
        remedy=remedy,
        kernel_size=k,
        strides=s,
        overlap_ratio=overlap,
        variance_ratio=_variance_ratio(e, overlap),
        center_shift=_shift(geometry),
        cost=cost(k, k),
        remedy_cost=cost(conv, fused),
    )


def _phases(e: Enlargement, period: Any) -> Finding:
    shuffled = e.means == "shuffle"
    return _enlargement(
        e,
        period,
        kind="pixel_shuffle",
        severity=_severity(e, uneven=not shuffled and e.overlap > 1),
        what=f"{'pixel shuffle' if shuffled else 'interleaved images'}, by {_by(e.strides)}",
        why="every phase has a kernel of its own" + _energy_clause(e),
        remedy="initializers.icnr for the convolution before it, or a blur after it"
        if shuffled
        else "a subpixel_conv initialized by initializers.icnr, or a blur after it",
        overlap_ratio=1.0 if shuffled else e.overlap,
        variance_ratio=1.0,
    )


def _matrix(e: Enlargement, period: Any) -> Finding:
    return _enlargement(
        e,
        period,
        kind="resize",
        severity=_severity(e, uneven=e.overlap > 1),
        what=f"product with a matrix along space, by {_by(e.strides)}",
        why="its rows do not add up to the same" + _energy_clause(e),
        remedy="resize, or rows of equal sums",
        kernel_size=None,
    )


def _zeros(e: Enlargement, period: Any) -> Finding:
    return _enlargement(
        e,
        period,
        layer="",
        kind="resize",
        severity="none" if e.share <= FLAT else "high",
        what=f"zeros between pixels, {_by(e.strides)}",
        why="nothing fills the new pixels evenly",
        remedy="resize(method='nearest'), or a convolution initialized by initializers.balanced_transpose",
        harmonic_share=e.share,
        weights="none",
    )


def _gradient(e: Enlargement, period: Any) -> Finding:
    """Judges the gradient of an operation that reduces images, by the taps through which it paints."""
    convolution = e.convolution
    k, s = e.kernel_size or (1,) * len(e.strides), e.strides
    kind: Kind = "strided_convolution" if convolution else "strided_pool"
    what = f"input gradient of a {'strided convolution' if convolution else 'sum over windows'}"
    if e.means == "zeros":
        what = "input gradient of a slice"
    options: dict[str, Any] = {}
    even = _whole(k, s)
    if convolution is not None:
        geometry = _geometry(e, convolution)
        even = _whole(geometry.extent, s)
        batch, small, big = _sizes(e.place, convolution)
        what += f", kernel {_by(k)}, stride {_by(s)}, {big} -> {small} channels"
        options = {"center_shift": _shift(geometry)}
        pairs = small * big // geometry.feature_group_count
        if batch is not None:
            flops = 2 * batch * prod(geometry.small) * pairs
            costs = [Cost(flops * prod(n), prod(n) * pairs, tuple(n)) for n in (k, even)]
            options |= {"cost": costs[0], "remedy_cost": costs[1]}
    else:
        what += f" of {_by(k)}, stride {_by(s)}"
    clean = e.overlap == 1 or (e.known and e.share <= FLAT)
    return _enlargement(
        e,
        period,
        kind=kind,
        severity="none" if clean else "medium" if e.overlap == inf else "low",
        what=what,
        why=f"input pixels receive their gradient through unequal numbers of taps (max/min {e.overlap:g})",
        remedy=f"{'kernel_size=' if convolution else 'windows of '}{even if convolution else _by(even)}"
        f"{' in that convolution, or stride 1 and then' if convolution else ', or'} blur_pool(strides={s})",
        kernel_size=k,
        harmonic_share=None,
        weights="none",
        **options,
    )


def resizes_of(place: Place, lanes: LaneBook, images: Sequence[Value]) -> Iterator[Finding]:
    """Yields `jax.image.resize` and repeated pixels, which are clean."""
    name = place.equation.primitive.name
    source = place.inputs[0] if place.inputs else None
    if name == "reshape" and source is not None and source.made_by == "broadcast_in_dim":
        source = source.inputs[0]
    elif not (name == "jit" and place.equation.params.get("name") in RESIZES):
        return
    if place.backward or source is None or len(source.shape) != len(place.shape):
        return
    sizes = list(zip(source.shape, place.shape, strict=True))
    known = [isinstance(a, int) and isinstance(b, int) for a, b in sizes]
    axes = [i for i, (a, b) in enumerate(sizes) if known[i] and b > a > 1]
    if not axes or _is_statistic(source):
        return
    scale = tuple(-(-sizes[i][1] // sizes[i][0]) for i in axes)
    begun = tuple(lanes.of(place.results[0])[a] for a in axes)
    yield _finding(
        place,
        layer=place.scope,
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
        period=_at_output(scale, begun, images, lanes),
        image=source,
    )


def _is_statistic(value: Value) -> bool:
    """Whether a value is made of sums over an image, as in a GroupNorm, whose groups are spread over channels."""
    return any(v.made_by.startswith(("reduce_sum", "reduce_max")) for v in (value, *value.inputs))


def not_understood(place: Place) -> Finding:
    """Returns the finding of an operation that hides what it does."""
    name = place.equation.primitive.name
    shape = place.inputs[0].shape if place.inputs else ()
    file, line = place.where
    return Finding(
        kind="not_understood",
        severity="low",
        layer=place.scope,
        primitive=name,
        kernel_size=None,
        strides=(),
        file=file,
        line=line,
        message=f"{name}: the program does not say what it computes. Audit what stands in its place, or look at its "
        "output with measure.",
        remedy="",
        input_shape=shape,
        output_shape=place.shape,
        overlap_ratio=1.0,
        variance_ratio=1.0,
        harmonic_share=None,
        weights="none",
        center_shift=(),
        period=(),
    )


def _enlargement(e: Enlargement, period: Any, **fields: Any) -> Finding:
    """Returns the finding of an enlargement; what a rule does not say is what its response says."""
    found = {
        "layer": _layer(e),
        "kernel_size": e.kernel_size,
        "strides": e.strides,
        "overlap_ratio": e.overlap,
        "variance_ratio": e.overlap,
        "harmonic_share": _share(e),
        "weights": e.origin,
        "center_shift": (0.0,) * len(e.strides),
        "period": period,
        "image": e.image,
    }
    return _finding(e.place, **found | fields)


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


def _layer(e: Enlargement) -> str:
    """Returns the path of the modules around an operation, or that of its weights."""
    if e.place.scope:
        return e.place.scope
    leaf = None if e.kernel is None else leaf_of(e.kernel)
    return "" if leaf is None else leaf.name


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


def _period(e: Enlargement, images: Sequence[Value], lanes: LaneBook) -> tuple[int, ...]:
    return _at_output(e.strides, e.lanes, images, lanes)


def _at_output(
    strides: Sequence[int], begun: Sequence[Lane | None], images: Sequence[Value], lanes: LaneBook
) -> tuple[int, ...]:
    """Returns the period of a pattern in the largest image that the program returns: strides multiply."""
    known = [image for image in images if all(isinstance(n, int) for n in image.shape)]
    for image in sorted(known, key=lambda v: -prod(v.shape)):
        periods = lanes.periods(strides, begun, image)
        if periods:
            return tuple(map(_whole_period, periods.values()))
    return tuple(strides)


def _whole_period(period: Fraction) -> int:
    """Returns the number of pixels in which a period repeats; sizes that do not divide give it up to rounding."""
    close = max(1, round(period))
    return (
        close if abs(period - close) < 0.1 or period.numerator > MOST_PERIOD else period.numerator
    )


def _geometry(e: Enlargement, convolution: Convolution) -> Geometry:
    """Returns the geometry of the transposed convolution that an enlargement is, zeros inserted before it included."""
    geometry = convolution.geometry
    if convolution.face == "paint" and geometry.strides == e.strides:
        return geometry
    k, d = geometry.kernel_size, geometry.kernel_dilation
    big = tuple(e.place.shape[a] for a in e.axes)
    small = tuple(
        -(-n // t) if isinstance(n, int) else n for n, t in zip(big, e.strides, strict=True)
    )
    extent = [t * (n - 1) + 1 for n, t in zip(k, d, strict=True)]
    offset = tuple(max(0, (n - t) // 2) for n, t in zip(extent, e.strides, strict=True))
    return Geometry(big, small, k, e.strides, d, offset, geometry.feature_group_count)


def _shift(geometry: Geometry) -> tuple[float, ...]:
    """Returns the displacement of small against big pixels from half-pixel alignment, in big pixels."""
    sizes = zip(geometry.extent, geometry.strides, geometry.offset, strict=True)
    return tuple((e - s) / 2 - p for e, s, p in sizes)


# Numbers.


def _share(e: Enlargement) -> float | None:
    """Returns the harmonic share of a response; None if weights in it are unknown."""
    return e.share if e.known and e.origin != "none" and isfinite(e.share) else None


def _variance_ratio(e: Enlargement, overlap: float) -> float:
    """Returns the variance ratio of the phases of a transposed convolution; the ratio of taps for unknown weights."""
    layout, value = layout_of(e.place.equation), e.place.inputs[1]
    ratios = [1.0]
    try:
        for turn in range(min(value.turns, MOST_TURNS)):
            for kernel in layout.kernels(np.asarray(value.compute(turn))):
                power = (abs(kernel.astype(np.result_type(kernel, np.float32))) ** 2).sum((-1, -2))
                pixel = np.ones((1, 1, *(1 for _ in e.strides), 1))
                if layout.steps.t != e.strides:
                    pixel = inserted(pixel, e.strides)
                phases, _ = convolved(pixel, power[..., None, None], layout.steps, 1, mixed=True)
                ratios.append(phases.max() / phases.min() if phases.min() > 0 else inf)
    except Unknown:
        return overlap
    return float(max(ratios))


def inserted(tile: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """Puts zeros between pixels, by hand."""
    for axis, s in enumerate(strides):
        tile = dilated(tile, 2 + axis, s)
    return tile


def _overlap(k: Sequence[int], s: Sequence[int], d: Sequence[int]) -> float:
    """Returns the largest over the smallest number of taps of a phase."""
    ratio = 1.0
    for n, t, e in zip(k, s, d, strict=True):
        counts = np.bincount(e * np.arange(n) % t, minlength=t).tolist()
        ratio *= max(counts) / min(counts) if all(counts) else inf
    return ratio


def _severity(e: Enlargement, *, uneven: bool) -> Severity:
    """Returns 'none' where a constant stays constant, else 'high' for uneven taps, 'medium' for uneven weights."""
    flat = e.share <= FLAT and (e.means != "shuffle" or e.known)
    return "none" if flat and _judged(e) else "high" if uneven else "medium"


def _judged(e: Enlargement) -> bool:
    """Whether weights, given or drawn, took part in the response: a tile of ones stands for unknown ones."""
    return e.origin != "none" or e.drawn


def _energy_clause(e: Enlargement) -> str:
    share = _share(e)
    if share is None:
        return ""
    of = "these" if e.origin == "given" else "random"
    return f", and {of} weights put {share:.1%} of a constant's energy on the pattern"


def _whole(sizes: Sequence[int], s: Sequence[int]) -> tuple[int, ...]:
    """Returns the next multiples of the strides."""
    return tuple(-(-n // t) * t for n, t in zip(sizes, s, strict=True))


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
