"""Zeros inserted between the pixels of an image, and pixels left out of a result, however a program writes them.

A `pad` with interior padding, a scatter into zeros, a stack with zeros, or a `pad` of new axes and the reshape that
merges them: all put an image into a larger one of zeros,

    large = lax.pad(small, 0, pads)        small = arrange(image)

and so do transposes, casts, axes of size 1 and further pads and crops of it. Their adjoints, in gradients, keep every
s-th pixel of a result: a strided `slice`, with the same operations around it.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tconvjax._program.program import MARKS, Unknown, Value, results_of

MOST_VALUES = 256  # visited in the search for the numbers that make a constant
SAME_NUMBERS = {"broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"}
# Operations on each number alone that take zero to zero.
CASTS = {"convert_element_type", "copy", "copy_p", "reduce_precision"}

Array = jax.Array
Arrange = Callable[[Array], Array]


class Side(NamedTuple):
    """One axis of a spread image: zeros before, behind and between its pixels, as in `lax.pad`; none is negative."""

    low: int = 0
    high: int = 0
    interior: int = 0


class Spread(NamedTuple):
    """An image with zeros between its pixels.

    Attributes:
      image: the image as the program has it.
      arrange: brings it into the axes and the dtype of the spread image.
      shape: its shape then.
      pads: the zeros along each axis.
    """

    image: Value
    arrange: Arrange
    shape: tuple[int, ...]
    pads: tuple[Side, ...]

    def then(self, step: Arrange, shape: Sequence[int], pads: Sequence[Side]) -> "Spread":
        """Returns the image after one more step of its arrangement."""
        before = self.arrange
        return Spread(self.image, lambda x: step(before(x)), tuple(shape), tuple(pads))


def whole(image: Value) -> Spread:
    """Returns an image as a spread one, without zeros."""
    return Spread(image, lambda x: x, image.shape, (Side(),) * len(image.shape))


def spread(value: Value) -> Spread | None:
    """Returns the image between whose pixels a value has zeros, or None if it has none that were inserted."""
    found = _placed(value)
    return found if found and any(side.interior for side in found.pads) else None


def _placed(value: Value) -> Spread | None:
    """Returns the image that a value has within zeros, if any operation has put it there."""
    value = opened_value(value)
    if value.made_by in CASTS:
        return _cast(value, _placed(value.inputs[0]))
    read = _READERS.get(value.made_by)
    return read(value) if read else None


def opened_value(value: Value) -> Value:
    """Returns the value inside of a `jit` that is a value outside."""
    while value.made_by == "jit":
        value = results_of(value.equation.params["jaxpr"], value.inputs)[value.index]
    return value


def _padded(large: Spread | None, pads: Sequence[Sequence[int]]) -> Spread | None:
    """Returns a spread image after one more `lax.pad` with zeros."""
    if large is None or not _known(*(n for pad in pads for n in pad)):
        return None
    sides, crops = [], []
    for size, old, (low, high, interior) in zip(large.shape, large.pads, pads, strict=True):
        step = interior + 1
        ends = [int(low) + step * old.low, int(high) + step * old.high]
        step *= old.interior + 1
        # Pixels that are cropped away do not come back when zeros are added.
        crop = [-(min(end, 0) // step) for end in ends]
        if any(crop) and not (_known(size) and sum(crop) < size):
            return None
        crops.append(crop)
        ends = [end + step * n for end, n in zip(ends, crop, strict=True)]
        sides.append(Side(ends[0], ends[1], int(step) - 1))
    if not any(map(any, crops)):
        return large._replace(pads=tuple(sides))
    starts = [a for a, _ in crops]
    limits = [n - b for n, (_, b) in zip(large.shape, crops, strict=True)]
    shape = [b - a for a, b in zip(starts, limits, strict=True)]
    return large.then(lambda x: lax.slice(x, starts, limits), shape, sides)


def _pad(value: Value) -> Spread | None:
    image, fill = value.inputs
    if not is_zero(fill):
        return None
    return _padded(_placed(image) or whole(image), value.equation.params["padding_config"])


def _concatenate(value: Value) -> Spread | None:
    axis = value.equation.params["dimension"]
    index = _one_of_zeros(value.inputs)
    if index is None:
        return None
    image = value.inputs[index]
    low = sum(v.shape[axis] for v in value.inputs[:index])
    pads = [(0, 0, 0)] * len(value.shape)
    pads[axis] = (low, value.shape[axis] - low - image.shape[axis], 0)
    return _padded(_placed(image) or whole(image), pads)


def _stack(value: Value) -> Spread | None:
    axis = value.equation.params["axis"]
    index = _one_of_zeros(value.inputs)
    if index is None:
        return None
    image = _placed(value.inputs[index]) or whole(value.inputs[index])
    shape, pads = list(image.shape), list(image.pads)
    shape.insert(axis, 1)
    pads.insert(axis, Side(index, len(value.inputs) - 1 - index))
    return image.then(lambda x: lax.expand_dims(x, (axis,)), shape, pads)


def _one_of_zeros(values: Sequence[Value]) -> int | None:
    """Returns the index of the only value that is not known to be zero, if there is one."""
    filled = [i for i, value in enumerate(values) if not is_zero(value)]
    return filled[0] if len(filled) == 1 else None


def _scatter(value: Value) -> Spread | None:
    """Reads numbers that are set in zeros, or added to them, along lines with equal steps."""
    zeros, indices, image = value.inputs
    numbers = value.equation.params["dimension_numbers"]
    if (
        numbers.operand_batching_dims
        or not _known(*image.shape, *value.shape)
        or not is_zero(zeros)
    ):
        return None
    places = constant(indices)
    if places is None or not places.size:
        return None
    windows = iter(numbers.update_window_dims)
    lines = [n for n in range(len(image.shape)) if n not in numbers.update_window_dims]
    order: list[int | None] = []  # the axis of the image that lies along each axis
    pads = []
    for axis, size in enumerate(value.shape):
        at = np.zeros(places.shape[:-1], int)
        if axis in numbers.scatter_dims_to_operand_dims:
            at = places[..., numbers.scatter_dims_to_operand_dims.index(axis)]
        varying = [n for n in range(at.ndim) if np.diff(at, axis=n).any()]
        low, step = int(at.flat[0]), 1
        if axis not in numbers.inserted_window_dims:
            order.append(next(windows))
            if varying:
                return None
        elif varying:
            order.append(lines[varying[0]])
            steps = np.unique(np.diff(at, axis=varying[0]))
            if len(varying) > 1 or len(steps) > 1:
                return None
            step = int(steps[0])
        else:
            order.append(None)
        count = 1 if order[-1] is None else image.shape[order[-1]]
        high = size - 1 - low - step * (count - 1)
        if step < 1 or low < 0 or high < 0:
            return None
        pads.append(Side(low, high, step - 1))
    used = [axis for axis in order if axis is not None]
    rest = [axis for axis in range(len(image.shape)) if axis not in used]
    if len({*used}) < len(used) or any(image.shape[axis] != 1 for axis in rest):
        return None
    shape = [1 if axis is None else image.shape[axis] for axis in order]
    return whole(image).then(
        lambda x: lax.reshape(lax.transpose(x, (*used, *rest)), shape), shape, pads
    )


def _cast(value: Value, large: Spread | None) -> Spread | None:
    equation = value.equation
    return large and large.then(
        lambda x: equation.primitive.bind(x, **equation.params), large.shape, large.pads
    )


def _transpose(value: Value) -> Spread | None:
    large, order = _placed(value.inputs[0]), value.equation.params["permutation"]
    return large and large.then(
        lambda x: lax.transpose(x, order),
        [large.shape[axis] for axis in order],
        [large.pads[axis] for axis in order],
    )


def _rev(value: Value) -> Spread | None:
    large, axes = _placed(value.inputs[0]), value.equation.params["dimensions"]
    if large is None:
        return None
    pads = list(large.pads)
    for axis in axes:
        low, high, interior = pads[axis]
        pads[axis] = Side(high, low, interior)
    return large.then(lambda x: lax.rev(x, axes), large.shape, pads)


def _slice(value: Value) -> Spread | None:
    params, (image,) = value.equation.params, value.inputs
    if set(params["strides"] or (1,)) != {1}:
        return None
    ends = zip(params["start_indices"], params["limit_indices"], image.shape, strict=True)
    return _padded(_placed(image), [(-low, high - size, 0) for low, high, size in ends])


def _broadcast(value: Value) -> Spread | None:
    """Reads new axes, in which an image is repeated."""
    large, axes = _placed(value.inputs[0]), value.equation.params["broadcast_dimensions"]
    if large is None:
        return None
    shape, pads = list(value.shape), [Side()] * len(value.shape)
    for axis, old, size, side in zip(
        axes, value.inputs[0].shape, large.shape, large.pads, strict=True
    ):
        if old == value.shape[axis]:
            shape[axis], pads[axis] = size, side
    return large.then(lambda x: lax.broadcast_in_dim(x, shape, axes), shape, pads)


def _reshape(value: Value) -> Spread | None:
    """Reads axes of size 1, and axes of zeros around one pixel each that join the axis before them."""
    large = _placed(value.inputs[0])
    groups = large and _groups(value.inputs[0].shape, value.shape)
    if large is None or not groups:
        return None
    shape, pads = [1] * len(value.shape), [Side()] * len(value.shape)
    for old, new in groups:
        if all(large.pads[axis] == Side() for axis in old):
            for axis in new:
                shape[axis] = value.shape[axis]
            continue
        sizes = [large.shape[axis] for axis in old]
        if len(new) > 1 or set(sizes[1:]) - {1}:
            return None
        first, *others = (large.pads[axis] for axis in old)
        for side in others:
            ratio = side.low + 1 + side.high
            first = Side(
                first.low * ratio + side.low,
                first.high * ratio + side.high,
                (first.interior + 1) * ratio - 1,
            )
        shape[new[0]], pads[new[0]] = sizes[0], first
    return large.then(lambda x: lax.reshape(x, shape), shape, pads)


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """Returns the smallest groups of axes that a reshape takes to each other, without axes of size 1."""
    if not _known(*old, *new) or 0 in old:
        return None
    groups = []
    rest = [axis for axis, n in enumerate(new) if n != 1]
    left: list[int] = []
    for axis in (axis for axis, n in enumerate(old) if n != 1):
        left.append(axis)
        count = next(
            (
                i
                for i in range(1, len(rest) + 1)
                if prod(new[a] for a in rest[:i]) == prod(old[a] for a in left)
            ),
            0,
        )
        if count:
            groups.append((left, rest[:count]))
            left, rest = [], rest[count:]
    return groups


_READERS: dict[str, Callable[[Value], Spread | None]] = {
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "transpose": _transpose,
    "rev": _rev,
    "slice": _slice,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
}


# Pixels left out.


class Pick(NamedTuple):
    """One axis of a thinned result: some of its pixels, at equal distances, and zeros before and behind them."""

    axis: int | None  # of the result, None for a new one
    start: int
    step: int
    size: int
    low: int = 0
    high: int = 0


class Thinned(NamedTuple):
    """Some of the pixels of the result of a convolution.

    Attributes:
      result: the result.
      picks: the pixels along each axis of the value that holds them.
      casts: what is done to each number alone.
    """

    result: Value
    picks: tuple[Pick, ...]
    casts: Arrange

    def along_axes(self) -> list[tuple[int, int, int]]:
        """Returns start, step and number of the pixels along each axis of the result."""
        found = {pick.axis: (pick.start, pick.step, pick.size) for pick in self.picks}
        return [found.get(axis, (0, 1, 1)) for axis in range(len(self.result.shape))]

    def arrange(self, pixels: Array) -> Array:
        """Brings the pixels into the axes and the dtype of the value that holds them."""
        axes = [pick.axis for pick in self.picks if pick.axis is not None]
        rest = [axis for axis in range(pixels.ndim) if axis not in axes]
        ordered = lax.transpose(pixels, (*axes, *rest))
        placed = self.casts(lax.reshape(ordered, [pick.size for pick in self.picks]))
        pads = [(pick.low, pick.high, 0) for pick in self.picks]
        return lax.pad(placed, jnp.zeros((), placed.dtype), pads) if any(map(any, pads)) else placed


def thinned(value: Value, alone: Callable[[Value], bool]) -> Thinned | None:
    """Returns the convolution of whose result a value holds every s-th pixel, if it is one.

    Args:
      value: the result of a strided `slice`.
      alone: whether nothing else reads a value; what is left out of others is calculated in any case.
    """
    found = _picked(value, alone)
    return found if found and any(pick.step > 1 for pick in found.picks) else None


def _picked(value: Value, alone: Callable[[Value], bool]) -> Thinned | None:
    if value.made_by == "jit" and len(value.equation.outvars) == 1:
        return _picked(opened_value(value), alone)
    name, params = value.made_by, value.equation.params if value.equation else {}
    if name == "conv_general_dilated":
        whole = (Pick(axis, 0, 1, n) for axis, n in enumerate(value.shape))
        return Thinned(value, tuple(whole), lambda x: x) if _known(*value.shape) else None
    if name not in _PICKERS and name not in CASTS:
        return None
    image = value.inputs[0]
    found = _picked(image, alone) if alone(image) else None
    if found is None:
        return None
    if name in CASTS:
        casts, equation = found.casts, value.equation
        return found._replace(casts=lambda x: equation.primitive.bind(casts(x), **params))
    picks = _PICKERS[name](value, found.picks)
    return found._replace(picks=tuple(picks)) if picks else None


def _sliced(pick: Pick, start: int, step: int, count: int) -> Pick:
    """Returns pixels start, start + step, .. of an axis."""
    first, end = (
        min(max(-((start - edge) // step), 0), count) for edge in (pick.low, pick.low + pick.size)
    )
    return Pick(
        pick.axis,
        pick.start + pick.step * (start + step * first - pick.low),
        pick.step * step,
        end - first,
        first,
        count - end,
    )


def _slice_picks(value: Value, picks: Sequence[Pick]) -> list[Pick]:
    params = value.equation.params
    strides = params["strides"] or (1,) * len(picks)
    starts = zip(picks, params["start_indices"], strides, value.shape, strict=True)
    return [_sliced(pick, int(start), int(step), n) for pick, start, step, n in starts]


def _pad_picks(value: Value, picks: Sequence[Pick]) -> list[Pick]:
    config = value.equation.params["padding_config"]
    if not is_zero(value.inputs[1]) or any(interior for _, _, interior in config):
        return []
    sides = zip(picks, config, value.shape, strict=True)
    return [_sliced(pick, -int(low), 1, size) for pick, (low, _, _), size in sides]


def _transpose_picks(value: Value, picks: Sequence[Pick]) -> list[Pick]:
    return [picks[axis] for axis in value.equation.params["permutation"]]


def _axes_of_one(value: Value, picks: Sequence[Pick]) -> list[Pick]:
    """Reads axes of size 1 that come or go, be it in a sum over them."""
    image = value.inputs[0]
    kept = [pick for pick, n in zip(picks, image.shape, strict=True) if n != 1]
    if [n for n in image.shape if n != 1] != [n for n in value.shape if n != 1]:
        return []
    if any(pick.size != 1 for pick, n in zip(picks, image.shape, strict=True) if n == 1):
        return []
    ordered = iter(kept)
    return [Pick(None, 0, 1, 1) if n == 1 else next(ordered) for n in value.shape]


_PICKERS: dict[str, Callable[[Value, Sequence[Pick]], list[Pick]]] = {
    "slice": _slice_picks,
    "pad": _pad_picks,
    "transpose": _transpose_picks,
    "reshape": _axes_of_one,
    "squeeze": _axes_of_one,
    "broadcast_in_dim": _axes_of_one,
    "reduce_sum": _axes_of_one,
}


# Constants.


def is_zero(value: Value) -> bool:
    """Whether a value is known to be the number zero, or an array filled with it."""
    value = opened_value(value)
    while value.made_by in SAME_NUMBERS | MARKS:
        value = opened_value(value.inputs[value.index])
    numbers = constant(value) if value.shape == () else None
    return numbers is not None and not numbers.any()


def constant(value: Value) -> np.ndarray | None:
    """Returns the numbers of a value that depends on no input of the program and is cheap to compute."""
    leaves = [leaf.given for leaf in _leaves(value)]
    if any(leaf is None or isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return None
    try:
        with jax.ensure_compile_time_eval():
            return np.asarray(value.compute())
    except Unknown:
        return None


def _leaves(value: Value) -> Iterator[Value]:
    """Yields the values from which others are computed, the last one of them unknown if they are too many."""
    seen, waiting = {value}, [value]
    while waiting:
        value = waiting.pop()
        if value.equation is None or len(seen) > MOST_VALUES:
            yield value
        new = {*value.inputs} - seen
        seen |= new
        waiting += new


def _known(*sizes: object) -> bool:
    """Whether sizes are numbers, not symbolic dimensions of `jax.export`."""
    return all(isinstance(n, int | np.integer) for n in sizes)
