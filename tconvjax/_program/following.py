"""Follows the sights of a program from its image to its results, through every equation.

A rule is a function of an equation, the sights of its operands along one axis of the image (None for what does not
depend on the image), and their values. It returns the sights of the results, or raises Everywhere.
"""

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from tconvjax._program import sights as look
from tconvjax._program.program import (
    PROGRAMS,
    Context,
    Unknown,
    Value,
    entering,
    opened,
    own_line,
    shaped,
)
from tconvjax._program.sights import Everywhere, Sight

MOST_TURNS = 4096  # of a loop
SETTLING = 8  # turns after which a loop of unknown length must see no more

Seen = (
    tuple[Sight | str, ...] | None
)  # along each axis of the image; a string says why it is everything

# Results depend on the elements of the operands at their own place.
ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "bitcast_convert_type", "cbrt", "ceil", "clamp", "clz", "complex", "conj", "convert_element_type",
    "copy", "cos", "cosh", "digamma", "div", "eq", "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1",
    "floor", "ge", "gt", "igamma", "igamma_grad_a", "igammac", "imag", "integer_pow", "is_finite", "le", "le_to",
    "lgamma", "log", "log1p", "log2", "logistic", "lt", "lt_to", "max", "min", "mul", "mulhi", "ne", "neg",
    "nextafter", "not", "one_minus_square", "or", "polygamma", "population_count", "pow", "random_gamma_grad",
    "real", "reduce_precision", "regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
    "sub", "tan", "tanh", "xor", "zeta",
}  # fmt: skip
# Each result is the operand of the same number.
SAME = {
    "device_put", "layout_constraint", "mesh_cast", "name", "optimization_barrier", "pcast", "pvary", "relayout",
    "reshard", "sharding_constraint", "with_memory_space_constraint",
}  # fmt: skip
SUMS = {
    "argmax", "argmin", "reduce", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum",
    "reduce_xor",
}  # fmt: skip
RUNNING = {"cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"}
WINDOWS = {"reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"}
SCATTERS = {"scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub"}


class Track(NamedTuple):
    """A value of a program and what it sees."""

    value: Value
    seen: Seen = None


class Follower:
    """Follows what values see.

    Attributes:
      spatial: axes of the image that convolutions were found to run along.
    """

    def __init__(self) -> None:
        self.spatial: set[int] = set()

    def run(self, program: Any, inputs: Sequence[Track], context: Context) -> list[Track]:
        """Returns the results of a program."""
        jaxpr, consts = opened(program)
        tracks = dict(zip(jaxpr.constvars, map(Track, consts), strict=True))
        tracks |= dict(zip(jaxpr.invars, inputs, strict=True))

        def track(atom: Any) -> Track:
            if isinstance(atom, jax.extend.core.Literal):
                return Track(Value(np.shape(atom.val), np.result_type(atom.val), atom.val))
            return tracks[atom]

        for eqn in jaxpr.eqns:
            operands = [track(atom) for atom in eqn.invars]
            where = Context(own_line(eqn) or context.where)
            tracks |= dict(zip(eqn.outvars, self.results(eqn, operands, where), strict=True))
        return [track(atom) for atom in jaxpr.outvars]

    def results(self, eqn: Any, operands: list[Track], context: Context) -> list[Track]:
        """Returns the results of an equation."""
        name = eqn.primitive.name
        depends = any(t.seen is not None for t in operands)
        if depends and name in {"scan", "while", "cond"}:
            loops = {"scan": self.scan, "while": self.while_, "cond": self.cond}
            return loops[name](eqn, operands, context)
        program = _inner(eqn) if name not in RULES else None
        if program is not None:
            return self.run(program, operands, context)
        given = tuple(t.value for t in operands)
        values = [
            Value(
                *shaped(v), None, eqn, given, index, turns=max((g.turns for g in given), default=1)
            )
            for index, v in enumerate(eqn.outvars)
        ]
        if not depends:
            return [Track(value) for value in values]
        axes = len(next(t.seen for t in operands if t.seen is not None))
        along = [self._along(eqn, operands, axis, context) for axis in range(axes)]
        return [
            Track(value, tuple(sights[i] for sights in along))
            if prod(value.shape)
            else Track(value)
            for i, value in enumerate(values)
        ]

    def _along(
        self, eqn: Any, operands: list[Track], axis: int, context: Context
    ) -> Sequence[Sight | str]:
        """Returns what the results of an equation see along one axis of the image."""
        sights: list[Any] = [None if t.seen is None else t.seen[axis] for t in operands]
        name, count = eqn.primitive.name, len(eqn.outvars)
        whole = next((sight for sight in sights if isinstance(sight, str)), None)
        if whole is not None:
            return [whole] * count
        if name not in RULES:
            return [_reason(name, "is not understood", context)] * count
        try:
            results = RULES[name](eqn, sights, [t.value for t in operands])
        except Everywhere as why:
            return [_reason(name, str(why), context)] * count
        image = sights[0]
        if image is not None and any(look.span(image, i) for i in _space(eqn)):
            self.spatial.add(axis)
        return results

    def scan(self, eqn: Any, operands: list[Track], context: Context) -> list[Track]:
        """Runs a loop turn by turn, until no further turn can see anything else."""
        params, length = eqn.params, eqn.params["length"]
        body = params["jaxpr"]
        inner = opened(body)[0]
        whole = lambda pairs: sum(
            _shape(a) == _shape(b) for a, b in pairs
        )  # not entries of a stack
        stacks = whole(zip(eqn.invars, inner.invars, strict=True))
        fixed = stacks - whole(zip(eqn.outvars, inner.outvars, strict=True))
        even = not any(_differs(t.seen) for t in operands[stacks:])
        if length > MOST_TURNS and not even:
            return self._everything(eqn, operands, f"makes {length} turns", context)
        inputs = [Value(*shaped(v)) for v in inner.invars]
        values = [entering(t.value, v) for t, v in zip(operands[:fixed], inputs, strict=False)]
        values += inputs[fixed:]
        state = [t.seen for t in operands[fixed:stacks]]
        written: list[list[Seen]] = []
        for turn in range(length):
            entry = length - 1 - turn if params["reverse"] else turn
            seen = [t.seen for t in operands[:fixed]] + state
            seen += [_entry(t.seen, entry) for t in operands[stacks:]]
            results = self.run(body, list(map(Track, values, seen)), context)
            before, state = state, [t.seen for t in results[: len(state)]]
            written.append([t.seen for t in results[len(state) :]])
            if even and _settled(before, state):
                written += written[-1:] * (length - 1 - turn)
                break
        if params["reverse"]:
            written.reverse()
        results_seen = state + [_stacked(list(ys)) for ys in zip(*written, strict=True)]
        read = [t.seen for t in operands[fixed:]]
        name = eqn.primitive.name
        if not even:
            results_seen = [_local(seen, read, name, context) for seen in results_seen]
        return [Track(Value(*shaped(v)), s) for v, s in zip(eqn.outvars, results_seen, strict=True)]

    def while_(self, eqn: Any, operands: list[Track], context: Context) -> list[Track]:
        """Runs a loop until it sees no more."""
        conds = eqn.params["cond_nconsts"]
        fixed = conds + eqn.params["body_nconsts"]
        state = [t.seen for t in operands[fixed:]]
        inner = [Value(*shaped(v)) for v in eqn.outvars]
        for _ in range(SETTLING):
            carry = list(map(Track, inner, state))
            done = self.run(eqn.params["body_jaxpr"], [*operands[conds:fixed], *carry], context)
            (more,) = self.run(eqn.params["cond_jaxpr"], [*operands[:conds], *carry], context)
            before = state
            state = [_union([s, t.seen, more.seen]) for s, t in zip(state, done, strict=True)]
            if _settled(before, state):
                return list(map(Track, inner, state))
        why = "repeats a number of times that is not known, and sees more each time"
        return self._everything(eqn, operands, why, context)

    def cond(self, eqn: Any, operands: list[Track], context: Context) -> list[Track]:
        """Joins what the branches and the choice between them see."""
        choice, *inputs = operands
        branches = [self.run(branch, inputs, context) for branch in eqn.params["branches"]]
        return [
            Track(Value(*shaped(v)), _union([*(t.seen for t in results), choice.seen]))
            for v, *results in zip(eqn.outvars, *branches, strict=True)
        ]

    def _everything(
        self, eqn: Any, operands: list[Track], why: str, context: Context
    ) -> list[Track]:
        axes = len(next(t.seen for t in operands if t.seen is not None))
        reason = _reason(eqn.primitive.name, why, context)
        return [Track(Value(*shaped(v)), (reason,) * axes) for v in eqn.outvars]


def _reason(name: str, why: str, context: Context) -> str:
    file, line = context.where
    place = f" ({Path(file).name}:{line})" if file else ""
    return f"{name}{place} {why}"


def _inner(eqn: Any) -> Any:
    """Returns the program that an equation calls on its own operands, if it is a call."""
    programs = [p for p in eqn.params.values() if isinstance(p, PROGRAMS)]
    if len(programs) != 1:
        return None
    inner = opened(programs[0])[0]
    same = [
        [shaped(v)[0] for v in ours] == [shaped(v)[0] for v in theirs]
        for ours, theirs in ((eqn.invars, inner.invars), (eqn.outvars, inner.outvars))
    ]
    return programs[0] if all(same) else None


# What loops and branches see.


def _differs(seen: Seen) -> bool:
    """Whether the entries of a stack see different pixels."""
    return any(not isinstance(s, str) and s.shape[1] > 1 for s in seen or ())


def _entry(seen: Seen, turn: int) -> Seen:
    """Returns what an entry of a stack sees."""
    if seen is None:
        return None
    return tuple(s if isinstance(s, str) else s[:, min(turn, s.shape[1] - 1)] for s in seen)


def _stacked(entries: list[Seen]) -> Seen:
    """Returns what a stack of entries sees."""
    known = [seen for seen in entries if seen is not None]
    if not known:
        return None
    out: list[Sight | str] = []
    for axis in range(len(known[0])):
        along = [None if seen is None else seen[axis] for seen in entries]
        whole = next((s for s in along if isinstance(s, str)), None)
        rows = [None if s is None else s[:, None] for s in along if not isinstance(s, str)]
        out.append(whole or look.concatenated(rows, [1] * len(rows), 0))
    return tuple(out)


def _union(parts: Sequence[Seen]) -> Seen:
    """Returns what values see that depend on all parts, of one rank or single numbers."""
    known = [seen for seen in parts if seen is not None]
    if not known:
        return None
    out: list[Sight | str] = []
    for along in zip(*known, strict=True):
        whole = next((s for s in along if isinstance(s, str)), None)
        out.append(whole or look.joined(_of_one_rank([s for s in along if not isinstance(s, str)])))
    return tuple(out)


def _of_one_rank(sights: Sequence[Sight]) -> list[Sight]:
    rank = max(s.ndim for s in sights)
    return [s if s.ndim == rank else s.reshape(3, *(1,) * (rank - 1)) for s in sights]


def _settled(before: Sequence[Seen], after: Sequence[Seen]) -> bool:
    """Whether a turn of a loop saw no other pixels than the turn before."""
    for old, new in zip(before, after, strict=True):
        if (old is None) != (new is None):
            return False
        for a, b in zip(old or (), new or (), strict=True):
            if isinstance(a, str) or isinstance(b, str):
                if a is not b and a != b:
                    return False
            elif a.shape != b.shape or not np.array_equal(a[:2], b[:2]):
                return False
    return True


def _local(seen: Seen, read: Sequence[Seen], name: str, context: Context) -> Seen:
    """Returns what a loop sees that reads an image entry by entry."""
    if seen is None:
        return None
    out: list[Sight | str] = []
    for axis, sight in enumerate(seen):
        before = [s[axis] for s in read if s is not None]
        parts = [s for s in before if not isinstance(s, str)]
        try:
            if not isinstance(sight, str) and parts:
                look.check_local(parts, sight)
            out.append(sight)
        except Everywhere as why:
            out.append(_reason(name, str(why), context))
    return tuple(out)


# Rules.

Operands = Sequence[Sight | None]
Rule = Callable[[Any, Operands, Sequence[Value]], Sequence[Sight]]


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _known(sights: Operands) -> list[Sight]:
    return [s for s in sights if s is not None]


def _elementwise(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    rank = len(_shape(eqn.outvars[0]))
    parts = _known(sights)
    if any(s.ndim not in {1, 1 + rank} for s in parts):  # a cast to parts of numbers
        raise Everywhere("is not understood")
    return [look.joined(s.reshape(3, *(1,) * rank) if s.ndim == 1 else s for s in parts)]


def _same(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    return [
        look.nothing((1,) * len(_shape(v))) if s is None else s
        for v, s in zip(eqn.outvars, sights, strict=True)
    ]


def _first(rule: Callable[[Any, Sight], Sight]) -> Rule:
    """Makes a rule for operations of which the first operand alone is an image."""

    def of_first(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
        if sights[0] is None:
            raise Everywhere("has options that depend on the image")
        return [rule(eqn, sights[0])]

    return of_first


def _reshape(eqn: Any, sight: Sight) -> Sight:
    if eqn.params.get("dimensions"):
        raise Everywhere("is not understood")
    return look.reshaped(sight, _shape(eqn.invars[0]), _shape(eqn.outvars[0]))


def _transpose(eqn: Any, sight: Sight) -> Sight:
    return sight.transpose(0, *(1 + axis for axis in eqn.params["permutation"]))


def _squeeze(eqn: Any, sight: Sight) -> Sight:
    return sight.squeeze(tuple(1 + axis for axis in eqn.params["dimensions"]))


def _broadcast(eqn: Any, sight: Sight) -> Sight:
    sizes = [1] * len(_shape(eqn.outvars[0]))
    for axis, new in enumerate(eqn.params["broadcast_dimensions"]):
        sizes[new] = sight.shape[1 + axis]
    return sight.reshape(3, *sizes)


def _rev(eqn: Any, sight: Sight) -> Sight:
    return np.flip(sight, tuple(1 + axis for axis in eqn.params["dimensions"]))


def _slice(eqn: Any, sight: Sight) -> Sight:
    starts, stops = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(starts)
    return _cut(sight, list(map(slice, starts, stops, steps)))


def _cut(sight: Sight, parts: Sequence[slice]) -> Sight:
    used = [part if n > 1 else slice(None) for part, n in zip(parts, sight.shape[1:], strict=True)]
    return sight[(slice(None), *used)]


def _split(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    (sight,), axis = _known(sights), eqn.params["axis"]
    if sight.shape[1 + axis] == 1:
        return [sight] * len(eqn.outvars)
    return np.split(sight, np.cumsum(eqn.params["sizes"])[:-1], 1 + axis)


def _pad(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    sight, filling = sights
    sizes = _shape(eqn.outvars[0])
    out = [] if filling is None else [filling.reshape(3, *(1 for _ in sizes))]
    if sight is not None:
        for axis, (low, _, inner) in enumerate(eqn.params["padding_config"]):
            n = sight.shape[1 + axis]
            if n > 1:
                taps = look.window(n, sizes[axis], 1, low=low, up=inner + 1)
                sight = look.tapped(sight, axis, taps)
        out.append(sight)
    return [look.joined(out)]


def _concatenate(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    axis = eqn.params["dimension"]
    return [look.concatenated(sights, [_shape(v)[axis] for v in eqn.invars], axis)]


def _stack(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    axis = eqn.params["axis"]
    rows = [None if s is None else np.expand_dims(s, 1 + axis) for s in sights]
    return [look.concatenated(rows, [1] * len(rows), axis)]


def _unstack(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    (sight,), axis = _known(sights), eqn.params["axis"]
    count = len(eqn.outvars)
    return list(np.moveaxis(look.full(sight, axis, count), 1 + axis, 0))


def _tile(eqn: Any, sight: Sight) -> Sight:
    reps = [r if n > 1 else 1 for r, n in zip(eqn.params["reps"], sight.shape[1:], strict=True)]
    return np.tile(sight, (1, *reps))


def _numbers(value: Value, sight: Sight | None) -> np.ndarray:
    """Returns the places that an operation reads or writes."""
    if sight is not None:
        raise Everywhere("goes to places that depend on the image")
    try:
        return np.asarray(value.compute())
    except Unknown:
        raise Everywhere("goes to places that are not known before it runs") from None


def _starts(
    values: Sequence[Value],
    sights: Operands,
    sizes: Sequence[int],
    part: Sequence[int],
    used: Sequence[int],
) -> list[slice]:
    """Returns the part of an array at places given by values, where it is a part."""
    out = []
    for value, sight, n, m, size in zip(values, sights, sizes, part, used, strict=True):
        start = 0
        if size > 1 and m < n:
            start = min(max(int(_numbers(value, sight)), 0), n - m)
        out.append(slice(start, start + m))
    return out


def _dynamic_slice(eqn: Any, sights: Operands, values: Sequence[Value]) -> Sequence[Sight]:
    sight, *places = sights
    if sight is None:
        raise Everywhere("goes to places that depend on the image")
    sizes = _shape(eqn.invars[0])
    part = eqn.params["slice_sizes"]
    return [_cut(sight, _starts(values[1:], places, sizes, part, sight.shape[1:]))]


def _dynamic_update_slice(eqn: Any, sights: Operands, values: Sequence[Value]) -> Sequence[Sight]:
    sizes, part = _shape(eqn.invars[0]), _shape(eqn.invars[1])
    base, update = (look.nothing((1,) * len(sizes)) if s is None else s for s in sights[:2])
    where = _starts(values[2:], sights[2:], sizes, part, [2] * len(sizes))
    shape = [
        n if m < n else max(a, b)
        for n, m, a, b in zip(sizes, part, base.shape[1:], update.shape[1:], strict=True)
    ]
    out = np.broadcast_to(base, (3, *shape)).copy()
    out[
        (slice(None), *(w if n > 1 else slice(None) for w, n in zip(where, shape, strict=True)))
    ] = update
    return [look.reduced(out)]


def _gather(eqn: Any, sights: Operands, values: Sequence[Value]) -> Sequence[Sight]:
    sight, params = sights[0], dict(eqn.params)
    places = _numbers(values[1], sights[1])
    assert sight is not None
    sizes, part = list(_shape(eqn.invars[0])), list(params["slice_sizes"])
    numbers = params["dimension_numbers"]
    pinned = {*numbers.start_index_map, *numbers.collapsed_slice_dims}
    pinned |= {*getattr(numbers, "operand_batching_dims", ())}
    for axis, n in enumerate(sizes):
        if axis not in pinned and sight.shape[1 + axis] == 1 and part[axis] == n:
            sizes[axis] = part[axis] = 1
    if prod(sizes) > look.MOST_ELEMENTS or prod(_shape(eqn.outvars[0])) > look.MOST_ELEMENTS:
        raise Everywhere("mixes axes of more elements than are followed")
    ids = np.arange(prod(sizes), dtype=np.int32).reshape(sizes)
    params |= {"slice_sizes": tuple(part), "fill_value": -1}
    picked = np.asarray(eqn.primitive.bind(ids, places, **params))
    return [look.picked([np.broadcast_to(sight, (3, *sizes))], picked)]


def _scatter(eqn: Any, sights: Operands, values: Sequence[Value]) -> Sequence[Sight]:
    places = _numbers(values[1], sights[1])
    base, update = (
        look.nothing((1,) * len(_shape(v))) if s is None else s
        for v, s in ((eqn.invars[0], sights[0]), (eqn.invars[2], sights[2]))
    )
    sizes, written = _shape(eqn.invars[0]), _shape(eqn.invars[2])
    if max(prod(sizes), prod(written)) > look.MOST_ELEMENTS:
        raise Everywhere("mixes axes of more elements than are followed")
    numbers, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
    ids = np.arange(prod(written), dtype=np.int32).reshape(written)
    zeros = np.zeros(sizes, np.int32)
    count = lax.scatter_add(zeros, places, np.ones_like(ids), numbers, mode=mode)
    if int(np.max(count, initial=0)) > 1:
        raise Everywhere("writes twice to the same place")
    source = np.asarray(lax.scatter(zeros - 1, places, ids, numbers, mode=mode))
    new = look.picked([np.broadcast_to(update, (3, *written))], source)
    if eqn.primitive.name == "scatter":
        return [look.reduced(np.where(source >= 0, new, base))]
    return [look.reduced(look.joined([base, new]))]


def _sum(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    axes = eqn.params["dimensions" if "dimensions" in eqn.params else "axes"]
    rank = len(_shape(eqn.invars[0]))
    parts = [s for s in _known(sights) if s.ndim == 1 + rank]
    out = look.joined([look.swept(s, axes) for s in parts])
    return [out.squeeze(tuple(1 + axis for axis in axes))] * len(eqn.outvars)


def _running(eqn: Any, sight: Sight) -> Sight:
    return look.accumulated(sight, eqn.params["axis"], reverse=eqn.params["reverse"])


def _window(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    params, sizes = eqn.params, _shape(eqn.invars[0])
    rank = len(sizes)
    ones = (1,) * rank
    before = look.joined([s for s in _known(sights) if s.ndim == 1 + rank])
    out = before
    for axis, k in enumerate(params["window_dimensions"]):
        if out.shape[1 + axis] > 1:
            taps = look.window(
                sizes[axis],
                _shape(eqn.outvars[0])[axis],
                k,
                stride=(params.get("window_strides") or ones)[axis],
                dilation=(params.get("window_dilation") or ones)[axis],
                low=params["padding"][axis][0],
                up=(params.get("base_dilation") or ones)[axis],
            )
            out = look.tapped(out, axis, taps)
            if k >= sizes[axis]:
                look.check_local([before], out)
    return [out] * len(eqn.outvars)


def _sort(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    axis = eqn.params.get("dimension", eqn.params.get("axis", -1)) % len(_shape(eqn.invars[0]))
    return [look.swept(look.joined(_known(sights)), [axis])] * len(eqn.outvars)


def _fft(eqn: Any, sight: Sight) -> Sight:
    rank = sight.ndim - 1
    return look.swept(sight, range(rank - len(eqn.params["fft_lengths"]), rank))


def _dot_general(eqn: Any, sights: Operands, values: Sequence[Value]) -> Sequence[Sight]:
    contracted, batch = (tuple(map(list, axes)) for axes in eqn.params["dimension_numbers"])
    ranks = [len(_shape(v)) for v in eqn.invars]
    free = [
        [i for i in range(ranks[side]) if i not in contracted[side] + batch[side]]
        for side in (0, 1)
    ]
    out = []
    for side, sight in enumerate(sights):
        if sight is None:
            continue
        other, foreign = 1 - side, len(free[1 - side])
        used = [i for i, axis in enumerate(contracted[side]) if sight.shape[1 + axis] > 1]
        matrix = _matrix(values[other], sights[other]) if len(used) == 1 else None
        if matrix is None:
            wide = look.swept(sight, contracted[side]).reshape(
                *_after(sight, contracted[side]), *(1,) * foreign
            )
        else:  # rows: the contracted axis; columns: the free axes of the matrix
            axis = contracted[side][used[0]]
            order = [contracted[other][used[0]], *free[other]]
            matrix = np.moveaxis(abs(matrix), order, range(1 + foreign))
            matrix = matrix.max(tuple(range(1 + foreign, matrix.ndim)))
            columns = look.selected(sight, axis, matrix.reshape(len(matrix), -1))
            look.check_local([sight], columns)
            columns = np.moveaxis(columns, 1 + axis, -1)
            wide = columns.reshape(*_after(sight, [axis]), *matrix.shape[1:])
        theirs = [*range(ranks[side], ranks[side] + foreign)]
        kept = batch[side] + (free[side] + theirs if side == 0 else theirs + free[side])
        moved = wide.transpose(0, *(1 + i for i in kept + contracted[side]))
        out.append(look.reduced(moved.reshape(moved.shape[: 1 + len(kept)])))
    return [look.joined(out)]


def _after(sight: Sight, axes: Sequence[int]) -> list[int]:
    """Returns the shape of a sight after sums over axes."""
    return [1 if i - 1 in axes else n for i, n in enumerate(sight.shape)]


def _matrix(value: Value, sight: Sight | None) -> np.ndarray | None:
    """Returns the numbers of a matrix whose zeros count: given, or computed by the program, not drawn."""
    if sight is not None:
        return None
    try:
        numbers = np.asarray(value.compute())
    except Unknown:
        return None
    return None if value.drawn else numbers


def _convolution(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    image, kernel = sights
    result = _shape(eqn.outvars[0])
    out = []
    if image is not None:
        sizes, taps = _shape(eqn.invars[0]), _shape(eqn.invars[1])
        sight = image.transpose(0, *(1 + i for i in numbers.lhs_spec))
        if params["batch_group_count"] > 1:
            sight = look.swept(sight, [0])
        groups, features = params["feature_group_count"], result[numbers.out_spec[1]]
        sight = _mixed(sight, 1, groups, features)
        for axis, (i, k, o) in enumerate(
            zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
        ):
            if sight.shape[3 + axis] > 1:
                places = look.window(
                    sizes[i],
                    result[o],
                    taps[k],
                    stride=params["window_strides"][axis],
                    dilation=params["rhs_dilation"][axis],
                    low=params["padding"][axis][0],
                    up=params["lhs_dilation"][axis],
                )
                sight = look.tapped(sight, 2 + axis, places)
        out.append(sight.transpose(0, *(1 + int(i) for i in np.argsort(numbers.out_spec))))
    if kernel is not None:
        out.append(look.swept(kernel, range(kernel.ndim - 1)).reshape(3, *(1 for _ in result)))
    return [look.joined(out)]


def _mixed(sight: Sight, axis: int, groups: int, features: int) -> Sight:
    """Returns the sight after sums over the features of each group."""
    n = sight.shape[1 + axis]
    if n == 1 or groups == 1:
        return look.swept(sight, [axis])
    split = sight.reshape(*sight.shape[: 1 + axis], groups, n // groups, *sight.shape[2 + axis :])
    return np.repeat(look.swept(split, [axis + 1]).squeeze(2 + axis), features // groups, 1 + axis)


def _face(eqn: Any, sights: Operands, _: Any) -> Sequence[Sight]:
    """Follows one of this library's faces; see `tconvjax._faces` for the layouts."""
    geometry, face = eqn.params["call"].geometry, eqn.primitive.name.removeprefix("tconv_")
    result = _shape(eqn.outvars[0])
    image, kernel = sights
    out = []
    if face != "correlate" and image is not None:
        sight = _mixed(image, image.ndim - 2, geometry.feature_group_count, result[-1])
        for axis in range(geometry.rank):
            k, s, d, p, big, small = (
                numbers[axis]
                for numbers in (
                    geometry.kernel_size,
                    geometry.strides,
                    geometry.kernel_dilation,
                    geometry.offset,
                    geometry.big,
                    geometry.small,
                )
            )
            if sight.shape[3 + axis] == 1:
                continue
            if face == "gather":
                taps = look.window(big, small, k, stride=s, dilation=d, low=p)
            else:  # painted from the last tap to the first
                taps = look.window(small, big, k, dilation=d, low=d * (k - 1) - p, up=s)
            sight = look.tapped(sight, 2 + axis, taps)
        out.append(sight)
        image = None
    for whole in _known([image, kernel]):
        out.append(
            look.swept(whole, range(1, whole.ndim - 1)).reshape(3, -1, *(1 for _ in result[1:]))
        )
    return [look.joined(out)]


RULES: dict[str, Rule] = {
    "reshape": _first(_reshape),
    "transpose": _first(_transpose),
    "squeeze": _first(_squeeze),
    "broadcast_in_dim": _first(_broadcast),
    "rev": _first(_rev),
    "slice": _first(_slice),
    "split": _split,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _first(_tile),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "sort": _sort,
    "top_k": _sort,
    "fft": _first(_fft),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    **dict.fromkeys(("tconv_gather", "tconv_paint", "tconv_correlate"), _face),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(SUMS, _sum),
    **dict.fromkeys(RUNNING, _first(_running)),
    **dict.fromkeys(WINDOWS, _window),
    **dict.fromkeys(SCATTERS, _scatter),
}


def _space(eqn: Any) -> Sequence[int]:
    """Returns the spatial axes of the image of a convolution."""
    if eqn.primitive.name == "conv_general_dilated":
        return eqn.params["dimension_numbers"].lhs_spec[2:]
    if eqn.primitive.name in {"tconv_gather", "tconv_paint"}:
        return range(2, 2 + eqn.params["call"].geometry.rank)
    return ()
