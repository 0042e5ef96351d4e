"""Pixel shuffles of a program: reshapes that move channels into space.

An index along an axis is a number. A reshape splits it into digits and joins these to others, a transpose reorders
them; a pixel shuffle joins a digit of the channels, as the fast one, to a digit of space.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

from tconvjax._program.convolutions import Convolution, convolutions_before
from tconvjax._program.program import Place, Value
from tconvjax._program.tiles import Unread, parts


class Digit(NamedTuple):
    """A digit of the index along an axis of an image.

    Attributes:
      axis: axis of the image.
      size: number of values.
    """

    axis: int
    size: int


Digits = list[list[Digit]]  # of each axis, slow ones first, without those of size 1


class Shuffle(NamedTuple):
    """A pixel shuffle.

    Attributes:
      source: the image whose channels go into space.
      channel: axis of the channels.
      convolutions: the convolutions that made it.
      axes: axes of the result that become larger.
      factors: factors of their enlargement.
    """

    source: Value
    channel: int
    convolutions: list[Convolution]
    axes: tuple[int, ...]
    factors: tuple[int, ...]


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
        convolutions = convolutions_before(source)
        spatial = [c for c in convolutions if max(c.geometry.kernel_size) > 1]
        alone = not any(value.made_by == "transpose" for value in chain[:steps])
        if alone and not (spatial and len(place.shape) == len(source.shape)):
            continue  # a reshape without a transpose, such as of attention heads or detector scores
        for channel in _channels(source, convolutions, joined.values()):
            minors = _minor_digits(joined, channel)
            split = [d for axis in after for d in axis if d.axis == channel]
            majors = [after[axis][0] for axis in minors]
            # Not heads of an attention or a batch.
            likely = bool(minors and spatial) or (len(minors) > 1 and len(split) > 1)
            certain = (
                bool(convolutions)
                or channel == len(source.shape) - 1
                or _is_before_space(source, channel, majors)
            )
            if likely and certain and (list(minors) != [0] or len(source.shape) == 2):
                return Shuffle(
                    source,
                    channel,
                    [c for c in convolutions if c.features == channel],
                    tuple(minors),
                    tuple(d.size for d in minors.values()),
                )
    return None


def _channels(
    source: Value, convolutions: Sequence[Convolution], joined: Iterable[Sequence[Digit]]
) -> Iterable[int]:
    """Returns the axes of an image that may be its channels: those of the convolutions, or the last before others."""
    if convolutions:
        return {c.features for c in convolutions}
    return dict.fromkeys([len(source.shape) - 1, *(digits[-1].axis for digits in joined)])


def _minor_digits(joined: dict[int, list[Digit]], channel: int) -> dict[int, Digit]:
    """Returns by axis the channel digits, each joined to one spatial digit; none if any is joined otherwise."""
    minors = {}
    for axis, digits in joined.items():
        of_channel = [d.axis == channel for d in digits]
        if any(of_channel):
            if of_channel != [False, True]:
                return {}
            minors[axis] = digits[1]
    return minors


def _is_before_space(source: Value, channel: int, space: Sequence[Digit]) -> bool:
    """Whether the axes behind an axis are whole and all spatial, as in layouts with channels first."""
    others = sum(n != 1 for n in source.shape) - 1
    whole = all(d.axis > channel and d.size == source.shape[d.axis] for d in space)
    return whole and (channel > 0 or len(space) == others)


# Digits.


def _digits(shape: Sequence[int]) -> Digits:
    return [[Digit(axis, n)] if n != 1 else [] for axis, n in enumerate(shape)]


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
    whole = [d for axis in digits for d in axis]
    try:
        groups = parts([d.size for d in whole], shape)
    except Unread:
        return None
    return [[Digit(whole[part.axis].axis, part.size) for part in group] for group in groups]
