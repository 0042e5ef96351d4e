"""What a lowering costs, estimated from integers: the model behind `implementation='auto'`.

On a CPU a face takes the time of its product plus the time to move what is copied around it,

    seconds = 2 · rows · contracted · columns / PRODUCT + bytes / COPY

and what differs between lowerings is how the product is shaped, what is copied, and which convolutions XLA has no fast
program for. Constants are rounded from measurements on two cores (float32, jaxlib 0.10.1); only their ratios matter.
`python -m experiments run configs/benchmark.toml --set mode=autotune` measures where the model errs.

Elsewhere (platform None) nothing was measured, so the choice is conservative: the convolutions that cuDNN and TPUs have
natively. Grouped transposed convolutions are the exception, as XLA's pattern for a backward convolution on GPUs asks
for one group and else inserts the zeros; their phases insert none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

from tconvjax._geometry import Geometry, parts

PRODUCT = 250e9  # operations per second of a well-shaped product
COPY = 5e9  # bytes per second of a strided copy, read and written
PAGED = 32e6  # bytes of temporaries beyond which each call asks the system anew, at half the speed
SUM = 12e9  # multiplications per second of an elementwise tap
CALL = 2e-5  # seconds for one more operation

CANDIDATES = ("phase", "matmul", "planes", "elementwise", "dilated")
PARTS = ("matmul", "planes", "dilated")  # for the convolutions of stride 1 that `phase` makes
UNKNOWN = 32  # stands for a symbolic size


class Sizes(NamedTuple):
    """One problem: images, channels of the big and of the small image per group."""

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
        inserts = face == "paint" and groups > 1 and max(geometry.strides) > 1
        return "phase" if inserts and "phase" in among else "dilated"
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
        # The zeros are skipped for one group and up to two axes alone.
        time *= 2.2 if g == 1 and geometry.rank <= 2 else prod(geometry.strides)
        time += 10 * CALL
    if face == "paint":
        time += _turned(geometry, sizes)
    if g > 1:
        time *= 2 if sizes.big * sizes.small > 16 else 4  # every group is a call of its own
    if face == "correlate":
        images = prod(geometry.big) * sizes.big + prod(geometry.small) * sizes.small
        time += 4 * sizes.batch * images * g / COPY  # both in another order
    if geometry.rank > 2:
        time *= 5 if face == "gather" else 500  # a generic loop
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
        return _dilated(face, geometry, sizes) + CALL  # the same
    k, n, g = geometry.kernel_size[0], geometry.small[0], geometry.feature_group_count
    slabs = 4 * sizes.batch * n * k * prod(geometry.plane.big) * sizes.big * g
    inner = Sizes(sizes.batch * n, k * sizes.big, sizes.small)
    return slabs / COPY + _planes(face, geometry.plane, inner)


def _elementwise(face: str, geometry: Geometry, sizes: Sizes) -> float:
    g = geometry.feature_group_count
    taps = prod(geometry.kernel_size)
    sums = sizes.batch * prod(geometry.small) * taps * sizes.big * sizes.small * g
    slow = 1 + (taps / 160) ** 4  # long sums outgrow registers, and compile for long
    if sizes.big * sizes.small > 1:
        terms = taps * (sizes.small if face == "paint" else sizes.big)
        slow *= 1.4 + (terms / 80) ** 2
    slow *= 2 if face == "correlate" else 1
    return CALL + slow * sums / SUM


def _phase(face: str, geometry: Geometry, sizes: Sizes) -> float:
    if max(geometry.strides) == 1:
        return CALL + min(seconds(name, face, geometry, sizes) for name in PARTS)  # itself
    inner_face = {"gather": "paint", "paint": "gather", "correlate": "correlate"}[face]
    time = 0.0
    for chosen, part in parts(geometry):
        of_part = Sizes(sizes.batch, sizes.small, prod(c.phases for c in chosen) * sizes.big)
        time += CALL + min(seconds(name, inner_face, part, of_part) for name in PARTS)
    moved = 4.0 * sizes.batch * prod(geometry.big) * sizes.big * geometry.feature_group_count
    if geometry.rank == 1:
        moved *= 0.6  # depth and space are the same memory, but for the border
    # The two faces that a gradient asks of one image share its space to depth, and the correlate copies more.
    return time + moved / COPY * {"paint": 1, "gather": 0.5, "correlate": 1.4}[face]


def _convolution(face: str, geometry: Geometry, sizes: Sizes) -> float:
    """The product of XLA's own convolution, which packs patches as it goes."""
    taps, rows = prod(geometry.kernel_size), sizes.batch * prod(geometry.small)
    if face == "gather":
        time = _product(rows, taps * sizes.big, sizes.small)
    elif face == "paint":
        time = _product(rows, taps * sizes.small, sizes.big)
    else:
        time = 1.5 * _product(taps * sizes.big, rows, sizes.small)
    read = sizes.small if face == "paint" else sizes.big
    if read % 4 and face != "correlate":
        time += 4 * rows * taps * read / COPY  # its patches are not packed in vectors
    kernel = 4 * taps * sizes.big * sizes.small
    return (time + kernel / (4 * COPY)) * geometry.feature_group_count


def _turned(geometry: Geometry, sizes: Sizes) -> float:
    """A kernel whose channels change places."""
    taps = prod(geometry.kernel_size)
    return 2 * 4 * taps * sizes.big * sizes.small * geometry.feature_group_count / COPY


def _product(rows: int, contracted: int, columns: int) -> float:
    # Narrow products waste what they do not fill.
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
