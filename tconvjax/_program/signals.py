"""Responses of values to the constants of sources, and what is done to them.

A linear part begins at a *source*, a value whose channels are taken for constants along space. A signal has the
response of a value to each source before it, as tiles. Enlargements in it are places where the grid became finer.
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
from tconvjax._program.lanes import Lane
from tconvjax._program.program import Place, Unknown, Value
from tconvjax._program.tiles import Unread

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


def constant(value: Value) -> np.ndarray:
    """Returns the tile of a constant."""
    return np.ones((1,) * (1 + len(value.shape)), np.float32)


def begin(
    value: Value,
    *,
    linear: Callable[[], list[Signal]] | None = None,
    pending: tuple[Signal, ...] = (),
    coarse: Value | None = None,
    weights: Value | None = None,
    **options: Any,
) -> Signal:
    """Returns the signal of a value that begins a linear part."""
    one = constant(value)
    response = Response(one, one, path=lambda tile: tile)
    return {Source(value, linear, pending, coarse, weights): replace(response, **options)}


def pixels_of(shape: Sequence[Any]) -> int:
    """Returns the number of elements along axes of known size."""
    return prod(n for n in shape if isinstance(n, int))


def linearized(source: Source, response: Response) -> list[tuple[Source, Response]]:
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
                taps=_taps(response, r),
                mixed=True,
                path=None,
                known=r.known,
            ),
        )
        for signal in before
        for start, mine in signal.items()
        for s, r in linearized(start, mine)
    ]


def _taps(response: Response, before: Response) -> np.ndarray:
    """Returns the numbers of taps from what was before the source, which signs along the path do not change."""
    if before.taps.size == 1:
        return response.taps * before.taps.item()
    try:
        return response.path(before.taps) if response.path else response.taps
    except (Unread, ValueError):
        return np.ones((1,) * response.taps.ndim)


def judge(signal: Signal) -> None:
    """Judges the enlargements of a signal by its responses to constants."""
    found = enlargements_of(signal)
    if not found:
        return
    try:
        taps = sum(tiles.matched(*(r.taps for r in signal.values())), np.zeros(()))
    except Unread:
        taps = np.ones(())
    space = space_of(signal)
    axes = tuple(1 + a for a in range(taps.ndim - 1) if a not in space)
    counts = taps.max(axes) if axes else taps
    overlap = float(counts.max() / counts.min()) if counts.min() > 0 else float("inf")
    for event in found:
        mine = [r for r in signal.values() if event in r.enlargements]
        share = max(tiles.share(r.gain, r.space) for r in mine)
        event.judge(share, overlap, known=all(r.known for r in mine))


def summed(signals: Iterable[Signal]) -> Signal:
    """Adds signals, source by source."""
    result: Signal = {}
    for signal in signals:
        for source, r in signal.items():
            old = result.get(source)
            result[source] = r if old is None else _added(old, r)
    return result


def merged(signal: Signal) -> Signal:
    """Returns the mixed responses to what was before the sources of a signal, as far as it is known."""
    return summed(
        {s: r}
        for source, old in signal.items()
        for s, r in linearized(source, old) or [(source, old)]
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
        enlargements=union([a, b]),
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


def scaled(signal: Signal, numbers: np.ndarray, *, exact: bool = False) -> Signal:
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


def enlargements_of(signal: Signal) -> tuple[Enlargement, ...]:
    """Returns the enlargements in a signal."""
    return union(signal.values())


def union(responses: Iterable[Response]) -> tuple[Enlargement, ...]:
    """Returns the enlargements in responses, each once."""
    return tuple(dict.fromkeys(e for r in responses for e in r.enlargements))


def space_of(*signals: Signal) -> frozenset[int]:
    """Returns the axes that some response knows as space."""
    return frozenset().union(*(r.space for signal in signals for r in signal.values()))


def phases_of(*signals: Signal) -> frozenset[int]:
    """Returns the axes whose entries may become phases."""
    return frozenset().union(*(r.phases for signal in signals for r in signal.values()))


def convolution_before(value: Value) -> Convolution | None:
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


def origin_of(weights: Value) -> Origin:
    """Returns whether weights are given, drawn, or unknown."""
    try:
        weights.compute()
    except Unknown:
        return "none"
    return "drawn" if weights.drawn else "given"


def is_inexact(dtype: Any) -> bool:
    """Whether a dtype is one of floats or complex numbers."""
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def wide(numbers: np.ndarray) -> np.ndarray:
    """Returns numbers in float32 or wider, as NumPy knows it."""
    kind = np.float32 if not jnp.issubdtype(numbers.dtype, jnp.complexfloating) else np.complex64
    return numbers if numbers.dtype in (np.float64, np.complex128) else numbers.astype(kind)


def transposed(tile: np.ndarray, order: Iterable[int]) -> np.ndarray:
    """Reorders the axes of a tile behind that of its probes."""
    return tile.transpose(0, *(1 + int(a) for a in order))
