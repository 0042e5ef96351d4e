"""Responses through sums, and through products with masks and matrices."""

import functools
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from tconvjax._program import tiles
from tconvjax._program.program import Place, Unknown, Value
from tconvjax._program.reader import Reader
from tconvjax._program.signals import (
    Signal,
    begin,
    enlargements_of,
    origin_of,
    phases_of,
    scaled,
    space_of,
    summed,
    transposed,
    wide,
)
from tconvjax._program.tiles import Unread


def add(reader: Reader, place: Place) -> Signal:
    """Adds responses; a bias is none."""
    signals: list[Signal] = []
    for value, other in (place.inputs, place.inputs[::-1]):
        if reader.is_free(value) and not _is_offset(reader, value, other):
            sign = -1.0 if place.equation.primitive.name == "sub" and len(signals) else 1.0
            signal = reader.signal(value)
            signals.append(signal if sign > 0 else scaled(signal, np.array(-1.0)))
    return summed(signals) if signals else begin(place.results[0])


def _is_offset(reader: Reader, value: Value, other: Value) -> bool:
    """Whether a value is a bias: the same along some axes of the image that it is added to."""
    return reader.along(value) < reader.along(other) and not enlargements_of(reader.signal(value))


def mul(reader: Reader, place: Place) -> Signal:
    """Multiplies an image by a factor that is known, or the same along some axes of the image."""
    inverse = place.equation.primitive.name == "div"
    for image, factor in (place.inputs, place.inputs[::-1])[: 2 - inverse]:
        if not reader.is_free(image):
            continue
        if not reader.is_free(factor):
            numbers = wide(np.asarray(factor.compute()))
        elif reader.along(factor) < reader.along(image):
            numbers = _scale(reader, image, factor)
        else:
            continue
        if not np.isfinite(numbers).all():
            continue
        if inverse:
            numbers = 1 / np.where(numbers == 0, 1, numbers)
        return scaled(reader.signal(image), numbers)
    return reader.nonlinear(place)


def _scale(reader: Reader, image: Value, factor: Value) -> np.ndarray:
    """Returns the numbers of a factor that depends on the arguments; one if they are unknown or do not matter."""
    if enlargements_of(reader.signal(image)):
        try:
            numbers = wide(np.asarray(factor.compute()))
        except Unknown:
            return np.ones(())
        axes = reader.along(factor)
        numbers = numbers[tuple(slice(None if a in axes else 1) for a in range(numbers.ndim))]
        if np.any(numbers):
            return numbers
    return np.ones(())


def select(reader: Reader, place: Place) -> Signal:
    """Picks pixels of images by a known mask."""
    which, *choices = place.inputs
    if reader.is_free(which) or len(choices) != 2:
        return reader.nonlinear(place)
    chosen = np.asarray(which.compute(), np.float32)
    signals = [
        scaled(reader.signal(value), part)
        for value, part in zip(choices, (1 - chosen, chosen), strict=True)
        if reader.is_free(value)
    ]
    return summed(signals)


def product(reader: Reader, place: Place) -> Signal:
    """Follows responses through a matrix along space; one of channels begins a linear part."""
    (contracted, batch) = place.equation.params["dimension_numbers"]
    side = _image_side(reader, place)
    if side is None or batch != ((), ()):
        for value in place.inputs:
            if reader.is_free(value):
                reader.end(reader.used(value))
        return begin(place.results[0])
    image, matrix = place.inputs if side == 0 else place.inputs[::-1]
    mine, theirs = contracted if side == 0 else contracted[::-1]
    kept = [a for a in range(len(image.shape)) if a not in mine]
    made = [a for a in range(len(matrix.shape)) if a not in theirs]
    # For each axis of the result, the axis of the image.
    axes: list[int | None] = (
        [*kept, *(None for _ in made)] if side == 0 else [*(None for _ in made), *kept]
    )
    new = frozenset(a for a, old in enumerate(axes) if old is None)
    reader.complete(image)
    signal = reader.used(image)
    moved = lambda old: frozenset(axes.index(a) for a in old if a in kept)
    resampling = _resampling(reader, image, matrix, mine, theirs)
    if resampling is not None:
        (axis,), (at,) = mine, new
        reader.lanes.product(place, image, [axis if a is None else a for a in axes])

        def along(tile: np.ndarray, matrix: np.ndarray = resampling) -> np.ndarray:
            tile = tiles.expanded(tile, 1 + axis, matrix.shape[0])
            tile = np.moveaxis(np.tensordot(tile, matrix, (1 + axis, 0)), -1, 1 + at)
            return tiles.shortened(tile, 1 + at)

        taps = lambda tile: along(tile, 1.0 * (resampling != 0))
        if enlargements_of(signal) and resampling.shape[0] != resampling.shape[1]:
            signal = reader.ended(image)  # a pattern is resampled
        signal = {
            s: r.each(along, taps, space=moved(r.space) | new, phases=moved(r.phases))
            for s, r in signal.items()
        }
        return _repeated(reader, place, at, matrix, signal)
    reader.lanes.product(place, image, axes)
    apply = functools.partial(
        _mixed_channels,
        image=image,
        matrix=matrix,
        mine=mine,
        theirs=theirs,
        side=side,
    )
    if not enlargements_of(signal):
        phases = new if len(made) > 1 else frozenset()
        return begin(
            place.results[0],
            linear=lambda: [apply(signal)],
            weights=matrix,
            space=moved(space_of(signal)),
            phases=moved(phases_of(signal)) | phases,
        )
    return apply(signal)


def _repeated(reader: Reader, place: Place, axis: int, matrix: Value, signal: Signal) -> Signal:
    """Begins an enlargement by a matrix along space whose rows repeat with a period and leave no holes."""
    period = max(r.gain.shape[1 + axis] for r in signal.values())
    filled = all(r.taps.min() > 0 for r in signal.values())
    if period == 1 or not filled or enlargements_of(signal):
        return signal
    if reader.inserted(place.results[0], [axis], signal) is None:
        return signal
    event = reader.enlarged(place, "matrix", [axis], [period], place.inputs[0])
    event.kernel, event.origin, event.drawn = matrix, origin_of(matrix), True
    return {s: replace(r, enlargements=(event,)) for s, r in signal.items()}


def _mixed_channels(
    signal: Signal,
    *,
    image: Value,
    matrix: Value,
    mine: Any,
    theirs: Any,
    side: int,
) -> Signal:
    """Multiplies the channels of responses with a matrix."""
    numbers = wide(np.asarray(matrix.compute()))
    kept = [a for a in range(len(image.shape)) if a not in mine]
    made = [n for a, n in enumerate(matrix.shape) if a not in theirs]
    numbers = np.moveaxis(numbers, theirs, range(len(theirs)))
    numbers = numbers.reshape(prod(image.shape[a] for a in mine), -1)
    result: Signal = {}
    for source, r in signal.items():
        gain = r.gain
        for a in mine:
            gain = tiles.expanded(gain, 1 + a, image.shape[a])
        gain = gain.transpose(0, *(1 + a for a in (*kept, *mine)))
        gain = gain.reshape(*gain.shape[: 1 + len(kept)], -1)
        if not r.mixed:
            gain = tiles.probed(gain, gain.ndim - 1, gain.shape[-1])
        gain = tiles.fewer(gain, 2.0 * gain.size * numbers.shape[1])
        if gain.size // gain.shape[-1] * numbers.shape[1] > tiles.MOST_ELEMENTS:
            raise Unread
        gain = (gain @ numbers).reshape(*gain.shape[:-1], *made)
        taps = r.taps.max(tuple(1 + a for a in mine), keepdims=True)
        taps = transposed(taps, (*kept, *mine)).reshape(
            1, *(taps.shape[1 + a] for a in kept), *(1 for _ in made)
        )
        order = [*range(len(kept)), *range(len(kept), len(kept) + len(made))]
        if side == 1:
            order = order[len(kept) :] + order[: len(kept)]
        axes = [kept[i] if i < len(kept) else None for i in order]
        moved = lambda old, axes=axes: frozenset(axes.index(a) for a in old if a in axes)
        result[source] = replace(
            r, gain=transposed(gain, order), taps=transposed(taps, order), mixed=True, path=None,
            space=moved(r.space), phases=moved(r.phases),
        )  # fmt: skip
    return result


def _image_side(reader: Reader, place: Place) -> int | None:
    """Returns which side of a product is the image, None if both are."""
    left, right = place.inputs
    for is_image in (
        reader.is_free,
        reader.made.__contains__,
        lambda v: bool(space_of(reader.signal(v))),
    ):
        sides = [is_image(left), is_image(right)]
        if sides[0] != sides[1]:
            return sides.index(True)
    if left in reader.made:
        return None
    return int(len(right.shape) > len(left.shape))


def _resampling(
    reader: Reader, image: Value, matrix: Value, mine: Any, theirs: Any
) -> np.ndarray | None:
    """Returns a matrix that acts along an axis of space: a convolution has told the axis, or most of it is zero."""
    told = bool(mine) and mine[0] in space_of(reader.signal(image))
    if len(mine) != 1 or len(matrix.shape) != 2 or (reader.is_free(matrix) and not told):
        return None
    numbers = wide(np.asarray(matrix.compute()))
    numbers = numbers if theirs[0] == 0 else numbers.T
    sparse = min(numbers.shape) > 2 and (numbers == 0).mean() >= 0.5
    return numbers if told or sparse else None
