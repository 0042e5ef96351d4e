"""Convolutions of a program, however they are written."""

from typing import Any, NamedTuple

from tconvjax._geometry import Geometry
from tconvjax._program.program import Value
from tconvjax._program.reading import read
from tconvjax._program.zeros import Side, Spread, Thinned, spread, whole

MOST_VALUES = 256  # visited in the search for the convolutions that made an image


class Convolution(NamedTuple):
    """A convolution of a program, read as a face.

    Attributes:
      face: 'gather', 'paint' or 'correlate'.
      geometry: geometry of the face.
      image: the array that it reads.
      kernel: its weights.
      space: spatial axes of the result.
      features: feature axis of the result.
    """

    face: str
    geometry: Geometry
    image: Value
    kernel: Value
    space: tuple[int, ...]
    features: int


def convolution_of(equation: Any, inputs: tuple[Value, ...]) -> Convolution | None:
    """Reads an equation as a convolution, if it is one."""
    name = equation.primitive.name
    if name.startswith("tconv_"):
        return _of_this_library(equation, inputs)
    if name == "dot_general":
        return _dense(equation, inputs)
    return _of_xla(equation, inputs) if name == "conv_general_dilated" else None


def _of_this_library(equation: Any, inputs: tuple[Value, ...]) -> Convolution:
    """Reads one of the faces, whose arrays have a stack axis."""
    geometry = equation.params["call"].geometry
    face = equation.primitive.name.removeprefix("tconv_")
    space = tuple(range(2, 2 + geometry.rank))
    return Convolution(face, geometry, inputs[0], inputs[1], space, 2 + geometry.rank)


def _of_xla(equation: Any, inputs: tuple[Value, ...]) -> Convolution | None:
    params, image = equation.params, whole(inputs[0])
    within = spread(inputs[0])
    undilated = within and without_zeros(params, within, whole(inputs[1]))
    if within and undilated:
        image, params = within, undilated
    # Kernel gradients with strides dilate rhs. Undilated, rhs is the kernel of a layer, even if the image is smaller.
    plain = max(params["rhs_dilation"], default=1) == 1
    out = equation.outvars[0].aval.shape
    reading = read(image.shape, inputs[1].shape, out, params, kernel_is_rhs=plain)
    if reading is None:
        return None
    arrays, _, _, geometry = reading
    role = {name: role for role, name in arrays.items()}["out"]
    _, features, *space = params["dimension_numbers"].out_spec
    face = {"y": "gather", "x": "paint", "w": "correlate"}[role]
    source, kernel = image.image, inputs[1]
    if arrays["w"] == "lhs":
        source, kernel = kernel, source
    return Convolution(face, geometry, source, kernel, tuple(space), features)


def without_zeros(params: dict[str, Any], lhs: Spread, rhs: Spread) -> dict[str, Any] | None:
    """Returns the parameters of a convolution that reads two images without the zeros between their pixels.

    None if there are zeros along other axes than those of space. An index s·a + d·o − low = t·m of `reading` with
    m = (interior + 1)·m' + side.low has the low padding low + t·side.low; the same for o, with the other sign.
    """
    numbers, padding = params["dimension_numbers"], params["padding"]
    dilations = {}
    for name, sign, image in (("lhs", 1, lhs), ("rhs", -1, rhs)):
        batch, features, *space = (image.pads[axis] for axis in getattr(numbers, f"{name}_spec"))
        if batch != Side() or features != Side():
            return None
        old = params[f"{name}_dilation"]
        dilations[f"{name}_dilation"] = tuple(
            n * (side.interior + 1) for n, side in zip(old, space, strict=True)
        )
        padding = tuple(
            (low + sign * n * side.low, high + sign * n * side.high)
            for (low, high), n, side in zip(padding, old, space, strict=True)
        )
    return params | dilations | {"padding": padding}


def without_rest(params: dict[str, Any], thin: Thinned) -> dict[str, Any] | None:
    """Returns the parameters of a convolution that computes the pixels of a thinned result alone.

    None if pixels are left out along other axes than those of space. Their indices are a = start + step·a'; the high
    padding, which follows from the sizes, is not changed.
    """
    batch, features, *space = params["dimension_numbers"].out_spec
    picks = thin.along_axes()
    for axis in (batch, features):
        if picks[axis][:3] != (0, 1, thin.result.shape[axis]):
            return None
    strides = params["window_strides"]
    sides = zip(params["padding"], strides, (picks[axis] for axis in space), strict=True)
    return params | {
        "window_strides": tuple(s * picks[axis][1] for s, axis in zip(strides, space, strict=True)),
        "padding": tuple((low - s * start, high) for (low, high), s, (start, _, _) in sides),
    }


def _dense(equation: Any, inputs: tuple[Value, ...]) -> Convolution | None:
    """Reads a matrix product over the last axis as a convolution with one tap."""
    (contracted, batch) = equation.params["dimension_numbers"]
    image, kernel = inputs
    rank = len(image.shape) - 2
    if batch != ((), ()) or contracted[0] != (rank + 1,) or len(kernel.shape) != 2 or rank < 1:
        return None
    ones, size = (1,) * rank, image.shape[1:-1]
    geometry = Geometry(size, size, ones, ones, ones, (0,) * rank)
    space = tuple(range(1, rank + 1))
    return Convolution("gather", geometry, image, kernel, space, rank + 1)


def convolutions_before(value: Value) -> list[Convolution]:
    """Returns the convolutions from which elementwise operations, sums among them, make an image."""
    made: list[Convolution] = []
    seen = {value}
    waiting = [(value, 0)]  # with the number of leading axes of size 1 that were dropped since
    while waiting and len(seen) < MOST_VALUES:
        value, dropped = waiting.pop()
        if value.equation is None:
            continue
        convolution = convolution_of(value.equation, value.inputs)
        if convolution is not None:
            space = tuple(axis - dropped for axis in convolution.space)
            features = convolution.features - dropped
            made.append(convolution._replace(space=space, features=features))
            continue
        for before in value.inputs:
            drops = before.shape == (1, *value.shape)
            if (drops or before.shape == value.shape) and before not in seen:
                seen.add(before)
                waiting.append((before, dropped + drops))
    return made
