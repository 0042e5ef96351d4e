"""What linear parts of a program make of constants.

A linear part begins at a *source*, a value whose channels are taken for constants along space: an input, the result of
a nonlinear operation, a convolution that keeps its grid. `Reader` follows the response to these constants, a tile, from
equation to equation. Where pixels are inserted an *enlargement* begins; it ends at the next one, at a nonlinear
operation or with the program. There its response says what all of it, filters and sums of branches included, does to a
constant.

Elementwise nonlinear operations keep zeros: what is inserted before a ReLU is inserted behind it.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from tconvjax._program import tiles
from tconvjax._program.convolutions import Convolution, convolution_of
from tconvjax._program.lanes import Lane, LaneBook
from tconvjax._program.layouts import Layout, layout_of
from tconvjax._program.program import RESIZES, Place, Unknown, Value
from tconvjax._program.shuffles import pixel_shuffle
from tconvjax._program.tiles import Steps, Unread

MOST_TURNS = 256  # of a loop over layers whose weights are judged
FEW = 4  # indices along an axis that are no pattern yet
MOST_SEEN = 256  # values in the search for the convolution before a reshape
FLAT = 1e-3  # harmonic share up to which a constant counts as constant

Means = Literal["convolution", "shuffle", "interleaving", "matrix", "zeros", "pool"]
Origin = Literal["given", "drawn", "none"]
Tiled = Callable[[np.ndarray], np.ndarray]


@dataclass(eq=False)
class Enlargement:
    """A place where a grid becomes finer.

    Attributes:
      means: how pixels are inserted.
      place: the equation.
      axes: axes of its result that become finer.
      strides: factor along each.
      lanes: lane of each.
      image: the small image.
      convolution: the convolution that fills the new pixels, if there is one.
      kernel: value of its weights.
      kernel_size: its taps along the axes.
      origin: whether its weights are given, drawn at random, or unknown.
      ended: whether the program uses its result.
      share: largest harmonic share of a response to constants where its linear part ends.
      overlap: largest over smallest number of taps of a phase there.
      known: whether all weights in the responses are known.
      drawn: whether weights took part in the responses at all, random ones for unknown ones included.
      used: whether anything reads an image that has it.
      last: the last signal that has it.
      result: the value of that signal.
    """

    means: Means
    place: Place
    axes: tuple[int, ...]
    strides: tuple[int, ...]
    lanes: tuple[Lane | None, ...]
    image: Value
    convolution: Convolution | None = None
    kernel: Value | None = None
    kernel_size: tuple[int, ...] | None = None
    origin: Origin = "none"
    ended: bool = False
    share: float = 0.0
    overlap: float = 1.0
    known: bool = True
    drawn: bool = False
    used: bool = False
    last: "Signal | None" = None
    result: Value | None = None

    def judge(self, share: float, overlap: float, *, known: bool) -> None:
        """Takes note of a response where the linear part ends; of several, the worst counts."""
        self.share = max(self.share, share)
        self.overlap = max(self.overlap, overlap)
        self.known = self.known and known
        self.ended = True


@dataclass(frozen=True, eq=False)
class Response:
    """Response of a value to the constants of a source.

    Attributes:
      gain: tile of the response.
      taps: tile of the numbers of taps, without channels.
      mixed: whether each channel of the source has a probe; else one tile stands for all of them.
      path: makes the tile of a tile of the source, where reorderings, masks and sums alone lie between.
      known: whether all weights in it are known.
      space: spatial axes, as far as convolutions have told.
      phases: axes of a stack or of a product of matrices, whose entries may become phases.
      enlargements: those in it.
    """

    gain: np.ndarray
    taps: np.ndarray
    mixed: bool = False
    path: Tiled | None = None
    known: bool = True
    space: frozenset[int] = frozenset()
    phases: frozenset[int] = frozenset()
    enlargements: tuple[Enlargement, ...] = ()

    def each(self, function: Tiled, taps: Tiled | None = None, **changes: Any) -> "Response":
        """Applies a linear function of tiles."""
        path = self.path
        return replace(
            self,
            gain=function(self.gain),
            taps=(taps or function)(self.taps),
            path=path and (lambda tile: function(path(tile))),
            **changes,
        )


@dataclass(eq=False)
class Source:
    """The beginning of a linear part.

    Attributes:
      value: the value.
      linear: responses of the value to what was before it, with nonlinear operations taken for the identity.
      pending: signals whose enlargements end here, unless only statistics are taken of the value.
      coarse: the value before zeros were inserted, if they were inserted before the linear part begins.
      weights: the weights that a product of matrices made it with.
    """

    value: Value
    linear: "Callable[[], list[Signal]] | None" = None
    pending: "tuple[Signal, ...]" = ()
    coarse: Value | None = None
    weights: Value | None = None


Signal = dict[Source, Response]

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
HIDDEN = {
    "pallas_call",
    "custom_call",
    "pure_callback",
    "io_callback",
    "ffi_call",
    "tpu_custom_call",
}
PRODUCTS = {"dot_general", "conv_general_dilated", "tconv_gather", "tconv_paint", "tconv_correlate"}


class Reader:
    """Follows responses through a program, place by place.

    Attributes:
      enlargements: those found so far.
      hidden: places that cannot be read.
      lanes: lanes of the values.
    """

    def __init__(self, inputs: Iterable[Value], *, backward: bool = False) -> None:
        """Reads a program with the given inputs: its enlargements, or with `backward` those of its gradients."""
        self.enlargements: list[Enlargement] = []
        self.hidden: list[Place] = []
        self.lanes = LaneBook()
        self._backward = backward
        self._signals: dict[Value, Signal] = {}
        self._free = set(inputs)  # values that depend on the arguments
        self._made: set[Value] = set()  # values that a convolution or a product of matrices made
        self._axes: dict[Value, frozenset[int]] = {}
        self._made_at: dict[Value, Place] = {}
        self._zeros: dict[
            Source, Place
        ] = {}  # where the pixels of a source first have others between them
        self._rules: dict[str, Callable[[Place], Signal]] = {
            "reshape": self._reshape,
            "squeeze": self._reshape,
            "transpose": self._transpose,
            "broadcast_in_dim": self._broadcast,
            "rev": self._rev,
            "slice": self._slice,
            "dynamic_slice": self._dynamic_slice,
            "pad": self._pad,
            "concatenate": self._concatenate,
            "stack": self._stack,
            "gather": self._gather,
            "scatter": self._scatter,
            "scatter-add": self._scatter,
            "dynamic_update_slice": self._update_slice,
            "tile": self._tile,
            "add": self._add,
            "add_any": self._add,
            "sub": self._add,
            "mul": self._mul,
            "div": self._mul,
            "select_n": self._select,
            "dot_general": self._product,
            "conv_general_dilated": self._convolution,
            "tconv_gather": self._convolution,
            "tconv_paint": self._convolution,
            "reduce_window_sum": self._window_sum,
        }

    def read(self, place: Place) -> None:
        """Follows responses through one equation."""
        if place.equation is None:  # the results of a program
            for value in place.inputs:
                if value in self._signals or self._is_free(value):
                    self._complete(value)
                    self._bare(value)
                    self._end(self._signal(value))
            return
        name, params = place.equation.primitive.name, place.equation.params
        self._vary(place)
        if place.backward == self._backward:
            self.lanes.read(place, self._along, self._made.__contains__)
        for value in place.inputs:
            for event in _enlargements(self._signals.get(value, {})):
                event.used = True
        if name not in PRODUCTS and not any(map(self._is_free, place.inputs)):
            return
        self._free.update(place.results)
        if name in PRODUCTS or any(v in self._made for v in place.inputs):
            self._made.update(place.results)
        if name in HIDDEN:
            self.hidden.append(place)
        resize = name == "jit" and params.get("name") in RESIZES
        if (name in WALKED and not resize) or not place.results:
            return
        if place.backward != self._backward:
            return  # its results begin linear parts
        if name == "split":
            self._split(place)
        elif _is_inexact(place.results[0].dtype) or name in PRODUCTS:
            self._made_at[place.results[0]] = place
            signal = self._signals[place.results[0]] = self._result(place, name)
            for event in _enlargements(signal):
                event.last, event.result = signal, place.results[0]
            for source, response in signal.items():
                if not response.mixed and response.gain.size > 1:
                    self._zeros.setdefault(source, place)

    def finish(self) -> None:
        """Judges enlargements that the program uses for statistics alone, such as a loss, where it last has them."""
        for event in self.enlargements:
            if event.used and not event.ended and event.last is not None:
                _judge(event.last)

    def _result(self, place: Place, name: str) -> Signal:
        try:
            if name in UNCHANGED:
                return self._signal(place.inputs[0])
            return self._rules[name](place) if name in self._rules else self._nonlinear(place)
        except (Unread, Unknown):
            return self._nonlinear(place)
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
        ):  # an equation in a form that no rule foresees
            self.hidden.append(place)
            return _begin(place.results[0])

    def _is_free(self, value: Value) -> bool:
        """Whether a value depends on the arguments, or enters an inner program as one turn's or one device's part."""
        if value.stacked is not None:
            return self._is_free(value.stacked)
        return value in self._free or (value.given is None and value.equation is None)

    def _signal(self, value: Value) -> Signal:
        """Returns the responses of a value; one that nothing has told begins a linear part."""
        if value not in self._signals:
            if value.stacked is not None and value.stacked in self._signals:
                self._end(self._signals[value.stacked])
            self._signals[value] = _begin(value)
        return self._signals[value]

    def _used(self, value: Value) -> Signal:
        """Returns the responses of a value that is used as an image, not for statistics alone."""
        signal = self._signal(value)
        for source in signal:
            pending, source.pending = source.pending, ()
            for before in pending:
                self._end(before)
        return signal

    def _end(self, signal: Signal) -> None:
        """Ends the enlargements of a signal, and of what nonlinear operations made it of."""
        waiting = [signal]
        while waiting:
            signal = waiting.pop()
            _judge(signal)
            for source in signal:
                waiting.extend(source.pending)
                source.pending = ()

    def _bare(self, value: Value) -> None:
        """Begins and ends an enlargement for zeros between pixels that nothing fills before a program ends."""
        signal = self._signal(value)
        axes = [
            a
            for a in range(len(value.shape))
            if any(r.gain.shape[1 + a] > 1 for r in signal.values() if not r.mixed)
        ]
        place = next((self._zeros[s] for s in signal if s in self._zeros), None)
        if place is None or not axes or _enlargements(signal) or place.backward != self._backward:
            return
        if sum(tiles.matched(*(r.taps for r in signal.values())), np.zeros(())).min() > 0:
            return
        if (periods := self._inserted(value, axes, signal)) is not None:
            event = self._enlarged(place, "zeros", axes, periods, place.inputs[-1])
            self._signals[value] = {
                s: replace(r, space=r.space | {*axes}, enlargements=(event,))
                for s, r in signal.items()
            }

    def _ended(self, value: Value) -> Signal:
        """Ends the enlargements of a value; it begins a linear part if there were any."""
        signal = self._used(value)
        if not _enlargements(signal):
            return signal
        self._end(signal)
        return _begin(value, space=_space(signal))

    def _nonlinear(self, place: Place) -> Signal:
        """Begins a linear part behind an operation; zeros that were inserted stay, and so do phases of a stack."""
        name, result = place.equation.primitive.name, place.results[0]
        images = [v for v in place.inputs if _is_inexact(v.dtype) and self._is_free(v)]
        for value in images:
            self._complete(value)
        if name in STATISTICS:
            signal = self._signal(place.inputs[0])
            over = {*place.equation.params.get("axes", ())}
            return _begin(result, pending=() if _space(signal) <= over else (signal,))
        signals = [self._signal(v) for v in images if v.shape == result.shape]
        if name in ALONG or not signals:
            for value in images:
                self._end(self._used(value))
            return _begin(result)
        responses = [r for signal in signals for r in signal.values()]
        options: dict[str, Any] = {"space": _space(*signals), "phases": _phases(*signals)}
        if not any(r.mixed for r in responses):
            tile = sum(tiles.matched(*(abs(r.gain) for r in responses)), np.zeros(()))
            if tile.size > 1:
                options["gain"] = options["taps"] = 1.0 * (tile > 0)
                coarse = [s.coarse or s.value for signal in signals for s in signal]
                options["coarse"] = min(coarse, key=lambda v: _pixels(v.shape))
        return _begin(result, linear=lambda: signals, pending=tuple(signals), **options)

    # Reorderings.

    def _reordered(
        self, place: Place, function: Tiled, moved: Callable[[int], int | None] = lambda a: a
    ) -> Signal:
        """Applies a function to each tile; `moved` gives the new axis of each axis."""
        signal = self._used(place.inputs[0])
        axes = lambda old: frozenset(b for a in old if (b := moved(a)) is not None)
        return {
            source: r.each(function, space=axes(r.space), phases=axes(r.phases))
            for source, r in signal.items()
        }

    def _transpose(self, place: Place) -> Signal:
        order = place.equation.params["permutation"]
        return self._reordered(place, lambda t: _transposed(t, order), order.index)

    def _rev(self, place: Place) -> Signal:
        def function(tile: np.ndarray) -> np.ndarray:
            for axis in place.equation.params["dimensions"]:
                tile = tiles.reversed_tile(tile, 1 + axis, place.shape[axis])
            return tile

        return self._reordered(place, function)

    def _broadcast(self, place: Place) -> Signal:
        positions = place.equation.params["broadcast_dimensions"]
        new = [1 + a for a in range(len(place.shape)) if a not in positions]
        return self._reordered(place, lambda t: np.expand_dims(t, new), lambda a: positions[a])

    def _reshape(self, place: Place) -> Signal:
        old, new = place.inputs[0].shape, place.shape
        groups = tiles.parts(old, new)
        whole = {p.axis: i for i, g in enumerate(groups) for p in g if p.size == p.parent}
        slow = {p.axis: i for i, g in reversed(list(enumerate(groups))) for p in g}
        before = self._used(place.inputs[0])
        signal = self._reordered(place, lambda t: tiles.reshaped(t, old, new), slow.get)
        alone = frozenset(i for i, group in enumerate(groups) if len(group) == 1)
        signal = {
            s: replace(
                r, phases=frozenset(whole[a] for a in before[s].phases if a in whole) & alone
            )
            for s, r in signal.items()
        }
        if place.equation.primitive.name != "reshape" or place.backward:
            return signal
        return self._shuffled(place, signal) or self._interleaved(place, groups, before, signal)

    def _shuffled(self, place: Place, signal: Signal) -> Signal | None:
        """Begins an enlargement at the last step of a pixel shuffle."""
        shuffle = pixel_shuffle(place)
        if shuffle is None:
            return None
        channels = self.lanes.of(shuffle.source)[shuffle.channel]
        made = any(_linearized(s, r) for s, r in signal.items())
        if channels and channels.part and not made:
            return signal  # pixels of windows, which return to their places
        event = self._enlarged(place, "shuffle", shuffle.axes, shuffle.factors, shuffle.source)
        before = next(iter(shuffle.convolutions), None)
        self._filled(event, before or (_convolution_before(shuffle.source) if made else None))
        linear: list[tuple[Source, Response]] = []
        for source, response in signal.items():
            if response.enlargements:
                self._end({source: self._signal(place.inputs[0])[source]})
            found = _linearized(source, response)
            if not found and response.path and source.value.shape == shuffle.source.shape:
                start = _constant(source.value)
                size = shuffle.source.shape[shuffle.channel]
                gain = response.path(tiles.probed(start, 1 + shuffle.channel, size))
                found = [(source, replace(response, gain=gain, mixed=True, known=False))]
            linear += found or [(source, replace(response, known=False))]
        return {
            Source(s.value): replace(
                r, mixed=True, path=None, taps=np.ones((1,) * r.gain.ndim), space=r.space | {*shuffle.axes},
                enlargements=(event,),
            )
            for s, r in linear
        }  # fmt: skip

    def _interleaved(
        self, place: Place, groups: Sequence[Sequence[tiles.Part]], before: Signal, signal: Signal
    ) -> Signal:
        """Begins an enlargement where a reshape joins entries of a stack, as the fast ones, to an axis of space."""
        axes = [
            axis
            for axis, group in enumerate(groups)
            if len(group) == 2
            and all(p.size == p.parent for p in group)
            and any(_grows(r, group[0].axis, group[1].axis) for r in before.values())
        ]
        if not axes:
            return signal
        merged = _merged(signal)
        taps = sum(tiles.matched(*(r.taps for r in merged.values())), np.zeros(()))
        uneven = any(tiles.share(r.gain, axes) > FLAT**2 for r in merged.values())
        if not uneven or taps.min() <= 0:
            return signal  # repeated pixels, or zeros between them
        for source, response in before.items():
            self._end({source: response})
        weights = next((s.weights for s in before if s.weights is not None), None)
        return self._joint(place, axes, [groups[a][1].size for a in axes], merged, weights)

    def _joint(
        self,
        place: Place,
        axes: Sequence[int],
        factors: Sequence[int],
        merged: Signal,
        weights: Value | None = None,
    ) -> Signal:
        """Begins an enlargement of several images between whose pixels those of the others lie."""
        event = self._enlarged(place, "interleaving", axes, factors, place.inputs[-1])
        before = None if weights is not None else _convolution_before(place.inputs[-1])
        self._filled(event, before)
        if weights is not None:
            event.kernel = weights
        if event.kernel is not None:
            event.origin, event.drawn = _origin(event.kernel), True
        return {
            Source(s.value): replace(
                r, mixed=True, path=None, space=r.space | {*axes}, enlargements=(event,)
            )
            for s, r in merged.items()
        }

    def _complete(self, value: Value) -> None:
        """Begins an enlargement where a sum has filled the zeros between pixels of one image with those of others."""
        signal, place = self._signal(value), self._made_at.get(value)
        responses = signal.values()
        if len(signal) < 2 or place is None or any(r.mixed or r.enlargements for r in responses):
            return
        axes = [
            a for a in range(len(value.shape)) if any(r.gain.shape[1 + a] > 1 for r in responses)
        ]
        periods = self._inserted(value, axes, signal) if axes else None
        total = sum(tiles.matched(*(r.taps for r in responses)), np.zeros(()))
        if periods is None or max(periods) == 1 or total.min() <= 0:
            return
        weights = next((s.weights for s in signal if s.weights is not None), None)
        self._signals[value] = self._joint(place, axes, periods, _merged(signal), weights)

    def _slice(self, place: Place) -> Signal:
        params = place.equation.params
        strides = params["strides"] or (1,) * len(place.shape)
        return self._cut(place, params["start_indices"], strides)

    def _dynamic_slice(self, place: Place) -> Signal:
        image, *starts = place.inputs
        signal = self._used(image)
        periodic = [
            any(r.gain.shape[1 + a] > 1 for r in signal.values()) for a in range(len(starts))
        ]
        known = [int(v.compute()) if p else 0 for v, p in zip(starts, periodic, strict=True)]
        if any(p and v in self._free for v, p in zip(starts, periodic, strict=True)):
            raise Unread
        return self._cut(place, known, (1,) * len(known))

    def _cut(self, place: Place, starts: Sequence[int], strides: Sequence[int]) -> Signal:
        image = place.inputs[0]

        def function(tile: np.ndarray) -> np.ndarray:
            for axis, (start, stride) in enumerate(zip(starts, strides, strict=True)):
                if place.shape[axis] != image.shape[axis]:
                    tile = _picked(tile, axis, image.shape[axis], start, stride, place.shape[axis])
            return tile

        return self._reordered(place, function)

    def _split(self, place: Place) -> None:
        axis, sizes = place.equation.params["axis"], place.equation.params["sizes"]
        starts = np.cumsum([0, *sizes]).tolist()
        for result, start in zip(place.results, starts, strict=False):
            cut = place._replace(results=(result,), shape=result.shape)
            first = [start if a == axis else 0 for a in range(len(result.shape))]
            self._signals[result] = self._cut(cut, first, [1] * len(first))

    def _pad(self, place: Place) -> Signal:
        image, filling = place.inputs
        config = place.equation.params["padding_config"]
        inserts = any(n > 0 and image.shape[a] != 1 for a, (_, _, n) in enumerate(config))
        if inserts and (self._is_free(filling) or np.any(filling.compute())):
            raise Unread
        if inserts:
            self._signals[image] = self._ended(image)

        def function(tile: np.ndarray) -> np.ndarray:
            for axis, (low, high, inner) in enumerate(config):
                size, n = image.shape[axis], tile.shape[1 + axis]
                if (low, high, inner) == (0, 0, 0):
                    continue
                if size == 1 or (n == size and n > 1):  # single entries, or channels
                    tile = _padded(tile, axis, config[axis])
                else:
                    tile = tiles.dilated(tile, 1 + axis, inner + 1)
                    tile = tiles.sliced(tile, 1 + axis, -low)
            return tile

        signal = self._reordered(place, function)
        single = {
            a for a, (_, _, n) in enumerate(config) if image.shape[a] == 1 and place.shape[a] != 1
        }
        return {s: replace(r, phases=r.phases | single) for s, r in signal.items()}

    def _concatenate(self, place: Place) -> Signal:
        axis = place.equation.params["dimension"]
        return self._joined(place, axis, [self._pieces(v) for v in place.inputs])

    def _stack(self, place: Place) -> Signal:
        axis = place.equation.params["axis"]
        wider = lambda t: np.expand_dims(t, 1 + axis)
        moved = lambda axes: frozenset(a + (a >= axis) for a in axes)
        pieces = [
            {
                s: r.each(wider, space=moved(r.space), phases=moved(r.phases))
                for s, r in signal.items()
            }
            for signal in map(self._pieces, place.inputs)
        ]
        return self._joined(place, axis, pieces, [1] * len(pieces))

    def _pieces(self, value: Value) -> Signal:
        return self._used(value) if self._is_free(value) else {}

    def _joined(
        self, place: Place, axis: int, pieces: list[Signal], sizes: list[Any] | None = None
    ) -> Signal:
        """Joins images along an axis: as entries of a stack, as channels, or as an image and its borders."""
        sizes = sizes or [v.shape[axis] for v in place.inputs]
        single = len(sizes) > 1 and all(n == 1 for n in sizes)
        result: Signal = {}
        for source in dict.fromkeys(s for signal in pieces for s in signal):
            own = [signal.get(source) for signal in pieces]
            present = [r for r in own if r is not None]
            borders = any(axis in r.space for r in present)
            join = functools.partial(_join, axis=axis, sizes=sizes, borders=borders, single=single)
            paths = [None if r is None else r.path for r in own]
            result[source] = Response(
                join([None if r is None else r.gain for r in own]),
                join([None if r is None else r.taps for r in own]),
                mixed=any(r.mixed for r in present),
                path=_along_all(paths, join) if all(r.path for r in present) else None,
                known=all(r.known for r in present),
                space=_space(*({source: r} for r in present)),
                phases=_phases(*({source: r} for r in present)) | ({axis} if single else set()),
                enlargements=_union(present),
            )  # fmt: skip
        return result or _begin(place.results[0])

    def _gather(self, place: Place) -> Signal:
        """Reads pixels at known indices along one axis, as `jnp.take` and nearest neighbors do."""
        image, indices = place.inputs
        numbers, sizes = (place.equation.params[n] for n in ("dimension_numbers", "slice_sizes"))
        axes = tuple(numbers.start_index_map)
        others = [a for a in range(len(image.shape)) if a not in axes]
        plain = len(axes) == 1 and tuple(numbers.collapsed_slice_dims) == axes
        whole = all(image.shape[a] == sizes[a] for a in others)
        if not (plain and whole) or len(indices.shape) != 2 or self._is_free(indices):
            raise Unread
        picks = np.asarray(indices.compute())[:, 0]
        (at,) = (a for a in range(len(place.shape)) if a not in numbers.offset_dims)
        place_of = {axes[0]: at, **dict(zip(others, numbers.offset_dims, strict=True))}

        def function(tile: np.ndarray) -> np.ndarray:
            axis = 1 + axes[0]
            if tile.shape[axis] > 1:
                tile = tiles.shortened(np.take(tile, picks % tile.shape[axis], axis), axis)
            return np.moveaxis(tile, axis, 1 + at)

        return self._reordered(place, function, place_of.get)

    def _scatter(self, place: Place) -> Signal:
        """Writes or adds an image at known indices, those along each axis by axes of the image of their own."""
        base, indices, image = place.inputs
        numbers = place.equation.params["dimension_numbers"]
        axes = tuple(numbers.scatter_dims_to_operand_dims)
        points = tuple(numbers.inserted_window_dims) == tuple(sorted(axes))
        if self._is_free(indices) or not self._is_free(image) or not points:
            raise Unread
        where = np.asarray(indices.compute())
        window = list(numbers.update_window_dims)
        loose = [a for a in range(len(image.shape)) if a not in window]
        others = [a for a in range(len(base.shape)) if a not in axes]
        if any(base.shape[a] != image.shape[w] for a, w in zip(others, window, strict=True)):
            raise Unread
        spread = [_spread(where[..., j], base.shape[a]) for j, a in enumerate(axes)]
        used = [b for _, along in spread for b in along]
        if len(set(used)) < len(used):
            raise Unread

        def written(tile: np.ndarray) -> np.ndarray:
            for b in loose:
                tile = tiles.expanded(tile, 1 + b, image.shape[b])
            tile = _transposed(tile, [*window, *loose])
            left = list(range(len(loose)))
            first = 1 + len(window)
            for places, along in spread:
                at = [first + left.index(b) for b in along]
                tile = np.tensordot(tile, places, (at, range(1, 1 + len(at))))
                left = [b for b in left if b not in along]
            tile = tile.sum(tuple(range(first, first + len(left))))
            order = [[*others, *axes].index(a) for a in range(len(base.shape))]
            tile = _transposed(tile, order)
            for a, (places, _) in zip(axes, spread, strict=True):
                tile = tiles.shortened(tile, 1 + a, exact=places[0].size < FEW)
            return tile

        place_of = {w: a for a, w in zip(others, window, strict=True)}
        for a, (_, along) in zip(axes, spread, strict=True):
            place_of |= {loose[b]: a for b in along}
        phases = _phases(self._signal(image))
        signal = self._over(place, base, image, written, place_of, frozenset(axes))
        grows = [
            a
            for a, (_, along) in zip(axes, spread, strict=True)
            if len(along) > 1 and any(loose[b] in phases for b in along)
        ]
        if not grows or _enlargements(signal):
            return signal
        merged = _merged(signal)  # patches that overlap, as `fold` of PyTorch adds them
        periods = [max(r.gain.shape[1 + a] for r in merged.values()) for a in grows]
        weights = next((s.weights for s in signal if s.weights is not None), None)
        return self._joint(place, grows, periods, merged, weights)

    def _update_slice(self, place: Place) -> Signal:
        """Writes an image into another at a known place."""
        base, image, *starts = place.inputs
        if not self._is_free(image) or any(map(self._is_free, starts)):
            raise Unread
        axes = [a for a, n in enumerate(image.shape) if n != base.shape[a]]
        first = {a: int(starts[a].compute()) for a in axes}

        def written(tile: np.ndarray) -> np.ndarray:
            for a in axes:
                tile = tiles.expanded(tile, 1 + a, image.shape[a])
                indices = first[a] + np.arange(image.shape[a])
                tile = _placed(tile, 1 + a, indices, base.shape[a])
            return tile

        place_of = {a: a for a in range(len(base.shape))}
        return self._over(place, base, image, written, place_of, frozenset(axes))

    def _over(
        self,
        place: Place,
        base: Value,
        image: Value,
        written: Tiled,
        place_of: dict[int, int],
        axes: frozenset[int],
    ) -> Signal:
        """Adds what is written to what was there, which a scatter replaces."""
        moved = lambda old: frozenset(place_of[a] for a in old if a in place_of)
        above = {
            s: r.each(written, space=moved(r.space) | axes, phases=moved(r.phases))
            for s, r in self._ended(image).items()
        }
        if not self._is_free(base):
            return above
        hit = written(np.ones((1,) * (1 + len(image.shape))))
        adds = place.equation.primitive.name == "scatter-add"
        below = self._used(base)
        return _sum(
            [below if adds else _scaled(below, 1.0 - np.minimum(hit, 1), exact=True), above]
        )

    def _tile(self, place: Place) -> Signal:
        old, reps = place.inputs[0].shape, place.equation.params["reps"]

        def function(tile: np.ndarray) -> np.ndarray:
            for axis, n in enumerate(reps):
                if n > 1 and tile.shape[1 + axis] > 1:
                    tile = np.concatenate([tiles.expanded(tile, 1 + axis, old[axis])] * n, 1 + axis)
            return tile

        if len(reps) != len(old):
            raise Unread
        return self._reordered(place, function)

    # Sums and products.

    def _add(self, place: Place) -> Signal:
        signals: list[Signal] = []
        for value, other in (place.inputs, place.inputs[::-1]):
            if self._is_free(value) and not self._is_offset(value, other):
                sign = -1.0 if place.equation.primitive.name == "sub" and len(signals) else 1.0
                signal = self._signal(value)
                signals.append(signal if sign > 0 else _scaled(signal, np.array(-1.0)))
        return _sum(signals) if signals else _begin(place.results[0])

    def _is_offset(self, value: Value, other: Value) -> bool:
        """Whether a value is a bias: the same along some axes of the image that it is added to."""
        return self._along(value) < self._along(other) and not _enlargements(self._signal(value))

    def _mul(self, place: Place) -> Signal:
        inverse = place.equation.primitive.name == "div"
        for image, factor in (place.inputs, place.inputs[::-1])[: 2 - inverse]:
            if not self._is_free(image):
                continue
            if not self._is_free(factor):
                numbers = _wide(np.asarray(factor.compute()))
            elif self._along(factor) < self._along(image):
                numbers = self._scale(image, factor)
            else:
                continue
            if not np.isfinite(numbers).all():
                continue
            if inverse:
                numbers = 1 / np.where(numbers == 0, 1, numbers)
            return _scaled(self._signal(image), numbers)
        return self._nonlinear(place)

    def _scale(self, image: Value, factor: Value) -> np.ndarray:
        """Returns the numbers of a factor that depends on the arguments; one if they are unknown or do not matter."""
        if _enlargements(self._signal(image)):
            try:
                numbers = _wide(np.asarray(factor.compute()))
            except Unknown:
                return np.ones(())
            axes = self._along(factor)
            numbers = numbers[tuple(slice(None if a in axes else 1) for a in range(numbers.ndim))]
            if np.any(numbers):
                return numbers
        return np.ones(())

    def _select(self, place: Place) -> Signal:
        which, *choices = place.inputs
        if self._is_free(which) or len(choices) != 2:
            return self._nonlinear(place)
        chosen = np.asarray(which.compute(), np.float32)
        signals = [
            _scaled(self._signal(value), part)
            for value, part in zip(choices, (1 - chosen, chosen), strict=True)
            if self._is_free(value)
        ]
        return _sum(signals)

    # Products of matrices.

    def _product(self, place: Place) -> Signal:
        """Follows responses through a matrix along space; one of channels begins a linear part."""
        (contracted, batch) = place.equation.params["dimension_numbers"]
        side = self._image_side(place)
        if side is None or batch != ((), ()):
            for value in place.inputs:
                if self._is_free(value):
                    self._end(self._used(value))
            return _begin(place.results[0])
        image, matrix = place.inputs if side == 0 else place.inputs[::-1]
        mine, theirs = contracted if side == 0 else contracted[::-1]
        kept = [a for a in range(len(image.shape)) if a not in mine]
        made = [a for a in range(len(matrix.shape)) if a not in theirs]
        # For each axis of the result, the axis of the image.
        axes: list[int | None] = (
            [*kept, *(None for _ in made)] if side == 0 else [*(None for _ in made), *kept]
        )
        new = frozenset(a for a, old in enumerate(axes) if old is None)
        self._complete(image)
        signal = self._used(image)
        moved = lambda old: frozenset(axes.index(a) for a in old if a in kept)
        resampling = self._resampling(image, matrix, mine, theirs)
        if resampling is not None:
            (axis,), (at,) = mine, new
            self.lanes.product(place, image, [axis if a is None else a for a in axes])

            def along(tile: np.ndarray, matrix: np.ndarray = resampling) -> np.ndarray:
                tile = tiles.expanded(tile, 1 + axis, matrix.shape[0])
                tile = np.moveaxis(np.tensordot(tile, matrix, (1 + axis, 0)), -1, 1 + at)
                return tiles.shortened(tile, 1 + at)

            taps = lambda tile: along(tile, 1.0 * (resampling != 0))
            if _enlargements(signal) and resampling.shape[0] != resampling.shape[1]:
                signal = self._ended(image)  # a pattern is resampled
            signal = {
                s: r.each(along, taps, space=moved(r.space) | new, phases=moved(r.phases))
                for s, r in signal.items()
            }
            return self._repeated(place, at, matrix, signal)
        self.lanes.product(place, image, axes)
        apply = functools.partial(
            self._mixed_channels, image=image, matrix=matrix, mine=mine, theirs=theirs, side=side
        )
        if not _enlargements(signal):
            phases = new if len(made) > 1 else frozenset()
            return _begin(
                place.results[0],
                linear=lambda: [apply(signal)],
                weights=matrix,
                space=moved(_space(signal)),
                phases=moved(_phases(signal)) | phases,
            )
        return apply(signal)

    def _repeated(self, place: Place, axis: int, matrix: Value, signal: Signal) -> Signal:
        """Begins an enlargement by a matrix along space whose rows repeat with a period and leave no holes."""
        period = max(r.gain.shape[1 + axis] for r in signal.values())
        filled = all(r.taps.min() > 0 for r in signal.values())
        if period == 1 or not filled or _enlargements(signal):
            return signal
        if self._inserted(place.results[0], [axis], signal) is None:
            return signal
        event = self._enlarged(place, "matrix", [axis], [period], place.inputs[0])
        event.kernel, event.origin, event.drawn = matrix, _origin(matrix), True
        return {s: replace(r, enlargements=(event,)) for s, r in signal.items()}

    def _mixed_channels(
        self, signal: Signal, *, image: Value, matrix: Value, mine: Any, theirs: Any, side: int
    ) -> Signal:
        """Multiplies the channels of responses with a matrix."""
        numbers = _wide(np.asarray(matrix.compute()))
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
            taps = _transposed(taps, (*kept, *mine)).reshape(
                1, *(taps.shape[1 + a] for a in kept), *(1 for _ in made)
            )
            order = [*range(len(kept)), *range(len(kept), len(kept) + len(made))]
            if side == 1:
                order = order[len(kept) :] + order[: len(kept)]
            axes = [kept[i] if i < len(kept) else None for i in order]
            moved = lambda old, axes=axes: frozenset(axes.index(a) for a in old if a in axes)
            result[source] = replace(
                r, gain=_transposed(gain, order), taps=_transposed(taps, order), mixed=True, path=None,
                space=moved(r.space), phases=moved(r.phases),
            )  # fmt: skip
        return result

    def _image_side(self, place: Place) -> int | None:
        """Returns which side of a product is the image, None if both are."""
        left, right = place.inputs
        for is_image in (
            self._is_free,
            self._made.__contains__,
            lambda v: bool(_space(self._signal(v))),
        ):
            sides = [is_image(left), is_image(right)]
            if sides[0] != sides[1]:
                return sides.index(True)
        if left in self._made:
            return None
        return int(len(right.shape) > len(left.shape))

    def _resampling(self, image: Value, matrix: Value, mine: Any, theirs: Any) -> np.ndarray | None:
        """Returns a matrix that acts along an axis of space: a convolution has told the axis, or most of it is zero."""
        told = bool(mine) and mine[0] in _space(self._signal(image))
        if len(mine) != 1 or len(matrix.shape) != 2 or (self._is_free(matrix) and not told):
            return None
        numbers = _wide(np.asarray(matrix.compute()))
        numbers = numbers if theirs[0] == 0 else numbers.T
        sparse = min(numbers.shape) > 2 and (numbers == 0).mean() >= 0.5
        return numbers if told or sparse else None

    # Convolutions.

    def _convolution(self, place: Place) -> Signal:
        result = place.results[0]
        face = convolution_of(place.equation, place.inputs)
        if face is None:
            return self._nonlinear(place)
        if face.face == "correlate":
            return _begin(result)
        layout = layout_of(place.equation)
        image, kernel = place.inputs[:2]
        grows = any(
            t > 1 and image.shape[a] != 1 for a, t in zip(layout.space, layout.steps.t, strict=True)
        )
        self._complete(image)
        signal = self._ended(image) if grows else self._used(image)
        space = frozenset(layout.out_space)
        begun: tuple[Enlargement, ...] = ()
        if not _enlargements(signal):
            signal = _without_single(signal, image, layout.space) or _begin(image)
            periods = self._inserted(image, layout.space, signal)
            if periods is None:
                signal, periods = _begin(image), [1] * len(layout.space)
            strides = [
                p * (t if image.shape[a] != 1 else 1)
                for p, t, a in zip(periods, layout.steps.t, layout.space, strict=True)
            ]
            if max(strides, default=1) == 1:
                linear = lambda: [self._convolved(signal, layout, self._weights(kernel, layout)[0])]
                return _begin(result, linear=linear, space=space)
            event = self._enlarged(place, "convolution", layout.out_space, strides, face.image)
            self._filled(event, face)
            event.kernel_size = layout.kernel_size
            begun = (event,)
        weights, origin = self._weights(kernel, layout)
        for event in begun:
            event.origin, event.drawn = origin, weights is not None
        signal = {s: replace(r, known=r.known and origin != "none") for s, r in signal.items()}
        return self._convolved(signal, layout, weights, begun)

    def _convolved(
        self,
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
            taps = _transposed(r.taps, layout.order).max(-1, keepdims=True)
            taps, _ = tiles.convolved(taps, ones, layout.steps, 1, mixed=True)
            gain, mixed = np.ones((1,) * r.gain.ndim), True
            if weights is not None:
                gain = _transposed(r.gain, layout.order)
                gain, mixed = tiles.convolved(
                    gain, weights, layout.steps, layout.groups, mixed=r.mixed
                )
                gain = _transposed(gain, back)
            result[source] = Response(
                gain,
                _transposed(taps, back),
                mixed=mixed,
                known=r.known and weights is not None,
                space=frozenset(layout.out_space),
                enlargements=tuple(dict.fromkeys((*r.enlargements, *begun))),
            )
        return result

    def _inserted(self, image: Value, axes: Sequence[int], signal: Signal) -> list[int] | None:
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

    def _weights(self, kernel: Value, layout: Layout) -> tuple[np.ndarray | None, Origin]:
        """Returns `(*kernel_size, channels // groups, features)` and their origin; of several, the least even.

        Weights that cannot be computed are drawn, since what follows may even out any weights.
        """
        sizes = kernel.shape
        if not all(isinstance(n, int) for n in sizes):
            return None, "none"
        try:
            turns = range(min(kernel.turns, MOST_TURNS))
            arrays = [_wide(np.asarray(kernel.compute(turn))) for turn in turns]
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

    def _window_sum(self, place: Place) -> Signal:
        params, image = place.equation.params, place.inputs[0]
        base, window = params["base_dilation"], params["window_dimensions"]
        axes = range(len(image.shape))
        grows = any(base[a] > 1 and image.shape[a] != 1 for a in axes)
        signal = self._ended(image) if grows else self._used(image)
        lows = tuple(low for low, _ in params["padding"])
        steps = Steps(tuple(base), tuple(params["window_strides"]), tuple(params["window_dilation"]), lows)  # fmt: skip
        reached = [a for a in axes if window[a] > 1 or base[a] > 1]
        begun: tuple[Enlargement, ...] = ()
        if not _enlargements(signal):
            signal = signal or _begin(image)
            periods = self._inserted(image, reached, signal) or [1] * len(reached)
            strides = [
                p * (base[a] if image.shape[a] != 1 else 1)
                for p, a in zip(periods, reached, strict=True)
            ]
            if max(strides, default=1) > 1:
                begun = (self._enlarged(place, "pool", reached, strides, image),)
                begun[0].kernel_size = tuple(window[a] for a in reached)
        ones = np.ones((*window, 1, 1), np.float32)

        def function(tile: np.ndarray) -> np.ndarray:
            return tiles.convolved(tile[..., None], ones, steps, 1, mixed=True)[0][..., 0]

        if not begun and not _enlargements(signal):
            return _begin(place.results[0], space=_space(signal) | {*reached})
        return {
            s: replace(
                r.each(function, space=r.space | {*reached}), enlargements=(*r.enlargements, *begun)
            )
            for s, r in signal.items()
        }

    # Enlargements.

    def _enlarged(
        self, place: Place, means: Means, axes: Sequence[int], strides: Sequence[int], image: Value
    ) -> Enlargement:
        lanes = self.lanes.of(place.results[0])
        begun = tuple(lanes[a] for a in axes)
        event = Enlargement(means, place, tuple(axes), tuple(strides), begun, image)
        self.enlargements.append(event)
        return event

    def _filled(self, event: Enlargement, convolution: Convolution | None) -> None:
        """Takes note of the convolution that fills the new pixels."""
        if convolution is None:
            return
        event.convolution, event.kernel = convolution, convolution.kernel
        event.kernel_size = convolution.geometry.kernel_size
        event.origin, event.drawn = _origin(convolution.kernel), True

    # Axes along which values vary, as far as broadcasts tell.

    def _vary(self, place: Place) -> None:
        if not place.results or not place.inputs:
            return
        name, params = place.equation.primitive.name, place.equation.params
        result, first = place.results[0], place.inputs[0]
        axes: Iterable[int] | None = None
        if name == "broadcast_in_dim":
            axes = (params["broadcast_dimensions"][a] for a in self._along(first))
        elif name == "transpose":
            axes = (params["permutation"].index(a) for a in self._along(first))
        elif name in {"reshape", "squeeze"}:
            try:
                groups = tiles.parts(first.shape, place.shape)
            except Unread:
                return
            old = self._along(first)
            axes = (i for i, group in enumerate(groups) if any(p.axis in old for p in group))
        elif name not in ALONG and all(v.shape in {place.shape, ()} for v in place.inputs):
            axes = (a for v in place.inputs for a in self._along(v))
        if axes is not None:
            self._axes[result] = frozenset(axes)

    def _along(self, value: Value) -> frozenset[int]:
        if value not in self._axes:
            self._axes[value] = frozenset(a for a, n in enumerate(value.shape) if n != 1)
        return self._axes[value]


# Signals.


def _constant(value: Value) -> np.ndarray:
    return np.ones((1,) * (1 + len(value.shape)), np.float32)


def _begin(
    value: Value,
    *,
    linear: Callable[[], list[Signal]] | None = None,
    pending: tuple[Signal, ...] = (),
    coarse: Value | None = None,
    weights: Value | None = None,
    **options: Any,
) -> Signal:
    one = _constant(value)
    response = Response(one, one, path=lambda tile: tile)
    return {Source(value, linear, pending, coarse, weights): replace(response, **options)}


def _pixels(shape: Sequence[Any]) -> int:
    return prod(n for n in shape if isinstance(n, int))


def _linearized(source: Source, response: Response) -> list[tuple[Source, Response]]:
    """Returns the mixed responses of which an unmixed one was made, nonlinear operations taken for the identity."""
    if response.mixed:
        return [(source, response)]
    if source.linear is None or response.path is None:
        return []
    path = response.path
    try:
        before = source.linear()
    except (Unread, Unknown):
        return []
    return [
        (
            s,
            replace(
                response,
                gain=path(r.gain),
                taps=_taps(path, r),
                mixed=True,
                path=None,
                known=r.known,
            ),
        )
        for signal in before
        for start, mine in signal.items()
        for s, r in _linearized(start, mine)
    ]


def _taps(path: Tiled, response: Response) -> np.ndarray:
    try:
        return path(response.taps)
    except (Unread, ValueError):
        return np.ones((1,) * response.taps.ndim)


def _judge(signal: Signal) -> None:
    """Judges the enlargements of a signal by its responses to constants."""
    found = _enlargements(signal)
    if not found:
        return
    try:
        taps = sum(tiles.matched(*(r.taps for r in signal.values())), np.zeros(()))
    except Unread:
        taps = np.ones(())
    space = _space(signal)
    axes = tuple(1 + a for a in range(taps.ndim - 1) if a not in space)
    counts = taps.max(axes) if axes else taps
    overlap = float(counts.max() / counts.min()) if counts.min() > 0 else float("inf")
    for event in found:
        mine = [r for r in signal.values() if event in r.enlargements]
        share = max(tiles.share(r.gain, r.space) for r in mine)
        event.judge(share, overlap, known=all(r.known for r in mine))


def _sum(signals: Iterable[Signal]) -> Signal:
    result: Signal = {}
    for signal in signals:
        for source, r in signal.items():
            old = result.get(source)
            result[source] = r if old is None else _added(old, r)
    return result


def _grows(response: Response, slow: int, fast: int) -> bool:
    """Whether entries along an axis become pixels between those of another: of space, or none that is known else."""
    spatial = slow in response.space or (slow > 0 and slow not in response.phases)
    return fast in response.phases and spatial and response.gain.shape[1 + slow] == 1


def _without_single(signal: Signal, image: Value, axes: Iterable[int]) -> Signal:
    """Takes what is not periodic along an axis, such as a single row among zeros, for constant along it."""
    for axis in axes:
        whole = [r for r in signal.values() if 1 < r.gain.shape[1 + axis] == image.shape[axis]]
        if whole and not any(r.mixed for r in whole):
            largest = functools.partial(np.max, axis=1 + axis, keepdims=True)
            signal = {s: r.each(largest) for s, r in signal.items()}
    return signal


def _merged(signal: Signal) -> Signal:
    """Returns the mixed responses to what was before the sources of a signal, as far as it is known."""
    return _sum(
        {s: r}
        for source, old in signal.items()
        for s, r in _linearized(source, old) or [(source, old)]
    )


def _added(a: Response, b: Response) -> Response:
    gain, taps = (np.add(*tiles.matched(x, y)) for x, y in ((_probes(a, b)), (a.taps, b.taps)))
    paths = a.path, b.path
    if not (a.mixed or b.mixed):  # what is written row by row
        for axis in range(1, gain.ndim):
            gain, taps = (tiles.shortened(t, axis, exact=True) for t in (gain, taps))
    both: Any = lambda tile: np.add(*tiles.matched(paths[0](tile), paths[1](tile)))  # type: ignore[misc]
    return Response(
        gain,
        taps,
        mixed=a.mixed or b.mixed,
        path=both if all(paths) else None,
        known=a.known and b.known,
        space=a.space | b.space,
        phases=a.phases | b.phases,
        enlargements=_union([a, b]),
    )


def _probes(a: Response, b: Response) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gains of two responses with equal probes."""
    if a.mixed == b.mixed and len(a.gain) == len(b.gain):
        return a.gain, b.gain
    if a.mixed == b.mixed:
        raise Unread
    mixed, alone = (a.gain, b.gain) if a.mixed else (b.gain, a.gain)
    axes = [x for x in range(1, mixed.ndim) if mixed.shape[x] == len(mixed) > 1]
    if len(axes) != 1:
        raise Unread
    alone = tiles.probed(alone, axes[0], len(mixed))
    return (mixed, alone) if a.mixed else (alone, mixed)


def _scaled(signal: Signal, numbers: np.ndarray, *, exact: bool = False) -> Signal:
    """Multiplies responses with known numbers, which may be a mask or a tile; `exact` up to its borders."""
    if not signal:
        return {}
    if numbers.size == 1:
        factor = numbers.reshape(()).item()
        if factor == 0:
            return {}
        return {s: r.each(lambda t: t * factor, lambda t: t) for s, r in signal.items()}
    rank = max(r.gain.ndim for r in signal.values())
    mask = numbers if numbers.ndim == rank else numbers[None]
    if mask.ndim != rank:
        raise Unread
    for axis in range(1, rank):
        mask = tiles.shortened(mask, axis, exact=exact)
    times: Tiled = lambda t: np.multiply(*tiles.matched(t, mask))
    holes = 1.0 * (mask != 0)

    def taps(tile: np.ndarray, gain: np.ndarray) -> np.ndarray:
        channels = tuple(a for a in range(1, rank) if tile.shape[a] == 1 < gain.shape[a])
        return np.multiply(*tiles.matched(tile, holes.max(channels, keepdims=True)))

    return {s: r.each(times, functools.partial(taps, gain=r.gain)) for s, r in signal.items()}


def _enlargements(signal: Signal) -> tuple[Enlargement, ...]:
    return _union(signal.values())


def _union(responses: Iterable[Response]) -> tuple[Enlargement, ...]:
    return tuple(dict.fromkeys(e for r in responses for e in r.enlargements))


def _space(*signals: Signal) -> frozenset[int]:
    return frozenset().union(*(r.space for signal in signals for r in signal.values()))


def _phases(*signals: Signal) -> frozenset[int]:
    return frozenset().union(*(r.phases for signal in signals for r in signal.values()))


def _convolution_before(value: Value) -> Convolution | None:
    """Returns a convolution that made an image, the one nearest to it."""
    seen, waiting = {value}, [value]
    while waiting and len(seen) < MOST_SEEN:
        value = waiting.pop(0)
        if value.equation is None:
            continue
        found = convolution_of(value.equation, value.inputs)
        if found is not None:
            return found
        new = [v for v in value.inputs if v not in seen]
        seen.update(new)
        waiting += new
    return None


def _origin(weights: Value) -> Origin:
    try:
        weights.compute()
    except Unknown:
        return "none"
    return "drawn" if weights.drawn else "given"


def _unevenness(kernel: np.ndarray, layout: Layout) -> float:
    rank = len(layout.kernel_size)
    tile = np.ones((1,) * (2 + layout.batch + rank), kernel.dtype)
    tile, _ = tiles.convolved(tile, kernel, layout.steps, layout.groups, mixed=False)
    return tiles.share(tile, range(layout.batch, layout.batch + rank))


# Arrays.


def _is_inexact(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _wide(numbers: np.ndarray) -> np.ndarray:
    """Returns numbers in float32 or wider, as NumPy knows it."""
    kind = np.float32 if not jnp.issubdtype(numbers.dtype, jnp.complexfloating) else np.complex64
    return numbers if numbers.dtype in (np.float64, np.complex128) else numbers.astype(kind)


def _transposed(tile: np.ndarray, order: Iterable[int]) -> np.ndarray:
    return tile.transpose(0, *(1 + int(a) for a in order))


def _picked(
    tile: np.ndarray, axis: int, whole: Any, start: int, stride: int, size: Any
) -> np.ndarray:
    """Follows a tile through a slice along one axis."""
    if tile.shape[1 + axis] == 1:
        return tile
    if tile.shape[1 + axis] == whole:  # channels, or entries of a stack
        return np.take(tile, start + stride * np.arange(size), 1 + axis)
    return tiles.sliced(tile, 1 + axis, start, stride)


def _padded(tile: np.ndarray, axis: int, config: tuple[int, int, int]) -> np.ndarray:
    """Pads the whole of an axis with zeros."""
    low, high, inner = config
    tile = tiles.dilated(tile, 1 + axis, inner + 1)
    n = tile.shape[1 + axis] - inner
    tile = np.take(tile, np.arange(max(0, -low), n + min(0, high)), 1 + axis)
    widths = [(0, 0)] * tile.ndim
    widths[1 + axis] = max(0, low), max(0, high)
    return np.pad(tile, widths)


def _placed(tile: np.ndarray, axis: int, indices: np.ndarray, size: int) -> np.ndarray:
    """Writes the entries along an axis at indices of a longer one; those outside are dropped."""
    inside = (indices >= 0) & (indices < size)
    wide = np.zeros((*tile.shape[:axis], size, *tile.shape[axis + 1 :]), tile.dtype)
    wide[(slice(None),) * axis + (indices[inside],)] = np.compress(inside, tile, axis)
    return wide


def _spread(indices: np.ndarray, size: int) -> tuple[np.ndarray, list[int]]:
    """Returns for each pixel of an axis whether an index is its own, and the axes along which the indices vary."""
    along = [
        a
        for a in range(indices.ndim)
        if indices.shape[a] > 1 and (indices != np.take(indices, [0], a)).any()
    ]
    varying = indices[tuple(slice(None) if a in along else 0 for a in range(indices.ndim))]
    pixels = np.arange(size).reshape(-1, *(1 for _ in along))
    return (pixels == varying[None]).astype(np.float32), along


def _along_all(paths: Sequence[Tiled | None], join: Callable[..., np.ndarray]) -> Tiled:
    """Returns the path of images that are joined, each of which has a path of its own from one source."""
    return lambda tile: join([None if path is None else path(tile) for path in paths])


def _join(
    arrays: Sequence[np.ndarray | None],
    axis: int,
    sizes: Sequence[Any],
    *,
    borders: bool,
    single: bool,
) -> np.ndarray:
    """Joins tiles along an axis; None stands for zeros."""
    at = 1 + axis
    given = [a for a in arrays if a is not None]
    if not single and len(given) == len(arrays) and all(a.shape[at] == 1 for a in given):
        same = tiles.matched(*given)
        if all(np.array_equal(same[0], a) for a in same):
            return same[0]
    if not all(isinstance(n, int) for n in sizes):
        raise Unread
    largest = int(np.argmax(sizes))
    main = arrays[largest]
    if borders and not single:
        if main is None or 2 * sizes[largest] <= sum(sizes):
            raise Unread
        return tiles.sliced(main, at, -sum(sizes[:largest]))
    model = given[0]
    full = [
        tiles.expanded(a, at, n)
        if a is not None
        else np.zeros((*model.shape[:at], n, *model.shape[at + 1 :]), model.dtype)
        for a, n in zip(arrays, sizes, strict=True)
    ]
    return np.concatenate(tiles.matched(*full, apart=at), at)
