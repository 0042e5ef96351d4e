"""The integers of a convolution: shapes alone decide or refuse here, before any array is touched.

One frame serves every convention. Along each axis, for kernel size k, stride s, dilation d and padding p,
the big image, the kernel and the small image of a convolution meet in

    big[s·o + d·a − p]    kernel[a]    small[o]          0 <= o < small size, 0 <= a < k

with zeros outside the big image. A convolution gathers along this relation from big to small, its transpose
paints along it from small to big. A string, an integer or pairs of padding all become one `Geometry`; the modules
above use nothing else. The extent of the dilated kernel is `d(k − 1) + 1`.

The sizes of images may be symbolic dimensions of `jax.export`. They calculate like integers but cannot always be
compared, so a rule that depends on an unknown size is not checked, and no size is computed with `max`.

Every integer that a user writes, and every size that follows from it, is at most `LARGEST`: beyond it XLA's integers
overflow, or no memory holds the result.

Formulas: Dumoulin & Visin 2016, arXiv:1603.07285, Relationships 6 and 14. This module imports neither JAX nor NumPy.
"""

import difflib
import math
import numbers
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

Ints = int | Sequence[int]
Padding = str | int | Sequence[int | Sequence[int]]
Pairs = tuple[tuple[int, int], ...]
StringPadding = Literal["SAME", "SAME_LOWER", "VALID"]
PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]
PaddingConvention = Literal["forward", "dilated"]

STRING_PADDINGS: tuple[str, ...] = get_args(StringPadding)
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)
PADDING_CONVENTIONS: tuple[str, ...] = get_args(PaddingConvention)

LARGEST = 2**31 - 1  # any integer of a user's, and any axis
MOST = 2**40  # numbers in a result, on all devices together
MOST_COUNTS = 2**26  # numbers in a result that NumPy makes on the host: half a gigabyte


@dataclass(frozen=True)
class Geometry:
    """One convolution in integers; every tuple has one entry per spatial axis.

    Attributes:
      big: spatial shape of the image that `conv` reads and `conv_transpose` writes.
      small: spatial shape of the image that `conv` writes and `conv_transpose` reads.
      kernel_size: k, taps.
      strides: s, pixels of the big image per pixel of the small one.
      kernel_dilation: d, pixels of the big image between neighboring taps.
      offset: p, the padding of the forward convolution in front of the big image; may be negative.
      feature_group_count: groups g; the channels of both images are split into g blocks that never meet.
    """

    big: tuple[int, ...]
    small: tuple[int, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    offset: tuple[int, ...]
    feature_group_count: int = 1

    @cached_property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def exchanged(self) -> "Geometry":
        """The same sums at stride 1: big and small image exchanged, the kernel reversed."""
        offset = tuple(e - 1 - p for e, p in zip(self.extent, self.offset, strict=True))
        return replace(self, big=self.small, small=self.big, offset=offset)

    @property
    def plane(self) -> "Geometry":
        """The geometry without its leading axis."""
        return Geometry(
            self.big[1:],
            self.small[1:],
            self.kernel_size[1:],
            self.strides[1:],
            self.kernel_dilation[1:],
            self.offset[1:],
            self.feature_group_count,
        )

    @cached_property
    def extent(self) -> tuple[int, ...]:
        """Pixels of the big image that one dilated kernel spans."""
        return kernel_extent(self.kernel_size, self.kernel_dilation)

    @cached_property
    def padding(self) -> Pairs:
        """Pairs (low, high) that make the forward convolution map `big` to exactly `small`."""
        return tuple(
            (p, s * (n - 1) + e - m - p)
            for m, n, s, e, p in zip(
                self.big, self.small, self.strides, self.extent, self.offset, strict=True
            )
        )


def kernel_extent(kernel_size: Sequence[int], kernel_dilation: Sequence[int]) -> tuple[int, ...]:
    """Returns `d(k − 1) + 1` per axis."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel_size, kernel_dilation, strict=True))


def conv_geometry(
    who: str,
    spatial_shape: Sequence[int],
    kernel_size: Sequence[int],
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    bounded: bool = True,
) -> Geometry:
    """Resolves the arguments of a convolution that reads an image of `spatial_shape`.

    Args:
      who: name of the calling function, for error messages.
      spatial_shape: size of the big image, one integer per spatial axis.
      kernel_size: one integer per spatial axis; fixes the rank.
      strides: positive; an int serves all axes.
      padding: 'SAME', 'SAME_LOWER', 'VALID', an int, or one int or (low, high) pair per axis.
      kernel_dilation: positive; an int serves all axes.
      feature_group_count: positive.
      bounded: refuses images beyond `LARGEST`; False for a size that stands for any.

    Raises:
      ValueError, TypeError: for a value or kind outside the rules above, or if no output pixel is left.
    """
    big, k, s, d = _common(who, spatial_shape, kernel_size, strides, kernel_dilation)
    extent = kernel_extent(k, d)
    pads = resolve_padding(who, padding, len(k))
    if pads == "SAME" or pads == "SAME_LOWER":
        small = tuple((m + t - 1) // t for m, t in zip(big, s, strict=True))
        offset = _same_offset(pads, big, s, extent)
    else:
        pairs = ((0, 0),) * len(k) if pads == "VALID" else pads
        small = tuple(
            (m + lo + hi - e) // t + 1
            for m, (lo, hi), e, t in zip(big, pairs, extent, s, strict=True)
        )
        offset = tuple(lo for lo, _ in pairs)
    if any(_known(n) and n < 1 for n in small):
        raise ValueError(
            f"{who}: the padded input must hold the dilated kernel along every axis; got spatial shape {big}, "
            f"padding={padding!r}, kernel_size={k}, kernel_dilation={d} (extent {extent}). "
            "Pad more or use a smaller kernel."
        )
    groups = positive_int(who, "feature_group_count", feature_group_count)
    return _bounded(who, Geometry(big, small, k, s, d, offset, groups), images=bounded)


def conv_transpose_geometry(
    who: str,
    spatial_shape: Sequence[int],
    kernel_size: Sequence[int],
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    output_padding: Ints | None = None,
    output_shape: Sequence[int] | None = None,
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    padding_convention: str = "forward",
    bounded: bool = True,
) -> Geometry:
    """Resolves the arguments of a transposed convolution that reads an image of `spatial_shape`.

    The forward convolution maps `s` different sizes to the same small image, so the size of the big one is a
    choice. Without one, it is `s(n − 1) + extent − low − high + output_padding` for integer paddings, `s·n` for
    'SAME' and 'SAME_LOWER' and `s·n + max(extent − s, 0)` for 'VALID', as in lax.

    Args:
      who: name of the calling function, for error messages.
      spatial_shape: size of the small image, one integer per spatial axis.
      kernel_size: one integer per spatial axis; fixes the rank.
      strides: positive; an int serves all axes.
      padding: 'SAME', 'SAME_LOWER', 'VALID', an int, or one int or (low, high) pair per axis.
      output_padding: extra pixels at the high end, `0 <= output_padding < max(strides, kernel_dilation)`;
        goes with integer paddings.
      output_shape: spatial shape of the big image, one of the sizes that the forward convolution maps back.
      kernel_dilation: positive; an int serves all axes.
      feature_group_count: positive.
      padding_convention: integers in `padding` pad the 'forward' convolution (PyTorch, ONNX) or the convolution
        over the 'dilated' image (lax, Flax).
      bounded: refuses images beyond `LARGEST`; False for a size that stands for any.

    Raises:
      ValueError, TypeError: for a value or kind outside the rules above, or if no output pixel is left.
    """
    small, k, s, d = _common(who, spatial_shape, kernel_size, strides, kernel_dilation)
    rank = len(k)
    extent = kernel_extent(k, d)
    full = tuple(t * (n - 1) + e for n, t, e in zip(small, s, extent, strict=True))
    pads = resolve_padding(who, padding, rank)
    choice(who, "padding_convention", padding_convention, PADDING_CONVENTIONS)
    groups = positive_int(who, "feature_group_count", feature_group_count)
    if output_padding is not None and (isinstance(pads, str) or output_shape is not None):
        other = "output_shape" if output_shape is not None else f"padding={pads!r}"
        raise ValueError(
            f"{who}: output_padding goes with integer padding and without output_shape; got "
            f"output_padding={output_padding!r} with {other}. Choose the size with output_shape alone."
        )

    if pads == "VALID":
        default = tuple(t * n + max(e - t, 0) for n, t, e in zip(small, s, extent, strict=True))
        big = _chosen_shape(who, output_shape, full, s, full) or default
        offset = (0,) * rank
    elif isinstance(pads, str):
        default = tuple(t * n for n, t in zip(small, s, strict=True))
        smallest = tuple(t * (n - 1) + 1 for n, t in zip(small, s, strict=True))
        # Sizes beyond lax's are those that the padding of lax's size maps back.
        counts = tuple(t + min(e, t) - 1 for e, t in zip(extent, s, strict=True))
        big = _chosen_shape(who, output_shape, smallest, counts, full) or default
        padded = tuple(
            w if known_at_least(m - w, 1) else m for m, w in zip(big, default, strict=True)
        )
        offset = _same_offset(pads, padded, s, extent)
    else:
        if padding_convention == "dilated":
            pads = tuple((e - 1 - a, e - 1 - b) for e, (a, b) in zip(extent, pads, strict=True))
        smallest = tuple(f - lo - hi for f, (lo, hi) in zip(full, pads, strict=True))
        extra = _output_padding(who, output_padding, s, d)
        big = _chosen_shape(who, output_shape, smallest, s, full) or tuple(
            m + op for m, op in zip(smallest, extra, strict=True)
        )
        offset = tuple(lo for lo, _ in pads)
    if any(_known(m) and m < 1 for m in big):
        raise ValueError(
            f"{who}: the output must keep at least one pixel along every axis; got output shape {big} from "
            f"spatial shape {small}, kernel_size={k}, strides={s}, padding={padding!r}. Crop less."
        )
    return _bounded(who, Geometry(big, small, k, s, d, offset, groups), images=bounded)


def conv_transpose_shape(
    spatial_shape: Sequence[int],
    kernel_size: Ints,
    strides: Ints = 1,
    *,
    padding: Padding = "SAME",
    output_padding: Ints | None = None,
    output_shape: Sequence[int] | None = None,
    kernel_dilation: Ints = 1,
    padding_convention: PaddingConvention = "forward",
) -> tuple[int, ...]:
    """Returns the spatial shape that `conv_transpose` with the same arguments produces.

    `n_out = s(n_in − 1) + d(k − 1) + 1 − low − high + output_padding` for integer paddings; strings as in lax:
    `s·n_in` for 'SAME' and 'SAME_LOWER', `s·n_in + max(d(k − 1) + 1 − s, 0)` for 'VALID'.

    Args:
      spatial_shape: input pixels, one integer per spatial axis; fixes the rank.
      kernel_size: an int serves all axes.
      strides: as in `conv_transpose`, like all other arguments.
      padding: see there.
      output_padding: see there.
      output_shape: see there; returned if it is possible.
      kernel_dilation: see there.
      padding_convention: see there.

    Returns:
      One integer per spatial axis.

    Raises:
      ValueError, TypeError: as `conv_transpose`.

    Example:
      >>> conv_transpose_shape((8, 8), 3, strides=2, padding=1)  # 2 · 7 + 3 − 2
      (15, 15)
      >>> conv_transpose_shape((8, 8), 3, strides=2, padding=1, output_padding=1)
      (16, 16)

    References:
      Dumoulin & Visin 2016, arXiv:1603.07285, Relationship 14.
    """
    who = "conv_transpose_shape"
    shape = ints(who, "spatial_shape", spatial_shape, minimum=1)
    geometry = conv_transpose_geometry(
        who,
        shape,
        per_axis(who, "kernel_size", kernel_size, len(shape)),
        strides=strides,
        padding=padding,
        output_padding=output_padding,
        output_shape=output_shape,
        kernel_dilation=kernel_dilation,
        padding_convention=padding_convention,
    )
    return geometry.big


def phase_tap_counts(kernel_size: int, stride: int) -> tuple[int, ...]:
    """Returns n_p = max(0, ceil((k − p)/s)), the taps that reach each output phase p along one axis.

    Example:
      >>> phase_tap_counts(3, 2)
      (2, 1)
    """
    return tuple(max(0, -(-(kernel_size - p) // stride)) for p in range(stride))


class PhaseRange(NamedTuple):
    """Neighboring phases along one axis with equally many taps.

    With g = gcd(s, d), the taps `a = tap + r − first + (s/g)·j`, 0 <= j < taps, meet the pixels `q + p = s·m + g·r` of
    the big image, for any cell m and r in `first, .., first + size − 1`; tap j joins them to pixel
    `m − shift − (d/g)·j` of the small image.
    """

    first: int
    size: int
    tap: int
    taps: int
    shift: int


def phase_ranges(k: int, s: int, d: int, *, separate: bool = False) -> tuple[PhaseRange, ...]:
    """Returns the ranges of phases along one axis in order, or every phase as a range of its own if `separate`.

    Example:
      >>> phase_ranges(k=5, s=3, d=1)  # phases 0 and 1 have two taps, phase 2 has one
      (PhaseRange(first=0, size=2, tap=0, taps=2, shift=0), PhaseRange(first=2, size=1, tap=2, taps=1, shift=0))
    """
    if d == 1 and not separate:  # in closed form, as a stride may be long
        taps, more = divmod(k, s)
        pair = (PhaseRange(0, more, 0, taps + 1, 0), PhaseRange(more, s - more, more, taps, 0))
        return tuple(r for r in pair if r.size)
    g = math.gcd(s, d)
    step = s // g
    ranges: list[PhaseRange] = []
    for r in range(step):
        tap = r * pow(d // g, -1, step) % step
        taps, shift = max(0, -(-(k - tap) // step)), (d * tap - g * r) // s
        last = ranges[-1] if ranges and not separate else None
        if last and (last.tap + last.size, last.taps, last.shift) == (tap, taps, shift):
            ranges[-1] = last._replace(size=last.size + 1)
        else:
            ranges.append(PhaseRange(r, 1, tap, taps, shift))
    return tuple(ranges)


class Grid(NamedTuple):
    """How the big image falls into cells of s pixels; one entry per axis."""

    cells: tuple[int, ...]
    first: tuple[int, ...]  # number of the first cell: pixel q lies in cell (q + p) // s
    spacing: tuple[int, ...]  # g = gcd(s, d): taps reach every g-th pixel
    phase_counts: tuple[int, ...]  # s / g phases in a cell


def parts(geometry: Geometry) -> Iterator[tuple[tuple[PhaseRange, ...], Geometry]]:
    """Yields the phases of every part, one range per axis, and its geometry; phases without taps have no part."""
    grid = grid_of(geometry)
    per_axis = ranges_per_axis(geometry, separate=False)
    for ranges in product(*([r for r in axis if r.taps] for axis in per_axis)):
        yield ranges, part_geometry(geometry, grid, ranges)


def ranges_per_axis(geometry: Geometry, *, separate: bool) -> list[tuple[PhaseRange, ...]]:
    """Returns `phase_ranges` for every axis."""
    return [
        phase_ranges(*axis, separate=separate)
        for axis in zip(
            geometry.kernel_size, geometry.strides, geometry.kernel_dilation, strict=True
        )
    ]


def grid_of(geometry: Geometry) -> Grid:
    """Returns the cells that hold all pixels of the big image."""
    first = tuple(p // s for p, s in zip(geometry.offset, geometry.strides, strict=True))
    cells = tuple(
        (m - 1 + p) // s - lo + 1
        for m, p, s, lo in zip(geometry.big, geometry.offset, geometry.strides, first, strict=True)
    )
    spacing = tuple(
        math.gcd(s, d) for s, d in zip(geometry.strides, geometry.kernel_dilation, strict=True)
    )
    phase_counts = tuple(s // g for s, g in zip(geometry.strides, spacing, strict=True))
    return Grid(cells, first, spacing, phase_counts)


def part_geometry(geometry: Geometry, grid: Grid, ranges: tuple[PhaseRange, ...]) -> Geometry:
    """Returns the geometry of a part: from the small image (as the big one) to the cells, kernel reversed.

    Cell m of a phase reads pixel `m + first − shift − d'j` through its tap j, for d' = d / gcd(s, d).
    """
    taps = tuple(c.taps for c in ranges)
    dilation = tuple(d // g for d, g in zip(geometry.kernel_dilation, grid.spacing, strict=True))
    offset = tuple(
        c.shift + d * (c.taps - 1) - lo
        for c, d, lo in zip(ranges, dilation, grid.first, strict=True)
    )
    strides = (1,) * len(taps)
    return Geometry(
        geometry.small, grid.cells, taps, strides, dilation, offset, geometry.feature_group_count
    )


def resolve_padding(who: str, padding: Padding, rank: int) -> StringPadding | Pairs:
    """Returns 'SAME', 'SAME_LOWER', 'VALID' or one (low, high) pair per axis; resolving twice changes nothing.

    Args:
      who: name of the calling function, for error messages.
      padding: 'SAME', 'SAME_LOWER', 'VALID', an int, or one int or (low, high) pair per axis; lists serve as tuples.
      rank: number of spatial axes.

    Raises:
      ValueError: for an unknown string or a wrong number of entries.
      TypeError: for entries that are not integers.
    """
    if isinstance(padding, str):
        known = padding.upper() in STRING_PADDINGS  # lax takes words of any case
        return choice(who, "padding", padding.upper() if known else padding, STRING_PADDINGS)  # type: ignore[return-value]
    padding = as_list(padding)
    if not isinstance(padding, Sequence):
        p = integer(who, "padding", padding)
        return ((p, p),) * rank
    if len(padding) != rank:
        raise ValueError(
            f"{who}: padding must be a string ('SAME', 'SAME_LOWER', 'VALID'), an int, or one int or (low, high) pair "
            f"per spatial axis; got padding={padding!r} for {rank} spatial axes."
        )
    pairs = []
    for entry in padding:
        pair = entry if isinstance(entry, Sequence) else (entry, entry)
        if len(pair) != 2 or isinstance(pair, str):
            raise ValueError(
                f"{who}: every entry of padding must be an int or a (low, high) pair; got {entry!r} in "
                f"padding={padding!r}."
            )
        pairs.append((integer(who, "padding", pair[0]), integer(who, "padding", pair[1])))
    return tuple(pairs)


def per_axis(who: str, name: str, value: Ints, rank: int, minimum: int = 1) -> tuple[int, ...]:
    """Returns `value` as `rank` integers that are at least `minimum`; an int serves all axes."""
    listed = as_list(value)
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes):
        listed = (listed,) * rank
    result = ints(who, name, listed, minimum)
    if len(result) != rank:
        raise ValueError(
            f"{who}: {name} must be an int or one int per spatial axis; got {name}={result!r} for {rank} "
            "spatial axes."
        )
    return result


def ints(who: str, name: str, value: Sequence[int], minimum: int) -> tuple[int, ...]:
    """Returns `value` as a tuple of integers that are at least `minimum`."""
    value = as_list(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"{who}: {name} must be a sequence of integers; got {name}={value!r}.")
    result = tuple(integer(who, name, v) for v in value)
    if any(v < minimum for v in result):
        raise ValueError(f"{who}: {name} must be at least {minimum}; got {name}={result}.")
    return result


def sizes(who: str, name: str, value: Sequence[int]) -> tuple[int, ...]:
    """Returns `value` as a tuple of positive integers, symbolic dimensions of `jax.export` among them."""
    value = as_list(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"{who}: {name} must be a sequence of integers; got {name}={value!r}.")
    numbers = ints(who, name, tuple(v if _known(v) else 1 for v in value), minimum=1)
    return tuple(n if _known(v) else v for n, v in zip(numbers, value, strict=True))


def as_list(value: Any) -> Any:
    """Returns an array of integers as the list that it holds, anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _known(size: object) -> bool:
    """Whether a size is a number; only a symbolic dimension has a method that converts it to an array."""
    return not hasattr(type(size), "__jax_array__")


def positive_int(who: str, name: str, value: int) -> int:
    """Returns `value` as an integer that is at least 1."""
    result = integer(who, name, value)
    if result < 1:
        raise ValueError(f"{who}: {name} must be at least 1; got {name}={result}.")
    return result


def integer(who: str, name: str, value: object) -> int:
    """Returns `value` as an int of at most `LARGEST` in size, refusing floats and booleans by name."""
    if isinstance(value, bool):
        raise TypeError(f"{who}: {name} must be an integer; got the boolean {value!r}.")
    try:
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{who}: {name} must be an integer; got {value!r} of type {type(value).__name__}."
        ) from None
    if abs(result) > LARGEST:  # Python may refuse to print its digits
        raise ValueError(
            f"{who}: {name} must be at most {LARGEST} in size; got an integer of {result.bit_length()} bits."
        )
    return result


def positive(who: str, name: str, value: float) -> None:
    """Raises unless `value` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{who}: {name} must be a number; got {type(value).__name__}.")
    if not 0 < value < math.inf:
        raise ValueError(f"{who}: {name} must be positive; got {name}={value!r}.")


def choice(who: str, name: str, value: str, allowed: Sequence[str]) -> str:
    """Returns `value` if it is one of `allowed`, else raises with the list and the nearest spelling."""
    if isinstance(value, str) and value in allowed:
        return value
    listed = ", ".join(repr(a) for a in allowed)
    near = difflib.get_close_matches(str(value).lower(), [a.lower() for a in allowed], n=1)
    hint = next((f" Did you mean {a!r}?" for a in allowed if near and a.lower() == near[0]), "")
    raise ValueError(f"{who}: {name} must be one of {listed}; got {name}={value!r}.{hint}")


def fits(who: str, shape: Sequence[int], most: int = MOST) -> None:
    """Raises if a result of this shape would hold more than `most` numbers; symbolic sizes count as 1."""
    known = [n for n in shape if _known(n)]
    if math.prod(known) > most or max(known, default=0) > LARGEST:
        raise ValueError(
            f"{who}: the result must hold at most {most} numbers and {LARGEST} along an axis; got shape "
            f"{tuple(shape)}. Use smaller sizes."
        )


def known_at_least(size: int, least: int) -> bool:
    """Whether a size, symbolic or not, is known to be at least `least`."""
    try:
        return bool(size >= least)
    except Exception:  # JAX raises one of its own where the constraints do not decide
        return False


def _bounded(who: str, geometry: Geometry, *, images: bool) -> Geometry:
    """Returns a geometry, or raises if its kernel, or with `images` an image, padded or not, spans more than `LARGEST`.

    It also raises if a symbolic size may be negative: no shape of XLA's is.
    """
    if not all(_known(n) or known_at_least(n, 0) for n in (*geometry.big, *geometry.small)):
        raise ValueError(
            f"{who}: symbolic sizes must be known to leave an output; got spatial shapes {geometry.big} and "
            f"{geometry.small}. Declare a least size, as in jax.export.symbolic_shape('h', constraints=['h >= 8'])."
        )
    spans = list(geometry.extent)
    if images:
        spans += [*geometry.big, *geometry.small]
        for m, (low, high) in zip(geometry.big, geometry.padding, strict=True):
            spans += [m + max(low, 0) + max(high, 0)] if all(map(_known, (m, low, high))) else []
    if any(_known(n) and n > LARGEST for n in spans):
        raise ValueError(
            f"{who}: images, padded images and dilated kernels must span at most {LARGEST} pixels along every axis; "
            f"got spatial shapes {geometry.big} and {geometry.small}, padding={geometry.padding}, kernel extent "
            f"{geometry.extent}. Use smaller integers."
        )
    return geometry


def _common(
    who: str,
    spatial_shape: Sequence[int],
    kernel_size: Sequence[int],
    strides: Ints,
    kernel_dilation: Ints,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    k = ints(who, "kernel_size", kernel_size, minimum=1)
    shape = sizes(who, "spatial shape", spatial_shape)
    if len(shape) != len(k):
        raise ValueError(
            f"{who}: the input needs one spatial axis per kernel axis; got spatial shape {shape} with kernel_size={k}."
        )
    s = per_axis(who, "strides", strides, len(k))
    return shape, k, s, per_axis(who, "kernel_dilation", kernel_dilation, len(k))


def _same_offset(
    kind: StringPadding, big: tuple[int, ...], strides: tuple[int, ...], extent: tuple[int, ...]
) -> tuple[int, ...]:
    """Returns the low padding per axis of a 'SAME' convolution over `big`.

    It pads by `max(extent − s + r, 0)` in total, where r pixels are missing from a whole number of strides; 'SAME' puts
    the odd pixel at the high end, 'SAME_LOWER' at the low one.
    """
    odd = int(kind == "SAME_LOWER")
    offset = []
    for m, s, e in zip(big, strides, extent, strict=True):
        r = -m % s
        if e >= s or _known(r):
            offset.append(max(e - s + r + odd, 0) // 2 if _known(r) else (e - s + r + odd) // 2)
        else:  # the same without a maximum: the sum counts the j that fit, each quotient is 0 or 1
            offset.append(sum((r + e - 2 * j + odd) // s for j in range(1, (e - 1 + odd) // 2 + 1)))
    return tuple(offset)


def _output_padding(
    who: str, output_padding: Ints | None, strides: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    if output_padding is None:
        return (0,) * len(strides)
    extra = per_axis(who, "output_padding", output_padding, len(strides), minimum=0)
    if any(op >= max(s, d) for op, s, d in zip(extra, strides, dilation, strict=True)):
        raise ValueError(
            f"{who}: output_padding must be smaller than the larger of strides and kernel_dilation; got "
            f"output_padding={extra}, strides={strides}, kernel_dilation={dilation}."
        )
    return extra


def _chosen_shape(
    who: str,
    output_shape: Sequence[int] | None,
    smallest: tuple[int, ...],
    counts: tuple[int, ...],
    full: tuple[int, ...],
) -> tuple[int, ...] | None:
    """Returns the size that a user chose among `counts` sizes from the smallest on; `full` is without padding."""
    if output_shape is None:
        return None
    shape = spatial_sizes(who, output_shape, len(counts))
    extra = tuple(m - least for m, least in zip(shape, smallest, strict=True))
    if any(_known(e) and not 0 <= e < count for e, count in zip(extra, counts, strict=True)):
        total = [f - m for f, m in zip(full, shape, strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in total)
        fitting = all(_known(t) and t >= 0 for t in total)
        remedy = f" This size needs padding={pads} of the forward convolution." if fitting else ""
        raise ValueError(
            f"{who}: output_shape must be a size that the forward convolution maps back to the input; got "
            f"output_shape={shape}, valid sizes are {_listed(smallest, counts)}.{remedy}"
        )
    return shape


def spatial_sizes(who: str, output_shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """Returns a user's `output_shape`, one size for each of `rank` spatial axes."""
    shape = sizes(who, "output_shape", output_shape)
    if len(shape) != rank:
        raise ValueError(
            f"{who}: output_shape has spatial axes alone, one int for each; got output_shape={shape} for "
            f"{rank} spatial axes."
        )
    return shape


def enlarged_sizes(
    who: str, output_shape: Sequence[int] | None, small: Sequence[int], scale: Sequence[int]
) -> tuple[int, ...]:
    """Returns the size of an image of whole cells, or the size near it that a user chose.

    An encoder that divides by `scale`, rounding down or up, makes `small` of sizes less than `scale` pixels from it.
    """
    whole = tuple(r * n for r, n in zip(scale, small, strict=True))
    return sizes_near(who, output_shape, whole, scale)


def sizes_near(
    who: str, output_shape: Sequence[int] | None, whole: tuple[int, ...], scale: Sequence[int]
) -> tuple[int, ...]:
    """Returns `whole`, or the size that a user chose, less than `scale` pixels from it."""
    if output_shape is None:
        return whole
    shape = spatial_sizes(who, output_shape, len(whole))
    away = tuple(m - w for m, w in zip(shape, whole, strict=True))
    if any(_known(a) and abs(a) >= r for a, r in zip(away, scale, strict=True)):
        least = tuple(w - r + 1 for w, r in zip(whole, scale, strict=True))
        raise ValueError(
            f"{who}: output_shape must be less than scale pixels from {whole}, here "
            f"{_listed(least, [2 * r - 1 for r in scale])}, scale={tuple(scale)}; got output_shape={shape}. "
            "Resize to other sizes."
        )
    return shape


def extra_cells(
    small: Sequence[int], large: Sequence[int], scale: Sequence[int]
) -> tuple[int, ...]:
    """Returns how many input pixels are missing, 0 or 1 per axis, for an enlarged image of a chosen size."""
    pairs = zip(small, large, scale, strict=True)
    return tuple(int(known_at_least(m - r * n, 1)) for n, m, r in pairs)


def _listed(smallest: Sequence[int], counts: Sequence[int]) -> str:
    return " x ".join(
        f"{m}" if count == 1 else f"{{{max(m, 1) if _known(m) else m}..{m + count - 1}}}"
        for m, count in zip(smallest, counts, strict=True)
    )
