"""Responses through operations that move pixels: reshapes, slices, pads, stacks, reads and writes at indices."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from tconvjax._program import tiles
from tconvjax._program.program import Place, Value
from tconvjax._program.reader import Reader
from tconvjax._program.shuffles import pixel_shuffle
from tconvjax._program.signals import (
    FLAT,
    Response,
    Signal,
    Source,
    Tiled,
    begin,
    constant,
    convolution_before,
    enlargements_of,
    linearized,
    merged,
    phases_of,
    scaled,
    space_of,
    summed,
    transposed,
    union,
)
from tconvjax._program.tiles import Unread

FEW = 4  # indices along an axis that are no pattern yet


def reordered(
    reader: Reader, place: Place, function: Tiled, moved: Callable[[int], int | None] = lambda a: a
) -> Signal:
    """Applies a function to each tile; `moved` gives the new axis of each axis."""
    signal = reader.used(place.inputs[0])
    axes = lambda old: frozenset(b for a in old if (b := moved(a)) is not None)
    return {
        source: r.each(function, space=axes(r.space), phases=axes(r.phases))
        for source, r in signal.items()
    }


def transpose(reader: Reader, place: Place) -> Signal:
    """Follows responses through a transpose."""
    order = place.equation.params["permutation"]
    return reordered(reader, place, lambda t: transposed(t, order), order.index)


def rev(reader: Reader, place: Place) -> Signal:
    """Follows responses through a reversal."""

    def function(tile: np.ndarray) -> np.ndarray:
        for axis in place.equation.params["dimensions"]:
            tile = tiles.reversed_tile(tile, 1 + axis, place.shape[axis])
        return tile

    return reordered(reader, place, function)


def broadcast(reader: Reader, place: Place) -> Signal:
    """Follows responses through a broadcast, whose new axes are constant."""
    positions = place.equation.params["broadcast_dimensions"]
    new = [1 + a for a in range(len(place.shape)) if a not in positions]
    return reordered(reader, place, lambda t: np.expand_dims(t, new), lambda a: positions[a])


def reshape(reader: Reader, place: Place) -> Signal:
    """Follows responses through a reshape, which may end a pixel shuffle or interleave images."""
    old, new = place.inputs[0].shape, place.shape
    groups = tiles.parts(old, new)
    whole = {p.axis: i for i, g in enumerate(groups) for p in g if p.size == p.parent}
    slow = {p.axis: i for i, g in reversed(list(enumerate(groups))) for p in g}
    before = reader.used(place.inputs[0])
    signal = reordered(reader, place, lambda t: tiles.reshaped(t, old, new), slow.get)
    alone = frozenset(i for i, group in enumerate(groups) if len(group) == 1)
    signal = {
        s: replace(r, phases=frozenset(whole[a] for a in before[s].phases if a in whole) & alone)
        for s, r in signal.items()
    }
    if place.equation.primitive.name != "reshape" or place.backward:
        return signal
    return _shuffled(reader, place, signal) or _interleaved(reader, place, groups, before, signal)


def _shuffled(reader: Reader, place: Place, signal: Signal) -> Signal | None:
    """Begins an enlargement at the last step of a pixel shuffle."""
    shuffle = pixel_shuffle(place)
    if shuffle is None:
        return None
    channels = reader.lanes.of(shuffle.source)[shuffle.channel]
    made = any(linearized(s, r) for s, r in signal.items())
    if channels and channels.part and not made:
        return signal  # pixels of windows, which return to their places
    event = reader.enlarged(place, "shuffle", shuffle.axes, shuffle.factors, shuffle.source)
    before = next(iter(shuffle.convolutions), None)
    reader.filled(event, before or (convolution_before(shuffle.source) if made else None))
    linear: list[tuple[Source, Response]] = []
    for source, response in signal.items():
        if response.enlargements:
            reader.end({source: reader.signal(place.inputs[0])[source]})
        found = linearized(source, response)
        if not found and response.path and source.value.shape == shuffle.source.shape:
            start = constant(source.value)
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
    reader: Reader,
    place: Place,
    groups: Sequence[Sequence[tiles.Part]],
    before: Signal,
    signal: Signal,
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
    joined = merged(signal)
    taps = sum(tiles.matched(*(r.taps for r in joined.values())), np.zeros(()))
    uneven = any(tiles.share(r.gain, axes) > FLAT**2 for r in joined.values())
    if not uneven or taps.min() <= 0:
        return signal  # repeated pixels, or zeros between them
    for source, response in before.items():
        reader.end({source: response})
    weights = next((s.weights for s in before if s.weights is not None), None)
    return reader.joint(place, axes, [groups[a][1].size for a in axes], joined, weights)


def slice_(reader: Reader, place: Place) -> Signal:
    """Follows responses through a slice."""
    params = place.equation.params
    strides = params["strides"] or (1,) * len(place.shape)
    return _cut(reader, place, params["start_indices"], strides)


def dynamic_slice(reader: Reader, place: Place) -> Signal:
    """Follows responses through a slice at a known place."""
    image, *starts = place.inputs
    signal = reader.used(image)
    periodic = [any(r.gain.shape[1 + a] > 1 for r in signal.values()) for a in range(len(starts))]
    known = [int(v.compute()) if p else 0 for v, p in zip(starts, periodic, strict=True)]
    if any(p and reader.is_free(v) for v, p in zip(starts, periodic, strict=True)):
        raise Unread
    return _cut(reader, place, known, (1,) * len(known))


def _cut(reader: Reader, place: Place, starts: Sequence[int], strides: Sequence[int]) -> Signal:
    image = place.inputs[0]

    def function(tile: np.ndarray) -> np.ndarray:
        for axis, (start, stride) in enumerate(zip(starts, strides, strict=True)):
            if place.shape[axis] != image.shape[axis]:
                tile = _picked(tile, axis, image.shape[axis], start, stride, place.shape[axis])
        return tile

    signal = reordered(reader, place, function)
    if not any(_cuts_channels(r, image.shape, place.shape) for r in signal.values()):
        return signal
    linear = lambda: [{s: r.each(function) for s, r in merged(reader.signal(image)).items()}]
    space, phases = space_of(signal), phases_of(signal)
    return begin(place.results[0], linear=linear, space=space, phases=phases)


def _cuts_channels(response: Response, old: Sequence[Any], new: Sequence[Any]) -> bool:
    """Whether a slice takes some of the channels for which one tile stands: each part has weights of its own."""
    if response.mixed or response.enlargements or not response.space:
        return False
    inside = {0, *response.space, *response.phases}
    return any(n != old[a] and a not in inside for a, n in enumerate(new))


def split(reader: Reader, place: Place) -> Signal:
    """Follows responses through a split."""
    axis, sizes = place.equation.params["axis"], place.equation.params["sizes"]
    starts = np.cumsum([0, *sizes]).tolist()
    for result, start in zip(place.results, starts, strict=False):
        cut = place._replace(results=(result,), shape=result.shape)
        first = [start if a == axis else 0 for a in range(len(result.shape))]
        reader.signals[result] = _cut(reader, cut, first, [1] * len(first))
    return reader.signals[place.results[0]]


def pad(reader: Reader, place: Place) -> Signal:
    """Follows responses through a pad, which may insert zeros between pixels."""
    image, filling = place.inputs
    config = place.equation.params["padding_config"]
    inserts = any(n > 0 and image.shape[a] != 1 for a, (_, _, n) in enumerate(config))
    if inserts and (reader.is_free(filling) or np.any(filling.compute())):
        raise Unread
    if inserts:
        reader.signals[image] = reader.ended(image)

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

    signal = reordered(reader, place, function)
    single = {
        a for a, (_, _, n) in enumerate(config) if image.shape[a] == 1 and place.shape[a] != 1
    }
    return {s: replace(r, phases=r.phases | single) for s, r in signal.items()}


def concatenate(reader: Reader, place: Place) -> Signal:
    """Joins images along an axis."""
    axis = place.equation.params["dimension"]
    values = [
        v for v in place.inputs if v.shape[axis] != 0
    ]  # `jnp.pad` joins images without pixels, too
    sizes = [v.shape[axis] for v in values]
    return _joined(place, axis, [_pieces(reader, v) for v in values], sizes)


def stack(reader: Reader, place: Place) -> Signal:
    """Joins images along a new axis."""
    axis = place.equation.params["axis"]
    wider = lambda t: np.expand_dims(t, 1 + axis)
    moved = lambda axes: frozenset(a + (a >= axis) for a in axes)
    pieces = [
        {s: r.each(wider, space=moved(r.space), phases=moved(r.phases)) for s, r in signal.items()}
        for signal in map(functools.partial(_pieces, reader), place.inputs)
    ]
    return _joined(place, axis, pieces, [1] * len(pieces))


def _pieces(reader: Reader, value: Value) -> Signal:
    return reader.used(value) if reader.is_free(value) else {}


def _joined(place: Place, axis: int, pieces: list[Signal], sizes: Sequence[Any]) -> Signal:
    """Joins images along an axis: as entries of a stack, as channels, or as an image and its borders."""
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
            space=space_of(*({source: r} for r in present)),
            phases=phases_of(*({source: r} for r in present)) | ({axis} if single else set()),
            enlargements=union(present),
        )  # fmt: skip
    return result or begin(place.results[0])


def gather(reader: Reader, place: Place) -> Signal:
    """Reads pixels at known indices, along one axis as `jnp.take` and nearest neighbors do, or anywhere."""
    image, indices = place.inputs
    numbers, sizes = (place.equation.params[n] for n in ("dimension_numbers", "slice_sizes"))
    axes = tuple(numbers.start_index_map)
    others = [a for a in range(len(image.shape)) if a not in axes]
    plain = len(axes) == 1 and tuple(numbers.collapsed_slice_dims) == axes
    whole = all(image.shape[a] == sizes[a] for a in others)
    if reader.is_free(indices):
        raise Unread
    if not (plain and whole) or len(indices.shape) != 2:
        return _gathered(reader, place)
    picks = np.asarray(indices.compute())[:, 0]
    (at,) = (a for a in range(len(place.shape)) if a not in numbers.offset_dims)
    place_of = {axes[0]: at, **dict(zip(others, numbers.offset_dims, strict=True))}

    def function(tile: np.ndarray) -> np.ndarray:
        axis = 1 + axes[0]
        if tile.shape[axis] > 1:
            tile = tiles.shortened(np.take(tile, picks % tile.shape[axis], axis), axis)
        return np.moveaxis(tile, axis, 1 + at)

    return reordered(reader, place, function, place_of.get)


def _gathered(reader: Reader, place: Place) -> Signal:
    """Reads pixels anywhere: the same read of the pixels' places tells where they go."""
    image, indices = place.inputs
    sizes = image.shape
    if not all(isinstance(n, int) for n in (*sizes, *place.shape)):
        raise Unread
    if prod(sizes) > tiles.MOST_ELEMENTS or prod(place.shape) > tiles.MOST_ELEMENTS:
        raise Unread
    places = np.arange(prod(sizes), dtype=np.int32).reshape(sizes)
    params = place.equation.params | {"fill_value": None}
    read = place.equation.primitive.bind(places, indices.compute(), **params)
    from_ = np.unravel_index(np.asarray(read), sizes)
    along = [
        {b for b in range(read.ndim) if (where != np.take(where, [0], b)).any()} for where in from_
    ]

    def function(tile: np.ndarray) -> np.ndarray:
        if len(tile) * read.size > tiles.MOST_ELEMENTS:
            raise Unread
        at = tuple(w % n for w, n in zip(from_, tile.shape[1:], strict=True))
        tile = tile[(slice(None), *at)]
        for axis in range(1, tile.ndim):
            tile = tiles.shortened(tile, axis)
        return tile

    moved = lambda axes: frozenset(b for a in axes for b in along[a])
    return {
        s: r.each(function, space=moved(r.space), phases=frozenset())
        for s, r in reader.used(image).items()
    }


def scatter(reader: Reader, place: Place) -> Signal:
    """Writes or adds an image at known indices, those along each axis by axes of the image of their own."""
    base, indices, image = place.inputs
    numbers = place.equation.params["dimension_numbers"]
    axes = tuple(numbers.scatter_dims_to_operand_dims)
    points = tuple(numbers.inserted_window_dims) == tuple(sorted(axes))
    _known_place(reader, place, base, image, [indices])
    if not points:
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
        tile = transposed(tile, [*window, *loose])
        left = list(range(len(loose)))
        first = 1 + len(window)
        for places, along in spread:
            at = [first + left.index(b) for b in along]
            tile = np.tensordot(tile, places, (at, range(1, 1 + len(at))))
            left = [b for b in left if b not in along]
        tile = tile.sum(tuple(range(first, first + len(left))))
        order = [[*others, *axes].index(a) for a in range(len(base.shape))]
        tile = transposed(tile, order)
        for a, (places, _) in zip(axes, spread, strict=True):
            tile = tiles.shortened(tile, 1 + a, exact=places[0].size < FEW)
        return tile

    place_of = {w: a for a, w in zip(others, window, strict=True)}
    for a, (_, along) in zip(axes, spread, strict=True):
        place_of |= {loose[b]: a for b in along}
    phases = phases_of(reader.signal(image))
    signal = _over(reader, place, base, image, written, place_of, frozenset(axes))
    grows = [
        a
        for a, (_, along) in zip(axes, spread, strict=True)
        if len(along) > 1 and any(loose[b] in phases for b in along)
    ]
    if not grows or enlargements_of(signal):
        return signal
    joined = merged(signal)  # patches that overlap, as `fold` of PyTorch adds them
    periods = [max(r.gain.shape[1 + a] for r in joined.values()) for a in grows]
    weights = next((s.weights for s in signal if s.weights is not None), None)
    return reader.joint(place, grows, periods, joined, weights)


def update_slice(reader: Reader, place: Place) -> Signal:
    """Writes an image into another at a known place."""
    base, image, *starts = place.inputs
    _known_place(reader, place, base, image, starts)
    axes = [a for a, n in enumerate(image.shape) if n != base.shape[a]]
    first = {a: int(starts[a].compute()) for a in axes}

    def written(tile: np.ndarray) -> np.ndarray:
        for a in axes:
            tile = tiles.expanded(tile, 1 + a, image.shape[a])
            indices = first[a] + np.arange(image.shape[a])
            tile = _placed(tile, 1 + a, indices, base.shape[a])
        return tile

    place_of = {a: a for a in range(len(base.shape))}
    return _over(reader, place, base, image, written, place_of, frozenset(axes))


def _known_place(
    reader: Reader, place: Place, base: Value, image: Value, indices: Sequence[Value]
) -> None:
    """Raises Unread unless an image is written at a known place; what is painted at unknown ones is not understood."""
    if not reader.is_free(image):
        raise Unread
    if any(map(reader.is_free, indices)):
        if not reader.is_free(base) and len(base.shape) > 1:
            reader.hidden.append(place)
        raise Unread


def _over(
    reader: Reader,
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
        for s, r in reader.ended(image).items()
    }
    if not reader.is_free(base):
        return above
    hit = written(np.ones((1,) * (1 + len(image.shape))))
    adds = place.equation.primitive.name == "scatter-add"
    below = reader.used(base)
    return summed([below if adds else scaled(below, 1.0 - np.minimum(hit, 1), exact=True), above])


def tile(reader: Reader, place: Place) -> Signal:
    """Repeats an image along axes."""
    old, reps = place.inputs[0].shape, place.equation.params["reps"]

    def function(tile: np.ndarray) -> np.ndarray:
        for axis, n in enumerate(reps):
            if n > 1 and tile.shape[1 + axis] > 1:
                tile = np.concatenate([tiles.expanded(tile, 1 + axis, old[axis])] * n, 1 + axis)
        return tile

    if len(reps) != len(old):
        raise Unread
    return reordered(reader, place, function)


def _grows(response: Response, slow: int, fast: int) -> bool:
    """Whether entries along an axis become pixels between those of another: of space, or none that is known else."""
    spatial = slow in response.space or (slow > 0 and slow not in response.phases)
    return fast in response.phases and spatial and response.gain.shape[1 + slow] == 1


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
