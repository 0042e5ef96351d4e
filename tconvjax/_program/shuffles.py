"""Pixel shuffles of a program: reshapes that move channels into space.

An index along an axis is a number. A reshape splits it into digits and joins these to others, a transpose reorders
them; a pixel shuffle joins a digit of the channels, as the fast one, to a digit of space.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

from tconvjax._program.convolutions import Layer, convolutions_before
from tconvjax._program.program import Place, Value


class Digit(NamedTuple):
    """A digit of the index along an axis of an image.

    Attributes:
      axis: of the image.
      weight: by how much the index grows with the digit.
      size: number of values.
    """

    axis: int
    weight: int
    size: int


Digits = list[list[Digit]]  # of each axis, slow ones first, without those of size 1


class Shuffle(NamedTuple):
    """A pixel shuffle.

    Attributes:
      source: the image whose channels go into space.
      layers: the convolutions that made it.
      axes: of the result that become larger.
      factors: of their enlargement.
      split: sizes of the digits of the channels, slow ones first.
      phases: which of these become the phases of `axes`.
    """

    source: Value
    layers: list[Layer]
    axes: tuple[int, ...]
    factors: tuple[int, ...]
    split: tuple[int, ...]
    phases: tuple[int, ...]


def pixel_shuffle(place: Place) -> Shuffle | None:
    """Reads a reshape as the last step of a pixel shuffle, if it is one."""
    chain = [place.inputs[0]]
    while _reorders(chain[-1]):
        chain.append(chain[-1].inputs[0])
    whole = _regrouped(_digits(chain[0].shape), place.shape)
    for steps, source in enumerate(chain):
        digits: Digits | None = _digits(source.shape)
        for value in reversed(chain[:steps]):
            digits = digits and _reordered(digits, value)
        after = digits and _regrouped(digits, place.shape)
        if not whole or not after:
            return None
        joined = {axis: d for axis, d in enumerate(after) if len(whole[axis]) > 1}
        layers = convolutions_before(source)
        spatial = [a for a in layers if max(a.geometry.kernel_size) > 1]
        alone = not any(value.made_by == "transpose" for value in chain[:steps])
        if alone and not (spatial and len(place.shape) == len(source.shape)):
            continue  # reshapes without a transpose, as of an attention's heads and a detector's scores
        for channel in _channels(source, layers, joined.values()):
            phases = _phases(joined, channel)
            split = sorted((d for axis in after for d in axis if d.axis == channel), key=_weight)
            majors = [after[axis][0] for axis in phases]
            # Rather than heads of an attention or a batch.
            likely = bool(phases and spatial) or (len(phases) > 1 and len(split) > 1)
            named = (
                bool(layers) or channel == len(source.shape) - 1 or _first(source, channel, majors)
            )
            if likely and named and (list(phases) != [0] or len(source.shape) == 2):
                return Shuffle(
                    source,
                    [layer for layer in layers if layer.features == channel],
                    tuple(phases),
                    tuple(d.size for d in phases.values()),
                    tuple(d.size for d in split),
                    tuple(map(split.index, phases.values())),
                )
    return None


def _channels(
    source: Value, layers: Sequence[Layer], joined: Iterable[Sequence[Digit]]
) -> Iterable[int]:
    """Returns which axes of an image may be its channels: those of the convolution, or the last before others."""
    if layers:
        return {layer.features for layer in layers}
    return dict.fromkeys([len(source.shape) - 1, *(digits[-1].axis for digits in joined)])


def _phases(joined: dict[int, list[Digit]], channel: int) -> dict[int, Digit]:
    """Returns the digits of channels that are joined to one of space each; none, if any is joined to something else."""
    phases = {}
    for axis, digits in joined.items():
        of_channel = [d.axis == channel for d in digits]
        if any(of_channel):
            if of_channel != [False, True]:
                return {}
            phases[axis] = digits[1]
    return phases


def _first(source: Value, channel: int, space: Sequence[Digit]) -> bool:
    """Whether all axes behind an axis, whole, are those of space, as where channels come first."""
    others = sum(n != 1 for n in source.shape) - 1
    whole = all(d.axis > channel and d.size == source.shape[d.axis] for d in space)
    return whole and (channel > 0 or len(space) == others)


# Digits.


def _digits(shape: Sequence[int]) -> Digits:
    return [[Digit(axis, 1, n)] if n != 1 else [] for axis, n in enumerate(shape)]


def _weight(digit: Digit) -> int:
    return -digit.weight


def _reorders(value: Value) -> bool:
    """Whether a value has the numbers of another, in another shape or order."""
    if value.made_by == "broadcast_in_dim":
        return prod(value.shape) == prod(value.inputs[0].shape)
    return value.made_by in {"reshape", "transpose", "squeeze"}


def _reordered(digits: Digits, value: Value) -> Digits | None:
    """Follows digits through the operation that made a value."""
    if value.made_by == "transpose":
        return [digits[axis] for axis in value.equation.params["permutation"]]
    return _regrouped(digits, value.shape)


def _regrouped(digits: Digits, shape: Sequence[int]) -> Digits | None:
    """Splits and joins digits to the axes of another shape; None where a digit would have to be cut unevenly."""
    rest = [d for axis in digits for d in axis]
    groups: Digits = []
    for need in shape:
        groups.append([])
        while need != 1:
            if need == 0 or not rest:
                return None
            axis, weight, size = rest.pop(0)
            if need % size == 0:  # as symbolic sizes say too
                groups[-1].append(Digit(axis, weight, size))
                need //= size
            elif size % need == 0:
                groups[-1].append(Digit(axis, weight * (size // need), need))
                rest.insert(0, Digit(axis, weight, size // need))
                need = 1
            else:
                return None
    return groups
