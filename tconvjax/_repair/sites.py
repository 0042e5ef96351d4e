"""The layers of a program that enlarge, as leaves of its params."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tconvjax._program.program import Value, traced, walk
from tconvjax._program.responses import reader_of

ARRAYS = jax.Array | np.ndarray | jax.ShapeDtypeStruct


class Site(NamedTuple):
    """A layer that enlarges: the leaf with its weights, and the period of its pattern by axes of the output."""

    path: str
    leaf: int
    period: dict[int, int]


def sites_of(fn: Callable[..., Any], params: Any, args: Any) -> tuple[list[Site], dict[str, str]]:
    """Returns the layers that enlarge, and why others cannot be repaired."""
    program, inputs = traced(fn, (params, *args))
    paths: dict[int, tuple[int, str]] = {}  # one object in several places is one leaf
    arrays = []
    for i, (path, leaf) in enumerate(jax.tree.leaves_with_path(params)):
        if isinstance(leaf, ARRAYS):
            arrays.append(paths.setdefault(id(leaf), (i, f"params{jax.tree_util.keystr(path)}")))
    # The arrays of `fn`, if it has any, come before those of the params, those of the arguments behind them.
    behind = sum(isinstance(leaf, ARRAYS) for leaf in jax.tree.leaves(args))
    first = len(inputs) - behind - len(arrays)
    leaf_of = {id(v): leaf for v, leaf in zip(inputs[first:], arrays, strict=False)}
    reader = reader_of(inputs)
    for place in walk(program, inputs):
        reader.read(place)
    image = next(v for v in place.inputs if v.shape == largest([v.shape for v in place.inputs]))
    sites: dict[int, Site] = {}
    skipped: dict[str, str] = {}
    for e in reader.enlargements:
        if e.kernel is None:
            continue
        along = reader.lanes.periods(e.strides, e.lanes, image)
        period = {axis: round(p) for axis, p in along.items() if round(p) > 1}
        found = _source(e.kernel, leaf_of)
        where = f"{e.place.where[0]}:{e.place.where[1]}"
        if found is None:
            skipped[where] = "a kernel that is not made of the params"
        elif not period:
            skipped[found[1]] = "its images are not those of the output"
        elif not jnp.issubdtype(e.kernel.dtype, jnp.floating):
            skipped[found[1]] = f"a kernel of {e.kernel.dtype}"
        else:
            i, name = found
            old = sites[i].period if i in sites else {}
            sites[i] = Site(name, i, old | period)
    return list(sites.values()), skipped


def _source(kernel: Value, leaf_of: dict[int, tuple[int, str]]) -> tuple[int, str] | None:
    """Returns the leaf from which a kernel is computed: of several the one with most axes, then the largest."""
    seen: dict[int, Value] = {}
    waiting = [kernel]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        waiting += value.inputs
        if value.stacked is not None:
            waiting.append(value.stacked)
    found = [value for i, value in seen.items() if i in leaf_of]
    if not found:
        return None
    most = max(found, key=lambda value: (len(value.shape), prod(value.shape)))
    return leaf_of[id(most)]


def largest(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return max(shapes, key=lambda shape: (len(shape) > 1, prod(shape)), default=())
