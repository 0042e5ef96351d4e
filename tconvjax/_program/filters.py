"""Responses through convolutions and sums over windows."""

import functools
from collections.abc import Iterable
from dataclasses import replace
from math import prod

import numpy as np

from tconvjax._program import tiles
from tconvjax._program.convolutions import convolution_of
from tconvjax._program.layouts import Layout, layout_of
from tconvjax._program.program import Place, Unknown, Value
from tconvjax._program.reader import Reader
from tconvjax._program.signals import (
    Enlargement,
    Origin,
    Response,
    Signal,
    begin,
    enlargements_of,
    space_of,
    transposed,
    wide,
)
from tconvjax._program.tiles import Steps

MOST_TURNS = 256  # of a loop over layers whose weights are judged


def convolution(reader: Reader, place: Place) -> Signal:
    """Follows responses through a convolution, which may fill new pixels."""
    result = place.results[0]
    face = convolution_of(place.equation, place.inputs)
    if face is None:
        return reader.nonlinear(place)
    if face.face == "correlate" or face.kernel is not place.inputs[1]:  # of a kernel's gradient
        return begin(result)
    layout = layout_of(place.equation)
    image, kernel = place.inputs[:2]
    grows = any(
        t > 1 and image.shape[a] != 1 for a, t in zip(layout.space, layout.steps.t, strict=True)
    )
    reader.complete(image)
    signal = reader.ended(image) if grows else reader.used(image)
    space = frozenset(layout.out_space)
    begun: tuple[Enlargement, ...] = ()
    if not enlargements_of(signal):
        signal = _without_single(signal, image, layout.space) or begin(image)
        periods = reader.inserted(image, layout.space, signal)
        if periods is None:
            signal, periods = begin(image), [1] * len(layout.space)
        strides = [
            p * (t if image.shape[a] != 1 else 1)
            for p, t, a in zip(periods, layout.steps.t, layout.space, strict=True)
        ]
        if max(strides, default=1) == 1:
            linear = lambda: [_convolved(signal, layout, _weights(kernel, layout)[0])]
            return begin(result, linear=linear, space=space)
        event = reader.enlarged(place, "convolution", layout.out_space, strides, face.image)
        reader.filled(event, face)
        event.kernel_size = layout.kernel_size
        begun = (event,)
    weights, origin = _weights(kernel, layout)
    for event in begun:
        event.origin, event.drawn = origin, weights is not None
    signal = {s: replace(r, known=r.known and origin != "none") for s, r in signal.items()}
    return _convolved(signal, layout, weights, begun)


def _convolved(
    signal: Signal,
    layout: Layout,
    weights: np.ndarray | None,
    begun: tuple[Enlargement, ...] = (),
) -> Signal:
    """Convolves responses; without weights, the numbers of taps alone."""
    ones = np.ones((*layout.kernel_size, 1, 1), np.float32)
    back = np.argsort(layout.out_order)
    result: Signal = {}
    for source, r in signal.items():
        taps = transposed(r.taps, layout.order).max(-1, keepdims=True)
        taps, _ = tiles.convolved(taps, ones, layout.steps, 1, mixed=True)
        gain, mixed = np.ones((1,) * r.gain.ndim), True
        if weights is not None:
            gain = transposed(r.gain, layout.order)
            gain, mixed = tiles.convolved(gain, weights, layout.steps, layout.groups, mixed=r.mixed)
            gain = transposed(gain, back)
        result[source] = Response(
            gain,
            transposed(taps, back),
            mixed=mixed,
            known=r.known and weights is not None,
            space=frozenset(layout.out_space),
            enlargements=tuple(dict.fromkeys((*r.enlargements, *begun))),
        )
    return result


def _weights(kernel: Value, layout: Layout) -> tuple[np.ndarray | None, Origin]:
    """Returns `(*kernel_size, channels // groups, features)` and their origin; of several, the least even.

    Weights that cannot be computed are drawn, since what follows may even out any weights.
    """
    sizes = kernel.shape
    if not all(isinstance(n, int) for n in sizes):
        return None, "none"
    try:
        turns = range(min(kernel.turns, MOST_TURNS))
        arrays = [wide(np.asarray(kernel.compute(turn))) for turn in turns]
    except Unknown:
        if prod(sizes) > tiles.MOST_ELEMENTS:
            return None, "none"
        numbers = np.random.default_rng(prod(sizes)).normal(size=sizes).astype(np.float32)
        return layout.kernels(numbers)[0], "none"
    kernels = [k for array in arrays for k in layout.kernels(array)]
    origin: Origin = "drawn" if kernel.drawn else "given"
    if len(kernels) > 1:
        kernels.sort(key=lambda kernel: _unevenness(kernel, layout))
    return kernels[-1], origin


def window_sum(reader: Reader, place: Place) -> Signal:
    """Follows responses through sums over windows, which may fill new pixels."""
    params, image = place.equation.params, place.inputs[0]
    base, window = params["base_dilation"], params["window_dimensions"]
    axes = range(len(image.shape))
    grows = any(base[a] > 1 and image.shape[a] != 1 for a in axes)
    signal = reader.ended(image) if grows else reader.used(image)
    lows = tuple(low for low, _ in params["padding"])
    steps = Steps(tuple(base), tuple(params["window_strides"]), tuple(params["window_dilation"]), lows)  # fmt: skip
    reached = [a for a in axes if window[a] > 1 or base[a] > 1]
    begun: tuple[Enlargement, ...] = ()
    if not enlargements_of(signal):
        signal = signal or begin(image)
        periods = reader.inserted(image, reached, signal) or [1] * len(reached)
        strides = [
            p * (base[a] if image.shape[a] != 1 else 1)
            for p, a in zip(periods, reached, strict=True)
        ]
        if max(strides, default=1) > 1:
            begun = (reader.enlarged(place, "pool", reached, strides, image),)
            begun[0].kernel_size = tuple(window[a] for a in reached)
    ones = np.ones((*window, 1, 1), np.float32)

    def function(tile: np.ndarray) -> np.ndarray:
        return tiles.convolved(tile[..., None], ones, steps, 1, mixed=True)[0][..., 0]

    if not begun and not enlargements_of(signal):
        return begin(place.results[0], space=space_of(signal) | {*reached})
    return {
        s: replace(
            r.each(function, space=r.space | {*reached}), enlargements=(*r.enlargements, *begun)
        )
        for s, r in signal.items()
    }


def _without_single(signal: Signal, image: Value, axes: Iterable[int]) -> Signal:
    """Takes what is not periodic along an axis, such as a single row among zeros, for constant along it."""
    for axis in axes:
        whole = [r for r in signal.values() if 1 < r.gain.shape[1 + axis] == image.shape[axis]]
        if whole and not any(r.mixed for r in whole):
            largest = functools.partial(np.max, axis=1 + axis, keepdims=True)
            signal = {s: r.each(largest) for s, r in signal.items()}
    return signal


def _unevenness(kernel: np.ndarray, layout: Layout) -> float:
    rank = len(layout.kernel_size)
    tile = np.ones((1,) * (2 + layout.batch + rank), kernel.dtype)
    tile, _ = tiles.convolved(tile, kernel, layout.steps, layout.groups, mixed=False)
    return tiles.share(tile, range(layout.batch, layout.batch + rank))
