"""The receptive field of a traced network: its law, and what tiles need."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil, inf
from types import MethodType
from typing import Any, NamedTuple

import jax
import numpy as np

from tconvjax._program import sights as look
from tconvjax._program.following import Follower, Seen, Track
from tconvjax._program.program import Context, traced
from tconvjax._program.sights import PRIME, ROOT, Sight

WHO = "traced_field"


class TracedField(NamedTuple):
    """Receptive field of a network along one axis of its image, in pixels of that image.

    Output o sees `size` pixels around `stride·o + offset`; phases may see fewer, and borders do. What does not exist is
    None.

    Attributes:
      size: pixels from the first to the last that one output sees; inf if an operation reaches over the whole axis.
      stride: pixels from one output to the next; 1/2 for an enlargement by 2.
      offset: center of output 0, borders apart; `(stride − 1)/2` is half-pixel aligned.
      period: the smallest shift of the image, in pixels, that shifts the output and changes nothing else.
      overlap: pixels around a tile, a multiple of `period`, such that its output is that of the whole image; inf if
        there is no such number.
      reason: why a number is infinite or does not exist, with the operation and the user's line; '' if all are finite.
    """

    size: float
    stride: Fraction | None
    offset: Fraction | None
    period: int | None
    overlap: float
    reason: str


class Law(NamedTuple):
    """From `start` to `stop`, each output sees what the one `outputs` before it sees, `inputs` pixels further."""

    outputs: int
    inputs: int
    start: int
    stop: int


def traced_field(
    fn: Callable[..., Any],
    *args: Any,
    argnum: int = -1,
    spatial_axes: Sequence[int] | None = None,
) -> tuple[TracedField, ...]:
    """Finds the receptive field of a network of any shape, and the overlap with which it can run on tiles.

    The program is traced, not run, and every value of it followed back to the pixels that it depends on: through
    convolutions, pools, resizes, pixel shuffles, skip connections, branches, loops, and any reshape, slice, pad or
    gather at fixed places. The field is that of the structure: a kernel counts as full whatever its weights, and of the
    matrix of a resize what exceeds its rounding. Where the structure is not exactly known, the field is larger, never
    smaller. Sums over a whole axis (a global mean, attention, the statistics of a GroupNorm), gathers at places that
    depend on the image, and operations that are not understood see everything: `size` is inf and `reason` names them.
    Running sums by halves (`jax.lax.associative_scan`) are refused as if the image were too small.

    For inference on tiles, cut `[a − overlap, b + overlap)` from the image, with a and b multiples of `period`, or ends
    of the image; what the tile says of the outputs `[a/stride, b/stride)` of the whole is right. The image has to be a
    multiple of `period`, and the network the same at every place: without constants in the shape of the image, such as
    embeddings of positions.

    Args:
      fn: a function of pytrees, as in `tconvjax.audit`, that returns one array which depends on the image.
      *args: arguments of `fn`: arrays, or `jax.ShapeDtypeStruct` in their place.
      argnum: which of `args` holds the image, as its first array.
      spatial_axes: axes of the image; by default those along which convolutions run, or, without convolutions, all but
        the first and the last.

    Returns:
      One `TracedField` per spatial axis, in the order of `spatial_axes`, or in that of the image.

    Raises:
      ValueError: if the image is too small to show its field, if not one result depends on it, or for axes that
        it does not have.
      TypeError: if `fn` is not callable, or the argument holds no array. Errors of `fn` while it is traced pass.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> kernel = jnp.ones((3, 3, 1, 1))
      >>> conv = lambda x, s: jax.lax.conv_general_dilated(
      ...     x, kernel, (s, s), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      ... )
      >>> net = lambda x: x + jax.image.resize(conv(conv(x, 2), 1), x.shape, "nearest")  # one level of a U-Net
      >>> height, width = traced_field(net, jax.ShapeDtypeStruct((1, 64, 64, 1), "float32"))
      >>> height.size, height.stride, height.period, height.overlap
      (7, Fraction(1, 1), 2, 4)
      >>> field, _ = traced_field(lambda x: x - x.mean((1, 2), keepdims=True), jnp.ones((1, 64, 64, 1)))
      >>> field.size, field.reason.split()[-4:]
      (inf, ['joins', 'all', '64', 'pixels'])

    References:
      Araujo, Norris & Sim 2019, doi:10.23915/distill.00021, for chains and graphs of convolutions.
    """
    if not callable(fn):
        raise TypeError(f"{WHO}: fn must be callable; got an object of type {type(fn).__name__}.")
    index = _first_array(fn, args, argnum)
    program, inputs = traced(fn, args)
    image = inputs[index].shape
    axes = _checked(spatial_axes, image)
    follower = Follower()
    seen: Seen = tuple(look.first_sight(image, axis) for axis in axes)
    tracks = [Track(value, seen if i == index else None) for i, value in enumerate(inputs)]
    with jax.ensure_compile_time_eval():  # places and matrices are numbers, under jit too
        results = [t for t in follower.run(program, tracks, Context()) if t.seen is not None]
    if len(results) != 1:
        raise ValueError(
            f"{WHO}: fn must return one array that depends on the image; got {len(results)}, of the shapes "
            f"{[t.value.shape for t in results]}. Choose one, for example with lambda x: fn(x)[0]."
        )
    (result,) = results
    assert result.seen is not None
    if spatial_axes is None:
        axes = sorted(follower.spatial) or [*range(1, len(image) - 1)]
        result = result._replace(seen=tuple(result.seen[axis] for axis in axes))
    if not axes:
        raise ValueError(
            f"{WHO}: the image must have spatial axes; got shape {image}. Name them with spatial_axes."
        )
    return _fields(result, axes, image)


def _first_array(fn: Any, args: tuple[Any, ...], argnum: int) -> int:
    """Returns the index of the image among the arrays of a function and its arguments."""
    kinds = jax.Array | np.ndarray | jax.ShapeDtypeStruct
    count = lambda tree: sum(isinstance(leaf, kinds) for leaf in jax.tree.leaves(tree))
    if isinstance(argnum, bool) or not isinstance(argnum, int):
        raise TypeError(f"{WHO}: argnum must be an integer; got {argnum!r}.")
    if not -len(args) <= argnum < len(args):
        raise ValueError(
            f"{WHO}: argnum must be the number of an argument; got argnum={argnum} and {len(args)} arguments."
        )
    argnum %= len(args)
    if not count(args[argnum]):
        raise TypeError(
            f"{WHO}: the argument of the image must hold an array; got one of type "
            f"{type(args[argnum]).__name__} as argument {argnum}. Name the right one with argnum."
        )
    model = fn.__self__ if isinstance(fn, MethodType) else fn
    return count((model, *args[:argnum]))


def _checked(spatial_axes: Sequence[int] | None, shape: tuple[int, ...]) -> list[int]:
    """Returns the axes to follow, not negative."""
    if spatial_axes is None:
        return [*range(len(shape))]
    try:
        axes = [axis + len(shape) if axis < 0 else axis for axis in spatial_axes]
        valid = all(isinstance(axis, int) and 0 <= axis < len(shape) for axis in axes)
    except TypeError:
        axes, valid = [], False
    if not valid or not axes or len({*axes}) < len(axes):
        raise ValueError(
            f"{WHO}: spatial_axes must be different axes of the image; got {spatial_axes!r} for shape {shape}."
        )
    return axes


def _fields(result: Track, axes: Sequence[int], image: tuple[int, ...]) -> tuple[TracedField, ...]:
    """Returns the fields of a result along axes of the image."""
    assert result.seen is not None
    runs = [None if isinstance(sight, str) else _run_of(sight) for sight in result.seen]
    fields = []
    for axis, sight, run in zip(axes, result.seen, runs, strict=True):
        if isinstance(sight, str):
            fields.append(TracedField(inf, None, None, None, inf, sight))
        elif run is None or runs.count(run) > 1:
            pixels = max(0, int((sight[1] - sight[0]).max()) + 1)
            size = inf if pixels == image[axis] else pixels
            how = "no axis" if run is None else f"axis {run}, as others do,"
            reason = f"{how} of the result runs along axis {axis} of the image"
            fields.append(TracedField(size, None, None, None, inf, reason))
        else:
            others = [i for i in range(sight.ndim - 1) if i != run]
            fields.append(_field(_flat(sight, others), axis, image[axis]))
    return tuple(fields)


def _run_of(sight: Sight) -> int | None:
    """Returns the axis of a value that runs along the image, None if there is none."""
    run = max(range(sight.ndim - 1), key=lambda axis: look.span(sight, axis), default=None)
    return run if run is not None and look.span(sight, run) else None


def _flat(sight: Sight, others: Sequence[int]) -> Sight:
    """Joins what a value sees over all axes but one."""
    low, high = sight[0].min(tuple(others)), sight[1].max(tuple(others))
    mark = sight[2]
    for axis in sorted(others, reverse=True):
        numbers = np.array([look.number(tap) for tap in range(mark.shape[axis])])
        mark = (np.moveaxis(mark, axis, -1) * numbers % PRIME).sum(-1) % PRIME
    return np.stack([low, high, mark])


def _field(sight: Sight, axis: int, size: int) -> TracedField:
    """Returns the field of a row of outputs along an axis of the image with `size` pixels."""
    law = _law(sight)
    if law is None:
        raise ValueError(
            f"{WHO}: the image must hold its field and three periods of it besides the borders; axis {axis} with "
            f"{size} pixels and {sight.shape[1]} outputs does not. Give a larger image, as jax.ShapeDtypeStruct it "
            "costs nothing, of a size that resizes change in a simple ratio."
        )
    low, high, _ = sight
    stride = Fraction(law.inputs, law.outputs)
    inner = np.arange(law.start, law.stop)
    inner = inner[low[inner] <= high[inner]]
    width = int((high - low)[inner].max()) + 1
    one = inner[inner < law.start + law.outputs]  # of every phase
    centers = [Fraction(int(low[o] + high[o]), 2) - stride * int(o) for o in one]
    offset = sum(centers, Fraction(0)) / len(centers)
    if law.inputs <= 0:
        reason = f"the result runs backwards along axis {axis} of the image"
        return TracedField(width, stride, offset, abs(law.inputs), inf, reason)
    # The image is a tile itself: as many outputs as its borders spoil, those of any tile spoil.
    overlap = max(0, ceil(law.start * stride), ceil(size - law.stop * stride))
    ends = [*range(law.start), *range(law.stop, sight.shape[1])]
    tiles = [min(o // law.outputs, (size - 1) // law.inputs) * law.inputs for o in ends]
    far = [
        max(int(high[o]) - (tile + law.inputs - 1), tile - int(low[o]))
        for o, tile in zip(ends, tiles, strict=True)
        if low[o] <= high[o]
    ]
    if max(far, default=0) > overlap + width:
        reason = f"outputs at one end of axis {axis} see the other end of the image"
        return TracedField(width, stride, offset, law.inputs, inf, reason)
    overlap = -(-max(overlap, *far, 0) // law.inputs) * law.inputs
    return TracedField(width, stride, offset, law.inputs, overlap, "")


def _law(sight: Sight) -> Law | None:
    """Finds the shortest law that holds without a seam, apart from the borders."""
    low, high, mark = sight
    count = len(low)
    seeing = np.flatnonzero(low <= high)
    for place in (count // 2, count // 4, 3 * count // 4):
        base = seeing[abs(seeing - place).argmin()]
        for outputs in range(1, min(count // 2, count - base - 1) + 1):
            inputs = int(low[base + outputs] - low[base])
            if high[base + outputs] - high[base] != inputs:
                continue
            factor = pow(ROOT, inputs, PRIME)
            if mark[base + outputs] != mark[base] * factor % PRIME:
                continue
            blind = (low > high)[:-outputs]
            same = mark[outputs:] == mark[:-outputs] * factor % PRIME
            for ends in (low, high):
                same &= (ends[outputs:] - ends[:-outputs] == inputs) | blind
            same &= (low > high)[outputs:] == blind
            breaks = np.flatnonzero(~same)
            start = int(max(breaks[breaks < base], default=-1)) + 1
            stop = int(min(breaks[breaks > base], default=len(same)))
            elsewhere = same & ~blind
            elsewhere[start:stop] = False
            # Borders may follow the law by themselves, as where one branch alone reaches them; others are chance.
            most = max(4, (stop - start) // 2)
            if stop - start >= 2 * outputs and elsewhere.sum() <= most:
                return Law(outputs, inputs, start, stop + outputs)
    return None
