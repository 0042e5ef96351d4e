"""Axes of space through a program, and how fine their grids are.

A lane is an axis of an image that later images share. A value has on it a grid, so many pixels for each pixel of the
value where the lane begins: twice as many behind a transposed convolution of stride 2.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from tconvjax._program import tiles
from tconvjax._program.layouts import layout_of
from tconvjax._program.program import RESIZES, Place, Value


class Lane(NamedTuple):
    """A lane at one axis of a value.

    Attributes:
      begin: value and axis where it begins.
      pixels: pixels for each pixel there.
      part: whether it is a fast part, cut off from the lane, such as the pixels of a window.
    """

    begin: tuple[Value, int]
    pixels: Fraction
    part: bool = False

    def times(self, new: Any, old: Any = 1) -> "Lane":
        """Returns the lane of a grid that is `new / old` times as fine."""
        known = isinstance(new, Integral) and isinstance(old, Integral) and new and old
        return self._replace(pixels=self.pixels * Fraction(int(new), int(old))) if known else self


Lanes = tuple[Lane | None, ...]


class LaneBook:
    """The lanes of the values of a program, read equation by equation."""

    def __init__(self) -> None:
        self._lanes: dict[Value, Lanes] = {}
        self._joined: dict[
            tuple[Value, int], Lane
        ] = {}  # lanes that an image made of several has joined

    def root(self, lane: Lane) -> Lane:
        """Returns a lane by its first beginning: images that are added or stacked as channels share one."""
        while lane.begin in self._joined:
            first = self._joined[lane.begin]
            lane = lane._replace(begin=first.begin, pixels=lane.pixels * first.pixels)
        return lane

    def grids(self, value: Value) -> dict[tuple[Value, int], tuple[int, Fraction]]:
        """Returns axis and pixels of a value by the beginnings of its lanes."""
        roots = [lane and self.root(lane) for lane in self.of(value)]
        return {lane.begin: (axis, lane.pixels) for axis, lane in enumerate(roots) if lane}

    def periods(
        self, strides: Sequence[int], begun: Sequence[Lane | None], value: Value
    ) -> dict[int, Fraction]:
        """Returns the periods of a pattern by axes of a later image, in its pixels; none if an axis is not there."""
        at, periods = self.grids(value), {}
        for stride, lane in zip(strides, begun, strict=True):
            root = lane and self.root(lane)
            if root is None or root.begin not in at:
                return {}
            axis, pixels = at[root.begin]
            periods[axis] = stride * pixels / root.pixels
        return periods

    def _join(self, lanes: Sequence[Lane | None]) -> None:
        """Takes lanes of one axis for one."""
        roots = [self.root(lane) for lane in lanes if lane]
        for lane in roots[1:]:
            if lane.begin != roots[0].begin:
                ratio = roots[0].pixels / lane.pixels
                self._joined[lane.begin] = roots[0]._replace(pixels=ratio)
                return  # the others may have another root now

    def of(self, value: Value) -> Lanes:
        """Returns the lane of each axis of a value."""
        if value not in self._lanes:
            begun = tuple(Lane((value, axis), Fraction(1)) for axis in range(len(value.shape)))
            self._lanes[value] = self.of(value.stacked)[1:] if value.stacked else begun
        return self._lanes[value]

    def read(
        self,
        place: Place,
        along: Callable[[Value], frozenset[int]],
        is_image: Callable[[Value], bool],
    ) -> None:
        """Follows lanes through one equation; `along` tells along which axes a value varies."""
        if not place.results or not place.inputs:
            return
        name = place.equation.primitive.name
        name = name.replace("_add", "").replace("-add", "")
        lanes = self._through(place, name, along, is_image)
        if lanes is not None:
            for result in place.results:
                if len(result.shape) == len(lanes):
                    self._lanes[result] = lanes

    def _through(
        self,
        place: Place,
        name: str,
        along: Callable[[Value], frozenset[int]],
        is_image: Callable[[Value], bool],
    ) -> Lanes | None:
        params, image = place.equation.params, place.inputs[0]
        old, shape, before = self.of(image), place.shape, image.shape
        if name in {"reshape", "squeeze"}:
            return _regrouped(old, before, shape, place.results[0])
        if name == "transpose":
            return tuple(old[a] for a in params["permutation"])
        if name == "broadcast_in_dim":
            at = {a: i for i, a in enumerate(params["broadcast_dimensions"])}
            kept = [a in at and before[at[a]] == n for a, n in enumerate(shape)]
            return tuple(old[at[a]] if keep else None for a, keep in enumerate(kept))
        if name == "slice":
            return _stepped(old, (1,) * len(old), params["strides"] or (1,) * len(old))
        if name == "pad":
            inner = [n + 1 for _, _, n in params["padding_config"]]
            return _stepped(old, inner, (1,) * len(old))
        if name.startswith("reduce_window"):
            return _stepped(
                old, params.get("base_dilation", (1,) * len(old)), params["window_strides"]
            )
        if name in {"conv_general_dilated", "tconv_gather", "tconv_paint"}:
            return _convolved(old, place)
        if name == "stack":
            axis = params["axis"]
            return (*old[:axis], None, *old[axis:])
        if name == "concatenate":
            sizes = [v.shape[params["dimension"]] for v in place.inputs]
            known = all(isinstance(n, int) for n in sizes)
            for axis in range(len(shape)):
                if axis != params["dimension"] and before[axis] != 1:
                    self._join([self.of(v)[axis] for v in place.inputs if axis in along(v)])
            return self.of(place.inputs[sizes.index(max(sizes)) if known else 0])
        if name == "scatter":
            image = place.inputs[2]
            return _resized(self.of(image), image.shape, shape)
        if name == "tile" or (name == "dynamic_update_slice" and is_image(image)):
            return old
        if name == "dynamic_update_slice":
            return _resized(self.of(place.inputs[1]), place.inputs[1].shape, shape)
        if name == "jit" and params.get("name") in RESIZES:
            return _resized(old, before, shape)
        if name == "gather":
            return _gathered(old, place)
        if name == "dot_general":
            return None
        same = [v for v in place.inputs if v.shape == shape and v.dtype != np.bool_]
        same.sort(key=is_image, reverse=True)
        if not same:
            return None
        for axis in range(len(shape)):
            self._join([self.of(v)[axis] for v in same if axis in along(v)])
        # A bias that is broadcast begins no lane.
        return tuple(
            next((self.of(v)[a] for v in same if a in along(v)), self.of(same[0])[a])
            for a in range(len(shape))
        )

    def product(self, place: Place, image: Value, axes: Sequence[int | None]) -> None:
        """Follows lanes through a product of matrices; `axes` gives the axis of the image for each of the result."""
        old, shape = self.of(image), place.shape
        lanes: list[Lane | None] = []
        for n, axis in zip(shape, axes, strict=True):
            lane = None if axis is None else old[axis]
            lanes.append(lane and lane.times(n, image.shape[axis or 0]))
        self._lanes[place.results[0]] = tuple(lanes)


def _stepped(old: Lanes, finer: Sequence[int], coarser: Sequence[int]) -> Lanes:
    return tuple(lane and lane.times(t, s) for lane, t, s in zip(old, finer, coarser, strict=True))


def _resized(old: Lanes, before: Sequence[Any], shape: Sequence[Any]) -> Lanes | None:
    if len(before) != len(shape):
        return None
    return _stepped(old, list(shape), list(before))


def _regrouped(
    old: Lanes, before: Sequence[Any], shape: Sequence[Any], result: Value
) -> Lanes | None:
    """The slow part of an axis keeps its lane; of parts that are joined, the slow one counts."""
    try:
        groups = tiles.parts(before, shape)
    except tiles.Unread:
        return None
    lanes: list[Lane | None] = []
    seen: set[int] = set()
    for group in groups:
        part = group[0] if group else None
        lane = old[part.axis] if part else None
        if part and part.axis in seen:
            lane = Lane((result, len(lanes)), Fraction(1), part=lane is not None)
        elif part:
            begun = lane or Lane((result, len(lanes)), Fraction(1))
            lane = begun.times(shape[len(lanes)], part.parent) if lane else begun
        lanes.append(lane)
        seen |= {p.axis for p in group}
    return tuple(lanes)


def _convolved(old: Lanes, place: Place) -> Lanes:
    layout = layout_of(place.equation)
    lanes: list[Lane | None] = [None] * len(place.shape)
    for a, b, t, s in zip(
        layout.space, layout.out_space, layout.steps.t, layout.steps.s, strict=True
    ):
        lane = old[a]
        lanes[b] = lane.times(t, s) if lane else Lane((place.results[0], b), Fraction(1))
    return tuple(lanes)


def _gathered(old: Lanes, place: Place) -> Lanes | None:
    """Pixels are read along axes whose indices stand at axes of the result, in their order."""
    numbers, image = place.equation.params["dimension_numbers"], place.inputs[0]
    outside = [a for a in range(len(place.shape)) if a not in numbers.offset_dims]
    axes = tuple(numbers.start_index_map)
    if tuple(numbers.collapsed_slice_dims) != axes or len(outside) != len(axes):
        return None
    lanes: list[Lane | None] = [None] * len(place.shape)
    others = [lane for a, lane in enumerate(old) if a not in axes]
    for a, lane in zip(numbers.offset_dims, others, strict=True):
        lanes[a] = lane
    for a, axis in zip(outside, axes, strict=True):
        lane = old[axis]
        lanes[a] = lane and lane.times(place.shape[a], image.shape[axis])
    return tuple(lanes)
