"""Layouts of convolutions, of XLA and of this library, in one form."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tconvjax._program.tiles import Steps


class Layout(NamedTuple):
    """How a convolution reads its arrays.

    Attributes:
      order: axes of the image: batch, space, features.
      out_order: axes of the result likewise.
      batch: number of axes before those of space.
      steps: geometry.
      groups: number of groups of features.
      kernel_size: taps along each axis.
      kernels: brings weights into kernels `(*kernel_size, features in // groups, out)`, several under `vmap`.
    """

    order: tuple[int, ...]
    out_order: tuple[int, ...]
    batch: int
    steps: Steps
    groups: int
    kernel_size: tuple[int, ...]
    kernels: Callable[[np.ndarray], list[np.ndarray]]

    @property
    def space(self) -> tuple[int, ...]:
        """Spatial axes of the image."""
        return self.order[self.batch : -1]

    @property
    def out_space(self) -> tuple[int, ...]:
        """Spatial axes of the result."""
        return self.out_order[self.batch : -1]


def layout_of(equation: Any) -> Layout:
    """Returns the layout of a convolution whose left array is the image."""
    name = equation.primitive.name
    return _of_xla(equation) if name == "conv_general_dilated" else _of_this_library(equation, name)


def _of_xla(equation: Any) -> Layout:
    params = equation.params
    numbers = params["dimension_numbers"]
    n, c, *space = numbers.lhs_spec
    out_n, out_c, *out_space = numbers.out_spec
    o, i, *taps = numbers.rhs_spec
    steps = Steps(
        tuple(params["lhs_dilation"]),
        tuple(params["window_strides"]),
        tuple(params["rhs_dilation"]),
        tuple(low for low, _ in params["padding"]),
    )
    shape = equation.invars[1].aval.shape
    return Layout(
        order=(n, *space, c),
        out_order=(out_n, *out_space, out_c),
        batch=1,
        steps=steps,
        groups=params["feature_group_count"],
        kernel_size=tuple(shape[a] for a in taps),
        kernels=lambda w: [w.transpose(*taps, i, o)],
    )


def _of_this_library(equation: Any, name: str) -> Layout:
    """Reads a face, whose arrays have a stack axis; paint reads the kernel backwards, groups swapped."""
    geometry = equation.params["call"].geometry
    rank, groups = geometry.rank, geometry.feature_group_count
    ones = (1,) * rank
    paints = name == "tconv_paint"

    def turned(w: np.ndarray) -> np.ndarray:
        w = np.flip(w, tuple(range(rank)))
        *k, i, o = w.shape
        split = w.reshape(*k, i, groups, o // groups).swapaxes(-3, -1)
        return split.reshape(*k, o // groups, groups * i)

    steps = Steps(ones, geometry.strides, geometry.kernel_dilation, geometry.offset)
    if paints:
        sizes = zip(geometry.extent, geometry.offset, strict=True)
        lows = tuple(extent - 1 - low for extent, low in sizes)
        steps = Steps(geometry.strides, ones, geometry.kernel_dilation, lows)
    axes = tuple(range(rank + 3))
    return Layout(
        order=axes,
        out_order=axes,
        batch=2,
        steps=steps,
        groups=groups,
        kernel_size=geometry.kernel_size,
        kernels=lambda w: [turned(k) if paints else k for k in w],
    )
