"""The cost of a lowering, estimated from integers: the model behind `implementation='auto'`.

On a CPU a face takes the time of its product plus the time of the copies around it,

    seconds = 2 · rows · contracted · columns / PRODUCT + bytes / COPY

Lowerings differ in the shape of the product, in the copies, and in the convolutions for which XLA has no fast program.
Constants are rounded from measurements on two cores (float32, jaxlib 0.10.1); only their ratios matter.
`python -m experiments run configs/benchmark.toml --set mode=autotune` measures where the model errs.

Elsewhere (platform None) nothing was measured, so the choice is conservative: the native convolutions of cuDNN and
TPUs. Grouped transposed convolutions are the exception: XLA's pattern for a backward convolution on GPUs matches one
group only and otherwise inserts the zeros; phases insert none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

from tconvjax._geometry import Geometry, parts

PRODUCT = 250e9  # operations per second of a well-shaped product
COPY = 5e9  # bytes per second of a strided copy, read and written
PAGED = 32e6  # bytes of temporaries; beyond, every call allocates them anew from the system, at half the speed
SUM = 12e9  # multiplications per second of an elementwise tap
CALL = 2e-5  # seconds for one more operation

CANDIDATES = ("phase", "matmul", "planes", "elementwise", "dilated")
PARTS = ("matmul", "planes", "dilated")  # for the convolutions of stride 1 that `phase` makes
UNKNOWN = 32  # stands for a symbolic size


class Sizes(NamedTuple):
    """One problem: images, and channels per group of the big and of the small image."""

    batch: int
    big: int
    small: int


def choose(
    face: str,
    geometry: Geometry,
    lhs: Sequence[int],
    rhs: Sequence[int],
    platform: str | None,
    among: Iterable[str] = CANDIDATES,
) -> str:
    """Returns the lowering that 'auto' stands for.

    Args:
      face: 'gather', 'paint' or 'correlate'.
      geometry: of the problem.
      lhs: shape of the first operand, an image, without a stack axis.
      rhs: shape of the second operand.
      platform: 'cpu', or None for any accelerator.
      among: names to choose from.
    """
    groups = geometry.feature_group_count
    if platform != "cpu":
        inserts_zeros = face == "paint" and groups > 1 and max(geometry.strides) > 1
        return "phase" if inserts_zeros and "phase" in among else "dilated"
    geometry = replace(
        geometry,
        big=tuple(map(_number, geometry.big)),
        small=tuple(map(_number, geometry.small)),
        offset=tuple(p if isinstance(p, int) else 0 for p in geometry.offset),
    )
    channels = {
        "gather": (lhs[-1] // groups, rhs[-1] // groups),
        "paint": (rhs[-2], lhs[-1] // groups),
        "correlate": (lhs[-1] // groups, rhs[-1] // groups),
    }[face]
    sizes = Sizes(_number(lhs[0]), *map(_number, channels))
    return min(among, key=lambda name: seconds(name, face, geometry, sizes))


def seconds(name: str, face: str, geometry: Geometry, sizes: Sizes) -> float:
    """Returns the estimated time of one face by one lowering on a CPU."""
    return _MODELS[name](face, geometry, sizes)


def _dilated(face: str, geometry: Geometry, sizes: Sizes) -> float:
    time = _convolution(face, geometry, sizes)
    g, strided = geometry.feature_group_count, max(geometry.strides) > 1
    if face == "paint" and strided:
        # XLA skips the zeros only for one group and up to two axes.
        time *= 2.2 if g == 1 and geometry.rank <= 2 else prod(geometry.strides)
        time += 10 * CALL
    if face == "paint":
        time += _kernel_transpose(geometry, sizes)
    if g > 1:
        time *= 2 if sizes.big * sizes.small > 16 else 4  # XLA calls its library once per group
    if face == "correlate":
        images = prod(geometry.big) * sizes.big + prod(geometry.small) * sizes.small
        time += 4 * sizes.batch * images * g / COPY  # both transposed
    if geometry.rank > 2:
        time *= 5 if face == "gather" else 500  # XLA has a generic loop only
    return time


def _matmul(face: str, geometry: Geometry, sizes: Sizes) -> float:
    pixels, taps = prod(geometry.small), prod(geometry.kernel_size)
    g = geometry.feature_group_count
    copies = taps > 1 or max(geometry.strides) > 1 or g > 1
    patches = 4 * sizes.batch * pixels * taps * sizes.big * g * copies
    overlap = any(k > s for k, s in zip(geometry.kernel_size, geometry.strides, strict=True))
    if face == "correlate":
        moved = 2 * patches  # in strips
    else:
        temporaries = patches * (2 if face == "paint" and overlap else 1)
        moved = patches if temporaries <= PAGED else 2 * temporaries
    if g > 1:
        moved *= 3
    rows, columns = sizes.batch * pixels, taps * sizes.big
    if face == "gather":
        time = _product(rows, columns, sizes.small)
    elif face == "paint":
        time = _product(rows, sizes.small, columns)
    else:
        time = 1.5 * _product(columns, rows, sizes.small)
    return time * g + moved / COPY + CALL * 5 * copies


def _planes(face: str, geometry: Geometry, sizes: Sizes) -> float:
    if geometry.rank <= 2:
        return _dilated(face, geometry, sizes) + CALL  # nothing is unrolled
    k, n, g = geometry.kernel_size[0], geometry.small[0], geometry.feature_group_count
    slabs = 4 * sizes.batch * n * k * prod(geometry.plane.big) * sizes.big * g
    inner = Sizes(sizes.batch * n, k * sizes.big, sizes.small)
    return slabs / COPY + _planes(face, geometry.plane, inner)


def _elementwise(face: str, geometry: Geometry, sizes: Sizes) -> float:
    g = geometry.feature_group_count
    taps = prod(geometry.kernel_size)
    sums = sizes.batch * prod(geometry.small) * taps * sizes.big * sizes.small * g
    slow = 1 + (taps / 160) ** 4  # long sums outgrow registers, and take long to compile
    if sizes.big * sizes.small > 1:
        terms = taps * (sizes.small if face == "paint" else sizes.big)
        slow *= 1.4 + (terms / 80) ** 2
    slow *= 2 if face == "correlate" else 1
    return CALL + slow * sums / SUM


def _phase(face: str, geometry: Geometry, sizes: Sizes) -> float:
    if max(geometry.strides) == 1:
        return CALL + min(seconds(name, face, geometry, sizes) for name in PARTS)  # one part
    inner_face = {"gather": "paint", "paint": "gather", "correlate": "correlate"}[face]
    time = 0.0
    for ranges, part in parts(geometry):
        part_sizes = Sizes(sizes.batch, sizes.small, prod(c.size for c in ranges) * sizes.big)
        time += CALL + min(seconds(name, inner_face, part, part_sizes) for name in PARTS)
    moved = 4.0 * sizes.batch * prod(geometry.big) * sizes.big * geometry.feature_group_count
    if geometry.rank == 1:
        moved *= 0.6  # depth to space moves nothing but the border
    # In a gradient, gather and correlate of one image share its space to depth, and correlate copies more.
    return time + moved / COPY * {"paint": 1, "gather": 0.5, "correlate": 1.4}[face]


def _convolution(face: str, geometry: Geometry, sizes: Sizes) -> float:
    """Time of the product of XLA's own convolution; it packs patches on the way."""
    taps, rows = prod(geometry.kernel_size), sizes.batch * prod(geometry.small)
    if face == "gather":
        time = _product(rows, taps * sizes.big, sizes.small)
    elif face == "paint":
        time = _product(rows, taps * sizes.small, sizes.big)
    else:
        time = 1.5 * _product(taps * sizes.big, rows, sizes.small)
    read = sizes.small if face == "paint" else sizes.big
    if read % 4 and face != "correlate":
        time += 4 * rows * taps * read / COPY  # XLA packs its patches without vectors
    kernel = 4 * taps * sizes.big * sizes.small
    return (time + kernel / (4 * COPY)) * geometry.feature_group_count


def _kernel_transpose(geometry: Geometry, sizes: Sizes) -> float:
    """Time to exchange the channels of a kernel."""
    taps = prod(geometry.kernel_size)
    return 2 * 4 * taps * sizes.big * sizes.small * geometry.feature_group_count / COPY


def _product(rows: int, contracted: int, columns: int) -> float:
    # Narrow products leave vectors and blocks partly empty.
    short = max(1, 96 / (rows + 32))
    return 2 * rows * max(contracted, 16) * max(columns, 32) * short / PRODUCT


def _number(size: object) -> int:
    return size if isinstance(size, int) else UNKNOWN


_MODELS = {
    "phase": _phase,
    "matmul": _matmul,
    "planes": _planes,
    "elementwise": _elementwise,
    "dilated": _dilated,
}
