"""What linear parts of a program make of constants.

A linear part begins at a *source*, a value whose channels are taken for constants along space: an input, the result of
a nonlinear operation, a convolution that keeps its grid. `Reader` follows the response to these constants, a tile, from
equation to equation. Where pixels are inserted an *enlargement* begins; it ends at the next one, at a nonlinear
operation or with the program. There its response says what all of it, filters and sums of branches included, does to a
constant.

Elementwise nonlinear operations keep zeros: what is inserted before a ReLU is inserted behind it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tconvjax._program import tiles
from tconvjax._program.convolutions import Convolution
from tconvjax._program.lanes import LaneBook
from tconvjax._program.program import RESIZES, Place, Unknown, Value
from tconvjax._program.signals import (
    Enlargement,
    Means,
    Signal,
    Source,
    begin,
    convolution_before,
    enlargements_of,
    is_inexact,
    judge,
    merged,
    origin_of,
    phases_of,
    pixels_of,
    space_of,
)
from tconvjax._program.tiles import Unread

Rule = Callable[["Reader", Place], Signal]
MOST_SOURCES = 8  # of a signal without enlargements

UNCHANGED = {
    "convert_element_type", "copy", "neg", "reduce_precision", "optimization_barrier", "sharding_constraint",
    "layout_constraint", "pvary", "pcast", "reshard", "real", "copy_p",
}  # fmt: skip
STATISTICS = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin", "reduce_and", "reduce_or",
}  # fmt: skip
# Operations that may keep the shape and yet do not act on each pixel alone.
ALONG = {
    "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "fft", "ppermute", "all_to_all", "gather",
    "scatter", "scatter-add", "dynamic_update_slice", "reduce_window_max", "reduce_window", "dot_general",
    "conv_general_dilated", "tconv_gather", "tconv_paint", "tconv_correlate", "select_and_scatter_add",
    "select_and_gather_add", "triangular_solve", "cholesky",
}  # fmt: skip
# Operations whose inner programs are walked in their place.
WALKED = {
    "jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call",
    "custom_vjp_call_jaxpr", "shard_map", "scan", "while", "cond", "custom_lin",
}  # fmt: skip
CALLS = {"pallas_call", "custom_call", "ffi_call", "tpu_custom_call"}
HIDDEN = CALLS | {"pure_callback", "io_callback"}
PRODUCTS = {"dot_general", "conv_general_dilated", "tconv_gather", "tconv_paint", "tconv_correlate"}


class Reader:
    """Follows responses through a program, place by place.

    Attributes:
      enlargements: those found so far.
      hidden: places that cannot be read.
      lanes: lanes of the values.
      signals: responses of the values that have been read.
      made: values that a convolution or a product of matrices made.
    """

    def __init__(
        self, inputs: Iterable[Value], rules: Mapping[str, Rule], *, backward: bool = False
    ) -> None:
        """Reads a program with the given inputs by rules for its operations; with `backward`, its gradients alone."""
        self.enlargements: list[Enlargement] = []
        self.hidden: list[Place] = []
        self.lanes = LaneBook()
        self._backward = backward
        self.signals: dict[Value, Signal] = {}
        self._free = set(inputs)  # values that depend on the arguments
        self.made: set[Value] = set()  # values that a convolution or a product of matrices made
        self._axes: dict[Value, frozenset[int]] = {}
        self._made_at: dict[Value, Place] = {}
        # Where the pixels of a source first have others between them.
        self._zeros: dict[Source, Place] = {}
        self._rules = rules

    def read(self, place: Place) -> None:
        """Follows responses through one equation."""
        if place.equation is None:  # the results of a program
            for value in place.inputs:
                if value in self.signals or self.is_free(value):
                    self.complete(value)
                    self._bare(value)
                    self.end(self.signal(value))
            return
        name, params = place.equation.primitive.name, place.equation.params
        self._vary(place)
        if place.backward == self._backward:
            self.lanes.read(place, self.along, self.made.__contains__)
        for value in place.inputs:
            for event in enlargements_of(self.signals.get(value, {})):
                event.used = True
        if name not in PRODUCTS and not any(map(self.is_free, place.inputs)):
            return
        self._free.update(place.results)
        if name in PRODUCTS or any(v in self.made for v in place.inputs):
            self.made.update(place.results)
        if name in HIDDEN:
            self.hidden.append(place)
        resize = name == "jit" and params.get("name") in RESIZES
        if (name in WALKED and not resize) or not place.results or 0 in place.shape:
            return
        if place.backward != self._backward:
            return  # its results begin linear parts
        if is_inexact(place.results[0].dtype) or name in PRODUCTS:
            self._made_at[place.results[0]] = place
            signal = self._gathered(place.results[0], self._result(place, name))
            self.signals[place.results[0]] = signal
            for event in enlargements_of(signal):
                event.last, event.result = signal, place.results[0]
            for source, response in signal.items():
                if not response.mixed and response.gain.size > 1:
                    self._zeros.setdefault(source, place)

    def finish(self) -> None:
        """Judges enlargements that the program uses for statistics alone, such as a loss, where it last has them."""
        for event in self.enlargements:
            if event.used and not event.ended and event.last is not None:
                judge(event.last)

    def _result(self, place: Place, name: str) -> Signal:
        try:
            if name in UNCHANGED:
                return self.signal(place.inputs[0])
            return self._rules[name](self, place) if name in self._rules else self.nonlinear(place)
        except (Unread, Unknown):
            return self.nonlinear(place)
        except (ValueError, IndexError, KeyError, TypeError, ArithmeticError):
            self.hidden.append(place)  # an equation in a form that no rule foresees
            return begin(place.results[0])

    def _gathered(self, value: Value, signal: Signal) -> Signal:
        """Begins one linear part in place of many that nothing enlarges: the sums of a residual network gather them."""
        spaces = space_of(signal)
        plain = all(
            not (r.mixed or r.enlargements or any(r.gain.shape[1 + a] > 1 for a in spaces))
            for r in signal.values()
        )
        if len(signal) <= MOST_SOURCES or not plain:
            return signal
        pending = tuple(before for source in signal for before in source.pending)
        linear = lambda: [signal]
        return begin(value, linear=linear, pending=pending, space=spaces, phases=phases_of(signal))

    def is_free(self, value: Value) -> bool:
        """Whether a value depends on the arguments, or enters an inner program as one turn's or one device's part."""
        if value.stacked is not None:
            return self.is_free(value.stacked)
        return value in self._free or (value.given is None and value.equation is None)

    def signal(self, value: Value) -> Signal:
        """Returns the responses of a value; one that nothing has told begins a linear part."""
        if value not in self.signals:
            if value.stacked is not None and value.stacked in self.signals:
                self.end(self.signals[value.stacked])
            self.signals[value] = begin(value)
        return self.signals[value]

    def used(self, value: Value) -> Signal:
        """Returns the responses of a value that is used as an image, not for statistics alone."""
        signal = self.signal(value)
        for source in signal:
            pending, source.pending = source.pending, ()
            for before in pending:
                self.end(before)
        return signal

    def end(self, signal: Signal) -> None:
        """Ends the enlargements of a signal, and of what nonlinear operations made it of."""
        waiting = [signal]
        while waiting:
            signal = waiting.pop()
            judge(signal)
            for source in signal:
                waiting.extend(source.pending)
                source.pending = ()

    def _bare(self, value: Value) -> None:
        """Begins and ends an enlargement for zeros between pixels that nothing fills before a program ends."""
        signal = self.signal(value)
        axes = [
            a
            for a in range(len(value.shape))
            if any(r.gain.shape[1 + a] > 1 for r in signal.values() if not r.mixed)
        ]
        place = next((self._zeros[s] for s in signal if s in self._zeros), None)
        if place is None or not axes or enlargements_of(signal) or place.backward != self._backward:
            return
        if sum(tiles.matched(*(r.taps for r in signal.values())), np.zeros(())).min() > 0:
            return
        if (periods := self.inserted(value, axes, signal)) is not None:
            event = self.enlarged(place, "zeros", axes, periods, place.inputs[-1])
            self.signals[value] = {
                s: replace(r, space=r.space | {*axes}, enlargements=(event,))
                for s, r in signal.items()
            }

    def ended(self, value: Value) -> Signal:
        """Ends the enlargements of a value; it begins a linear part if there were any."""
        signal = self.used(value)
        if not enlargements_of(signal):
            return signal
        self.end(signal)
        return begin(value, space=space_of(signal))

    def nonlinear(self, place: Place) -> Signal:
        """Begins a linear part behind an operation; zeros that were inserted stay, and so do phases of a stack."""
        name, result = place.equation.primitive.name, place.results[0]
        images = [v for v in place.inputs if is_inexact(v.dtype) and self.is_free(v)]
        for value in images:
            self.complete(value)
        if name in STATISTICS:
            signal = self.signal(place.inputs[0])
            over = {*place.equation.params.get("axes", ())}
            return begin(result, pending=() if space_of(signal) <= over else (signal,))
        signals = [self.signal(v) for v in images if v.shape == result.shape]
        if name in ALONG or not signals:
            for value in images:
                self.end(self.used(value))
            return begin(result)
        responses = [r for signal in signals for r in signal.values()]
        options: dict[str, Any] = {"space": space_of(*signals), "phases": phases_of(*signals)}
        if not any(r.mixed for r in responses):
            tile = sum(tiles.matched(*(abs(r.gain) for r in responses)), np.zeros(()))
            if tile.size > 1:
                options["gain"] = options["taps"] = 1.0 * (tile > 0)
                coarse = [s.coarse or s.value for signal in signals for s in signal]
                options["coarse"] = min(coarse, key=lambda v: pixels_of(v.shape))
        return begin(result, linear=lambda: signals, pending=tuple(signals), **options)

    def joint(
        self,
        place: Place,
        axes: Sequence[int],
        factors: Sequence[int],
        merged: Signal,
        weights: Value | None = None,
    ) -> Signal:
        """Begins an enlargement of several images between whose pixels those of the others lie."""
        image = [v for v in place.inputs if is_inexact(v.dtype)][-1]
        event = self.enlarged(place, "interleaving", axes, factors, image)
        before = None if weights is not None else convolution_before(image)
        self.filled(event, before)
        if weights is not None:
            event.kernel = weights
        if event.kernel is not None:
            event.origin, event.drawn = origin_of(event.kernel), True
        return {
            Source(s.value): replace(
                r, mixed=True, path=None, space=r.space | {*axes}, enlargements=(event,)
            )
            for s, r in merged.items()
        }

    def complete(self, value: Value) -> None:
        """Begins an enlargement where a sum has filled the zeros between pixels of one image with those of others."""
        signal, place = self.signal(value), self._made_at.get(value)
        responses = signal.values()
        if len(signal) < 2 or place is None or any(r.mixed or r.enlargements for r in responses):
            return
        axes = [
            a for a in range(len(value.shape)) if any(r.gain.shape[1 + a] > 1 for r in responses)
        ]
        periods = self.inserted(value, axes, signal) if axes else None
        total = sum(tiles.matched(*(r.taps for r in responses)), np.zeros(()))
        if periods is None or max(periods) == 1 or total.min() <= 0:
            return
        weights = next((s.weights for s in signal if s.weights is not None), None)
        self.signals[value] = self.joint(place, axes, periods, merged(signal), weights)

    def inserted(self, image: Value, axes: Sequence[int], signal: Signal) -> list[int] | None:
        """Returns the periods in which zeros lie between pixels; None for a pattern on a grid that is not finer."""
        periods = [max(r.gain.shape[1 + a] for r in signal.values()) for a in axes]
        lanes = self.lanes.of(image)
        for axis, period in zip(axes, periods, strict=True):
            if period == 1:
                continue
            lane = lanes[axis]
            begun = [
                other.pixels
                for source in signal
                for other in self.lanes.of(source.coarse or source.value)
                if lane and other and other.begin == lane.begin
            ]
            if period == image.shape[axis] or (lane and begun and max(begun) >= lane.pixels):
                return None
        return periods

    def enlarged(
        self, place: Place, means: Means, axes: Sequence[int], strides: Sequence[int], image: Value
    ) -> Enlargement:
        """Begins an enlargement at a place."""
        lanes = self.lanes.of(place.results[0])
        begun = tuple(lanes[a] for a in axes)
        event = Enlargement(means, place, tuple(axes), tuple(strides), begun, image)
        self.enlargements.append(event)
        return event

    def filled(self, event: Enlargement, convolution: Convolution | None) -> None:
        """Takes note of the convolution that fills the new pixels."""
        if convolution is None:
            return
        event.convolution, event.kernel = convolution, convolution.kernel
        event.kernel_size = convolution.geometry.kernel_size
        event.origin, event.drawn = origin_of(convolution.kernel), True

    def _vary(self, place: Place) -> None:
        if not place.results or not place.inputs:
            return
        name, params = place.equation.primitive.name, place.equation.params
        result, first = place.results[0], place.inputs[0]
        axes: Iterable[int] | None = None
        if name == "broadcast_in_dim":
            axes = (params["broadcast_dimensions"][a] for a in self.along(first))
        elif name == "transpose":
            axes = (params["permutation"].index(a) for a in self.along(first))
        elif name in {"reshape", "squeeze"}:
            try:
                groups = tiles.parts(first.shape, place.shape)
            except Unread:
                return
            old = self.along(first)
            axes = (i for i, group in enumerate(groups) if any(p.axis in old for p in group))
        elif name not in ALONG and all(v.shape in {place.shape, ()} for v in place.inputs):
            axes = (a for v in place.inputs for a in self.along(v))
        if axes is not None:
            self._axes[result] = frozenset(axes)

    def along(self, value: Value) -> frozenset[int]:
        """Returns the axes along which a value varies, as far as broadcasts tell."""
        if value not in self._axes:
            self._axes[value] = frozenset(a for a, n in enumerate(value.shape) if n != 1)
        return self._axes[value]
