"""Measurement of what each resampler leaves in the output, on the user's data.

The program runs as it is, and once for each resampler without the periodic part of its result. The periodic part of an
image y with period p along some axes is what the bands around the harmonics of p hold,

    P y = Π_a C_a y − Π_a L_a y

where L is a lowpass, a Hann window over `PERIODS` periods, and C the comb that has the same window at distances of p:
the mean over pixels of equal phase. Both are normalized at the borders.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tconvjax._arguments import widened
from tconvjax._program.finding import Measured
from tconvjax._program.lanes import LaneBook
from tconvjax._program.program import MARKS, Value
from tconvjax._program.signals import Enlargement, is_inexact

PERIODS = 8  # half-width of the window


def measured(
    enlargements: Sequence[Enlargement], outputs: Sequence[Value], lanes: LaneBook
) -> dict[Enlargement, Measured]:
    """Runs a program and returns what each resampler does, but for those inside of loops, whose values are many."""
    order = _order(outputs)
    inside = set(order)
    found = {}
    for e in enlargements:
        periods = {} if e.result is None else _periods(e, e.result, lanes)
        if e.result in inside and periods:
            found[e] = periods
    if not found:
        return {}
    if any(v.given is None and v.equation is None for v in order):
        raise ValueError(
            "audit: fn must be free of shard_map for run=True, as its parts do not run by themselves; got a program "
            "with one. Leave run out."
        )
    image = max(outputs, key=lambda v: prod(v.shape) * is_inexact(v.dtype))
    at_output = {e: _periods(e, image, lanes) for e in found}
    replaced: dict[Value | None, list[tuple[int, dict[int, int]]]] = {}
    for i, e in enumerate(found):  # a sum may have several
        replaced.setdefault(e.result, []).append((i, found[e]))
    given = [v for v in order if v.given is not None]

    @jax.jit
    def runs(arrays: list[jax.Array], kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _run(order, dict(zip(given, arrays, strict=True)), replaced, kept, image)

    arrays = [jnp.asarray(v.given) for v in given]
    whole, shares = runs(arrays, np.ones(len(found), np.float32))
    extent = float(jnp.ptp(whole.real))
    result = {}
    for i, e in enumerate(found):
        without, _ = runs(
            arrays, np.ones(len(found), np.float32) - np.eye(len(found), dtype=np.float32)[i]
        )
        rms = float(jnp.sqrt(jnp.mean(abs(whole - without) ** 2)))
        powers = [
            float(jnp.mean(abs(periodic_part(y, at_output[e])) ** 2)) for y in (whole, without)
        ]
        if not at_output[e]:  # no image comes out
            result[e] = Measured(
                float(shares[i]), rms, float("nan"), rms / extent if extent else 0.0
            )
            continue
        floor = 1e-12 * float(jnp.mean(abs(whole) ** 2)) + 1e-37
        ratio = 10 * np.log10((powers[0] + floor) / (powers[1] + floor))
        result[e] = Measured(float(shares[i]), rms, float(ratio), rms / extent if extent else 0.0)
    return result


def periodic_part(y: jax.Array, periods: Mapping[int, int]) -> jax.Array:
    """Returns the part of an image in the bands around the harmonics of periods along axes."""
    comb = low = widened(y if is_inexact(y.dtype) else y.astype(jnp.float32))
    for axis, period in periods.items():
        comb, low = _filtered(comb, axis, period, comb=True), _filtered(low, axis, period, comb=False)  # fmt: skip
    return comb - low


def _filtered(y: jax.Array, axis: int, period: int, *, comb: bool) -> jax.Array:
    """Takes the Hann-weighted mean along an axis, of all pixels or of those of equal phase."""
    half = min(PERIODS * period, (y.shape[axis] - 1) // period * period)
    window = np.hanning(2 * half + 3)[1:-1]
    if comb:
        window = window * (np.arange(-half, half + 1) % period == 0)
    x = jnp.moveaxis(y, axis, -1)
    lines = x.reshape(-1, 1, x.shape[-1])
    ones = jnp.ones((1, 1, x.shape[-1]), lines.dtype)
    filters = jnp.asarray(window, lines.dtype).reshape(1, 1, -1)
    run: Any = lambda z: lax.conv_general_dilated(z, filters, (1,), [(half, half)], precision="highest")  # fmt: skip
    return jnp.moveaxis((run(lines) / run(ones)).reshape(x.shape), -1, axis)


def _periods(e: Enlargement, value: Value, lanes: LaneBook) -> dict[int, int]:
    """Returns the periods of a pattern along the axes of a later image; none if it is not there, or not twice."""
    found = lanes.periods(e.strides, e.lanes, value)
    periods = {axis: round(p) for axis, p in found.items() if round(p) > 1}
    return periods if all(2 * p <= value.shape[axis] for axis, p in periods.items()) else {}


def _order(outputs: Sequence[Value]) -> list[Value]:
    """Returns all values of which the outputs are computed, each behind those that it is computed of."""
    order: list[Value] = []
    done: set[Value] = set()
    waiting = [(v, False) for v in outputs]
    while waiting:
        value, ready = waiting.pop()
        if ready:
            order.append(value)
        elif value not in done:
            done.add(value)
            waiting.append((value, True))
            if value.given is None:
                waiting += [(v, False) for v in value.inputs if v not in done]
    return order


def _run(
    order: Sequence[Value],
    known: dict[Value, Any],
    replaced: Mapping[Value | None, Sequence[tuple[int, dict[int, int]]]],
    kept: jax.Array,
    image: Value,
) -> tuple[jax.Array, jax.Array]:
    """Computes the output with a part of the periodic parts, and the share of each in its image."""
    made: dict[tuple[int, int], Any] = {}
    shares: list[Any] = [None] * len(kept)
    for value in order:
        if value in known:
            continue
        key = id(value.equation), id(value.inputs)
        if key not in made:
            operands = [known[v] for v in value.inputs]
            eqn = value.equation
            with eqn.ctx.manager:
                out = (
                    operands
                    if value.made_by in MARKS
                    else eqn.primitive.bind(*operands, **eqn.params)
                )
            made[key] = out if value.made_by in MARKS or eqn.primitive.multiple_results else [out]
        y = made[key][value.index]
        whole = y
        for i, periods in replaced.get(value, ()):
            part = periodic_part(whole, periods)
            energy = jnp.sum(abs(widened(whole)) ** 2)
            shares[i] = jnp.sum(abs(part) ** 2) / jnp.maximum(energy, 1e-37)
            y = y - ((1 - kept[i]) * part).astype(y.dtype)
        known[value] = y
    return known[image], jnp.stack(shares)
