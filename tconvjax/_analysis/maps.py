"""Connections between the pixels of two images, through one layer or many: counts, fields, centers.

Every axis is treated on its own. Layers are given in integers, by their geometry alone.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tconvjax import _geometry as geo
from tconvjax._analysis.counts import resolved
from tconvjax._geometry import Geometry, Ints, Padding
from tconvjax._ops import phases


class Layer(NamedTuple):
    """One layer of a network in integers, with the arguments of `conv_transpose` or, `transpose=False`, of `conv`.

    A pool is a convolution of its window: `Layer(2, 2, "VALID", transpose=False)`.
    """

    kernel_size: Ints
    strides: Ints = 1
    padding: Padding = "SAME"
    kernel_dilation: Ints = 1
    output_padding: Ints | None = None
    transpose: bool = True


class CenterMap(NamedTuple):
    """Input i of a layer or network is centered at output `scale·i + offset`, per axis."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def shift(self) -> tuple[float, ...]:
        """Output pixels by which the image is displaced; 0 is half-pixel aligned."""
        return tuple(o - (s - 1) / 2 for s, o in zip(self.scale, self.offset, strict=True))

    def then(self, second: "CenterMap") -> "CenterMap":
        """Returns the map of this layer and then the `second`; its `shift` is the drift of both together."""
        if len(self.scale) != len(second.scale):
            raise ValueError(
                f"CenterMap.then: both maps must have the same number of axes; got scale={self.scale} and then "
                f"scale={second.scale}."
            )
        return CenterMap(
            tuple(b * a for a, b in zip(self.scale, second.scale, strict=True)),
            tuple(
                b * o + p for o, b, p in zip(self.offset, second.scale, second.offset, strict=True)
            ),
        )


def overlap_map(
    input_shape: Sequence[int],
    kernel_size: Ints,
    strides: Ints = 1,
    *,
    padding: Padding = "SAME",
    output_padding: Ints | None = None,
    output_shape: Sequence[int] | None = None,
    kernel_dilation: Ints = 1,
) -> np.ndarray:
    """Counts the taps that paint every output pixel, borders included.

    Args:
      input_shape: spatial shape of the input, one integer per axis; fixes the rank.
      kernel_size: as in `conv_transpose`, like all other arguments; an int serves all axes.
      strides: see there.
      padding: see there.
      output_padding: see there.
      output_shape: see there.
      kernel_dilation: see there.

    Returns:
      Integers in the spatial shape of the output.

    Raises:
      ValueError, TypeError: as `conv_transpose`.

    Example:
      >>> overlap_map((4,), 3, strides=2, padding=1)
      array([1, 2, 1, 2, 1, 2, 1])

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003.
    """
    shape = geo.ints("overlap_map", "input_shape", input_shape, minimum=1)
    geometry = geo.conv_transpose_geometry(
        "overlap_map",
        shape,
        geo.per_axis("overlap_map", "kernel_size", kernel_size, len(shape)),
        strides=strides,
        padding=padding,
        output_padding=output_padding,
        output_shape=output_shape,
        kernel_dilation=kernel_dilation,
    )
    geo.fits("overlap_map", geometry.big, geo.MOST_COUNTS)
    ones = [np.ones(n, int) for n in shape]
    return phases.outer([_carried(v, geometry, i, transpose=True) for i, v in enumerate(ones)])


def stacked_overlap(input_shape: Sequence[int], layers: Sequence[Layer]) -> np.ndarray:
    """Counts the ways from the input to every output pixel through several layers, borders included.

    The counts are the output of layers of ones for an input of ones. The patterns of stacked layers multiply, with
    periods of all products of strides from a layer to the output.

    Args:
      input_shape: spatial shape of the input, one integer per axis; fixes the rank.
      layers: from the input to the output.

    Returns:
      Integers in the spatial shape of the output.

    Raises:
      ValueError: as `conv_transpose` and `conv`.
      TypeError: for layers that are not a sequence of `Layer`.

    Example:
      >>> stacked_overlap((4,), [Layer(3, 2, padding=0)] * 2)[4:12]  # period 4
      array([3, 2, 3, 1, 3, 2, 3, 1])

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003.
    """
    who = "stacked_overlap"
    shape = geo.ints(who, "input_shape", input_shape, minimum=1)
    geo.fits(who, shape, geo.MOST_COUNTS)
    carried = _through(who, [np.ones(n, int) for n in shape], layers)
    geo.fits(who, [len(counts) for counts in carried], geo.MOST_COUNTS)
    return phases.outer(carried)


def receptive_field(input_shape: Sequence[int], layers: Sequence[Layer]) -> tuple[np.ndarray, ...]:
    """Finds the input pixels that every output pixel depends on, along each axis.

    The phases of a transposed convolution see `floor(k/s)` to `ceil(k/s)` pixels each. Pixels beyond the borders
    do not count.

    Args:
      input_shape: spatial shape of the input, one integer per axis; fixes the rank.
      layers: from the input to the output.

    Returns:
      One array per axis, `(output pixels, 2)`: the first pixel seen and the one after the last. Both are 0 for an
      output pixel that sees none. Strides and dilations may leave holes in between.

    Raises:
      ValueError: as `conv_transpose` and `conv`.
      TypeError: for layers that are not a sequence of `Layer`.

    Example:
      >>> (field,) = receptive_field((4,), [Layer(3, 2, padding=1)])  # phases see one and two pixels in turn
      >>> field.T
      array([[0, 0, 1, 1, 2, 2, 3],
             [1, 2, 2, 3, 3, 4, 4]])

    References:
      Araujo, Norris & Sim 2019, doi:10.23915/distill.00021, for convolutions.
    """
    return tuple(_hull(seen) for seen in _reach("receptive_field", input_shape, layers))


def projective_field(input_shape: Sequence[int], layers: Sequence[Layer]) -> tuple[np.ndarray, ...]:
    """Finds the output pixels that every input pixel reaches, along each axis.

    One layer paints k pixels; through several the field grows as `s·(field − 1) + k`. The phases of a strided
    convolution reach `floor(k/s)` to `ceil(k/s)` pixels each. Cropped pixels do not count.

    Args:
      input_shape: spatial shape of the input, one integer per axis; fixes the rank.
      layers: from the input to the output.

    Returns:
      One array per axis, `(input pixels, 2)`: the first pixel reached and the one after the last. Both are 0 for an
      input pixel that reaches none. Strides and dilations may leave holes in between.

    Raises:
      ValueError: as `conv_transpose` and `conv`.
      TypeError: for layers that are not a sequence of `Layer`.

    Example:
      >>> (field,) = projective_field((3,), [Layer(3, 2, padding=0)] * 2)  # 2·(3 − 1) + 3 = 7
      >>> field.tolist()
      [[0, 7], [4, 11], [8, 15]]

    References:
      Araujo, Norris & Sim 2019, doi:10.23915/distill.00021, for receptive fields.
    """
    return tuple(_hull(seen.T) for seen in _reach("projective_field", input_shape, layers))


def center_map(
    kernel_size: Ints,
    strides: Ints,
    padding: Padding = "SAME",
    *,
    kernel_dilation: Ints = 1,
    transpose: bool = True,
    input_shape: Sequence[int] | None = None,
) -> CenterMap:
    """Returns where a transposed convolution, or a convolution, centers its input pixels, in output pixels.

    Args:
      kernel_size: k, one integer per axis; an int with int strides is one axis.
      strides: s; an int serves all axes.
      padding: as in `conv_transpose` with the sizes it chooses by default, or as in `conv`.
      kernel_dilation: d; an int serves all axes.
      transpose: whether the layer is a transposed convolution; else it is a convolution or a pool, with `scale` 1/s.
      input_shape: spatial shape of the input; by default, sizes that the strides divide. Only the map of a convolution
        with 'SAME' padding depends on it.

    Returns:
      `scale` and `offset` per axis: input i is centered at `scale·i + offset`, and `shift` is the displacement against
      half-pixel alignment: `(k − s)/2 − p` for padding p, and `−((k − s)/2 − p)/s` for the convolution. Maps of layers
      in a row compose: `first.then(second).shift` is the drift of both, in pixels of the last output.

    Raises:
      ValueError, TypeError: as `conv_transpose` and `conv`.

    Example:
      >>> center_map(3, 2, padding=1).shift  # PyTorch's k3 s2 p1 is half a pixel off
      (-0.5,)
      >>> center_map(4, 2, padding=1).shift
      (0.0,)
      >>> pool = center_map(2, 2, transpose=False)
      >>> pool.then(pool).then(center_map(3, 2)).then(center_map(3, 2)).shift  # drift of a U-Net of two levels
      (1.5,)

    References:
      Araujo, Norris & Sim 2019, doi:10.23915/distill.00021.
    """
    who = "center_map"
    k, s = resolved(who, kernel_size, strides)
    # The crop of a transposed convolution does not depend on the size; these sizes are larger than any crop.
    shape = (
        tuple(geo.LARGEST // t * t for t in s)
        if input_shape is None
        else geo.ints(who, "input_shape", input_shape, minimum=1)
    )
    resolve = geo.conv_transpose_geometry if transpose else geo.conv_geometry
    geometry = resolve(
        who,
        shape,
        k,
        strides=s,
        padding=padding,
        kernel_dilation=kernel_dilation,
        bounded=input_shape is not None,
    )
    middle = [(e - 1) / 2 - p for e, p in zip(geometry.extent, geometry.offset, strict=True)]
    if transpose:  # small i paints around big s·i + middle
        return CenterMap(s, tuple(middle))
    return CenterMap(tuple(1 / t for t in s), tuple(-m / t for m, t in zip(middle, s, strict=True)))


def _reach(who: str, input_shape: Sequence[int], layers: Sequence[Layer]) -> list[np.ndarray]:
    """Returns whether output n depends on input m, as matrices [n, m] of every axis."""
    shape = geo.ints(who, "input_shape", input_shape, minimum=1)
    for n in shape:
        geo.fits(who, (n, n), geo.MOST_COUNTS)
    return _through(who, [np.eye(n, dtype=bool) for n in shape], layers)


def _hull(seen: np.ndarray) -> np.ndarray:
    """Returns the first column that each row marks and the one after the last."""
    last = seen.shape[1] - seen[:, ::-1].argmax(1)
    return np.stack([seen.argmax(1), np.where(seen.any(1), last, 0)], 1)


def _through(who: str, per_axis: list[np.ndarray], layers: Sequence[Layer]) -> list[np.ndarray]:
    """Carries an array of every axis through the layers, each with weights of one."""
    for transpose, geometry in _geometries(who, tuple(map(len, per_axis)), layers):
        for n, values in zip(geometry.big if transpose else geometry.small, per_axis, strict=True):
            geo.fits(who, (n, *values.shape[1:]), geo.MOST_COUNTS)
        per_axis = [_carried(v, geometry, i, transpose=transpose) for i, v in enumerate(per_axis)]
    return per_axis


def _carried(values: np.ndarray, geometry: Geometry, axis: int, *, transpose: bool) -> np.ndarray:
    """Sums, or for booleans joins, the leading axis along `big[s·o + d·a − p]  small[o]`, in either direction."""
    s, d, p = geometry.strides[axis], geometry.kernel_dilation[axis], geometry.offset[axis]
    size = geometry.big[axis] if transpose else geometry.small[axis]
    carried = np.zeros((size, *values.shape[1:]), values.dtype)
    # Only these taps lie on the big image; a long kernel may have many others.
    first = -((s * (geometry.small[axis] - 1) - p) // d)
    last = (geometry.big[axis] - 1 + p) // d
    for a in range(max(first, 0), min(last + 1, geometry.kernel_size[axis])):
        small = np.arange(geometry.small[axis])
        big = s * small + d * a - p
        inside = (big >= 0) & (big < geometry.big[axis])
        small, big = small[inside], big[inside]  # no pixel twice, as this is one tap
        if transpose:
            carried[big] += values[small]
        else:
            carried[small] += values[big]
    return carried


def _geometries(
    who: str, shape: tuple[int, ...], layers: Sequence[Layer]
) -> Iterator[tuple[bool, Geometry]]:
    """Resolves layer after layer, each on the output of the one before."""
    if (
        isinstance(layers, Layer)
        or not isinstance(layers, Sequence)
        or not all(isinstance(layer, Layer) for layer in layers)
    ):
        raise TypeError(
            f"{who}: layers must be a sequence of tconvjax.analysis.Layer; got {layers!r}."
        )
    for layer in layers:
        if layer.output_padding is not None and not layer.transpose:
            raise ValueError(
                f"{who}: output_padding goes with transpose=True; got {layer}. Leave it out."
            )
        k = geo.per_axis(who, "kernel_size", layer.kernel_size, len(shape))
        if layer.transpose:
            geometry = geo.conv_transpose_geometry(
                who,
                shape,
                k,
                strides=layer.strides,
                padding=layer.padding,
                output_padding=layer.output_padding,
                kernel_dilation=layer.kernel_dilation,
            )
        else:
            geometry = geo.conv_geometry(
                who,
                shape,
                k,
                strides=layer.strides,
                padding=layer.padding,
                kernel_dilation=layer.kernel_dilation,
            )
        shape = geometry.big if layer.transpose else geometry.small
        yield layer.transpose, geometry
