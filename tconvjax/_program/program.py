"""A walk over a program: every equation of a jaxpr, with the values that it reads and the user's line that wrote it.

Values can be computed from the weights through the operations between them (casts, masks, flips, a resize folded into a
kernel); for this, inputs known by shape alone are drawn at random.
"""

import contextlib
import functools
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import Jaxpr

MOST_ELEMENTS = 1 << 26  # of an array that is computed to get the weights of a layer
# Libraries whose lines are not the user's own.
LIBRARIES = (
    "jax", "jaxlib", "flax", "keras", "equinox", "haiku", "einops", "jaxtyping", "tconvjax",
)  # fmt: skip
PROGRAMS: Any = (Jaxpr, getattr(core, "ClosedJaxpr"))  # noqa: B009  # one class since jax-ml/jax#39009
# Operations too costly to compute for a weight.
OPAQUE = {
    "conv_general_dilated", "scan", "while", "cond", "shard_map", "custom_call", "pure_callback",
    "io_callback", "pallas_call", "tconv_gather", "tconv_paint", "tconv_correlate",
}  # fmt: skip
RESIZES = {"_resize", "_resize_nearest"}  # inner programs of `jax.image.resize`
# Operations of `shard_map` that change the type of a value, not its numbers.
MARKS = {"pvary", "pcast"}


TRANSFORMED = re.compile(r"\b(jvp|transpose|vmap|jit|pjit|remat|checkpoint|shard_map)\(([^()]*)\)")
# 'eqx.nn.Conv', 'aten::convolution', 'Module.method', 'nhwc,cd->nhwd': no paths of modules.
OF_CLASSES = re.compile(r"\.|::|,|->")
INNER = {"while", "body", "cond", "scan", "closed_call", "core_call", "rematted_computation"}


def _broadcast(x: np.ndarray, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> np.ndarray:
    old = [1] * len(shape)
    for axis, n in zip(broadcast_dimensions, x.shape, strict=True):
        old[axis] = n
    return np.broadcast_to(x.reshape(old), shape)


def _sliced(x: np.ndarray, *, start_indices: Any, limit_indices: Any, strides: Any) -> np.ndarray:
    return x[tuple(map(slice, start_indices, limit_indices, strides or [1] * x.ndim))]


# Operations that NumPy computes at once, without compilation.
IN_NUMPY: dict[str, Any] = {
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, *, dimensions: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
    "rev": lambda x, *, dimensions: np.flip(x, tuple(dimensions)),
    "broadcast_in_dim": _broadcast,
    "slice": _sliced,
    "convert_element_type": lambda x, **_: x,
    "copy": lambda x, **_: x,
    "neg": lambda x, **_: -x,
    "add": lambda x, y, **_: x + y,
    "sub": lambda x, y, **_: x - y,
    "mul": lambda x, y, **_: x * y,
    "sqrt": lambda x, **_: np.sqrt(x),
    "rsqrt": lambda x, **_: 1 / np.sqrt(x),
    "integer_pow": lambda x, *, y, **_: np.power(x, y),
    "iota": lambda *, shape, dimension, **_: _broadcast(
        np.arange(shape[dimension]), shape=shape, broadcast_dimensions=(dimension,)
    ),
}


class Unknown(Exception):
    """Raised for a value that a few cheap operations cannot compute."""


@dataclass(eq=False)
class Value:
    """A value of a program: given, or computed by an equation, or known by shape alone.

    Attributes:
      shape: its shape.
      dtype: its dtype.
      given: the array, if it is given.
      equation: the equation that computes it, if any.
      inputs: the values that the equation reads.
      index: its index among the results of the equation.
      stacked: the stack with this value as an entry, inside of a loop over stacked layers.
      turns: number of its values, one for each turn of the loops around it.
      drawn: whether random numbers took part; set when it is computed.
      name: where it lies in the arguments or in what the function closes over, '' if it is computed.
    """

    shape: tuple[int, ...]
    dtype: Any
    given: Any = None
    equation: Any = None
    inputs: tuple["Value", ...] = ()
    index: int = 0
    stacked: "Value | None" = None
    turns: int = 1
    drawn: bool = False
    name: str = ""
    _known: dict[int, jax.Array] = field(default_factory=dict)

    @property
    def made_by(self) -> str:
        """The name of the primitive that computes it, '' if there is none."""
        return self.equation.primitive.name if self.equation else ""

    def compute(self, turn: int = 0) -> jax.Array:
        """Returns the value in one turn of the loops around it.

        Raises:
          Unknown: if cheap operations cannot compute it.
        """
        turn %= self.turns
        if turn not in self._known:
            known = all(isinstance(n, int) for n in self.shape)
            if self.made_by in OPAQUE or not known or prod(self.shape) > MOST_ELEMENTS:
                raise Unknown
            try:
                self._known[turn] = self._computed(turn)
            except RecursionError:
                raise Unknown from None
        return self._known[turn]

    def _computed(self, turn: int) -> jax.Array:
        if self.given is not None:
            return jnp.asarray(self.given)
        if self.stacked is not None:
            inner, outer = divmod(turn, self.stacked.turns)
            if self.stacked.given is not None:
                return jnp.asarray(self.stacked.given[inner])
            whole = self.stacked.compute(outer)
            self.drawn = self.stacked.drawn
            return whole[inner]
        if self.equation is None:
            self.drawn = True
            if not jnp.issubdtype(self.dtype, jnp.inexact):
                raise Unknown  # a key, an index
            numbers = np.random.default_rng(prod(self.shape)).normal(size=self.shape)
            return jnp.asarray(numbers, self.dtype)
        operands = [v.compute(turn) for v in self.inputs]
        self.drawn = any(v.drawn for v in self.inputs)
        if self.made_by in MARKS:
            return operands[self.index]
        if self.made_by in IN_NUMPY:
            arrays = map(np.asarray, operands)
            return IN_NUMPY[self.made_by](*arrays, **self.equation.params).astype(self.dtype)
        try:
            out = self.equation.primitive.bind(*operands, **self.equation.params)
        except Exception as error:  # such as a collective, whose parts lie on several devices
            raise Unknown from error
        results: Sequence[jax.Array] = out if self.equation.primitive.multiple_results else (out,)
        return results[self.index]


class Place(NamedTuple):
    """One equation of a program.

    Attributes:
      equation: equation of the jaxpr; None where a program ends, with its results as inputs.
      inputs: the values that it reads.
      results: the values that it computes.
      shape: shape of its first result.
      where: file and number of the user's own line; ('', 0) if there is none.
      scope: names of the modules around it, 'Generator/ConvTranspose_2'.
      backward: whether it calculates a gradient.
      number: its position in the program.
    """

    equation: Any
    inputs: tuple[Value, ...]
    results: tuple[Value, ...]
    shape: tuple[int, ...]
    where: tuple[str, int]
    scope: str
    backward: bool
    number: int


class Context(NamedTuple):
    """Context of an inner program, which its own equations do not record.

    Attributes:
      where: as in `Place`.
      names: transformations and scopes around it, in JAX's notation.
    """

    where: tuple[str, int] = ("", 0)
    names: str = ""


def traced(
    fn: Any, args: tuple[Any, ...], names: Sequence[str] = (), *, gradients: bool = False
) -> tuple[Any, list[Value]]:
    """Returns the jaxpr of a function of pytrees, and its inputs; `names` are those of the leaves of `(fn, args)`.

    A model that is a pytree, or whose method is given, becomes an input: changes of its state stay inside. Leaves that
    are no arrays are part of the program. With `gradients`, the program takes gradients of all its results.
    """
    fn, args = unbound(fn, args)
    leaves, tree = jax.tree.flatten((fn, args))
    kinds = jax.Array | np.ndarray | jax.ShapeDtypeStruct
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, kinds)}

    def run(*traced: jax.Array) -> list[jax.Array]:
        given = dict(enumerate(leaves)) | dict(zip(arrays, traced, strict=True))
        model, inputs = jax.tree.unflatten(tree, given.values())
        outputs = jax.tree.leaves(model(*inputs))
        return [leaf for leaf in outputs if isinstance(leaf, jax.Array)]

    shapes = [_like(a) for a in arrays.values()]
    inputs = [
        Value(a.shape, a.dtype, a if _has_numbers(a) else None, name=names[i] if names else "")
        for i, a in arrays.items()
    ]
    return jax.make_jaxpr(_pulled_back(run) if gradients else run)(*shapes), inputs


def unbound(fn: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Returns a method as a function, with its object as an argument."""
    return (fn.__func__, (fn.__self__, *args)) if isinstance(fn, MethodType) else (fn, args)


def _pulled_back(run: Any) -> Any:
    """Returns the gradients of all results of a function, with these results for cotangents."""

    def gradients(*arrays: jax.Array) -> list[jax.Array]:
        smooth = [jnp.issubdtype(a.dtype, jnp.inexact) for a in arrays]
        some = [a for a, s in zip(arrays, smooth, strict=True) if s]

        def results(*some: jax.Array) -> list[jax.Array]:
            given = iter(some)
            outputs = run(*(next(given) if s else a for a, s in zip(arrays, smooth, strict=True)))
            return [y for y in outputs if jnp.issubdtype(y.dtype, jnp.inexact)]

        outputs, pull = jax.vjp(results, *some)
        return list(pull(outputs))

    return gradients


def _like(array: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(array, "sharding", None)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _has_numbers(array: Any) -> bool:
    """Whether an array has numbers in this process: a donated array has none left."""
    if isinstance(array, jax.Array):
        return array.is_fully_addressable and not array.is_deleted()
    return isinstance(array, np.ndarray)


def walk(
    program: Any, inputs: Sequence[Value], names: dict[int, str] | None = None
) -> Iterator[Place]:
    """Yields every equation of a program, those of inner programs included, and last a place with its results.

    The second computation of a `checkpoint` is left out. `names` are those of constants, by identity.
    """
    walker = _Walk(names or {})
    results: list[Value] = []
    yield from walker.walk(program, inputs, Context(), results)
    yield walker.end(results)


class _Walk:
    """A walk over a program, which counts the places."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self._places = itertools.count()

    def end(self, results: Sequence[Value]) -> Place:
        """Returns the place where a program ends."""
        number = next(self._places)
        return Place(None, tuple(results), (), (), ("", 0), "", backward=False, number=number)

    def walk(
        self, program: Any, inputs: Sequence[Value], context: Context, outputs: list[Value]
    ) -> Iterator[Place]:
        """Yields the places of a program, and appends its results to `outputs`."""
        jaxpr, values = _entered(program, inputs, self._names)
        for eqn in jaxpr.eqns:
            given = tuple(value_of(v, values) for v in eqn.invars)
            results = _results(eqn, given)
            where = own_line(eqn) or context.where
            names = f"{context.names}/{eqn.source_info.name_stack}"
            if "rematted_computation" not in names:
                backward = "transpose(jvp(" in names
                shape = results[0].shape if results else ()
                number = next(self._places)
                yield Place(
                    eqn, given, tuple(results), shape, where, _scope(names), backward, number
                )
            for inner, inner_inputs, same_results in _inner_programs(eqn, given):
                inner_results: list[Value] = []
                yield from self.walk(inner, inner_inputs, Context(where, names), inner_results)
                if not same_results:
                    yield self.end(inner_results)
                elif len(inner_results) == len(results):
                    results = inner_results
            values |= dict(zip(eqn.outvars, results, strict=True))
        outputs.extend(value_of(v, values) for v in jaxpr.outvars)


def _scope(names: str) -> str:
    """Returns the names of modules in a stack of names, without those of transformations."""
    while names != (bare := TRANSFORMED.sub(r"\2", names)):
        names = bare
    return "/".join(
        p for p in names.split("/") if p and p not in INNER and not OF_CLASSES.search(p)
    )


def values_of(program: Any, inputs: Sequence[Value] | None = None) -> dict[Any, Value]:
    """Returns the values of a program by their variables, without those of its inner programs.

    Inputs that are not given are known by shape alone.
    """
    if inputs is None:
        inputs = [Value(*shaped(v)) for v in opened(program)[0].invars]
    jaxpr, values = _entered(program, inputs)
    for eqn in jaxpr.eqns:
        given = tuple(value_of(v, values) for v in eqn.invars)
        values |= dict(zip(eqn.outvars, _results(eqn, given), strict=True))
    return values


def results_of(program: Any, inputs: Sequence[Value]) -> list[Value]:
    """Returns the results of a program."""
    values = values_of(program, inputs)
    return [value_of(v, values) for v in opened(program)[0].outvars]


def value_of(atom: Any, values: dict[Any, Value]) -> Value:
    """Returns the value of a variable or a literal."""
    if isinstance(atom, core.Literal):
        return Value(np.shape(atom.val), np.result_type(atom.val), atom.val)
    return values[atom]


def _entered(
    program: Any, inputs: Sequence[Value], names: dict[int, str] | None = None
) -> tuple[Any, dict[Any, Value]]:
    """Returns the jaxpr of a program, and its constants, with their names by identity, and inputs by variables."""
    jaxpr, consts = opened(program)
    for value in consts:
        value.name = (names or {}).get(id(value.given), "")
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
    return jaxpr, values | dict(zip(jaxpr.invars, inputs, strict=True))


def _results(eqn: Any, given: tuple[Value, ...]) -> list[Value]:
    turns = max((v.turns for v in given), default=1)
    return [
        Value(*shaped(v), None, eqn, given, index, turns=turns)
        for index, v in enumerate(eqn.outvars)
    ]


def shaped(atom: Any) -> tuple[tuple[int, ...], Any]:
    return tuple(getattr(atom.aval, "shape", ())), getattr(atom.aval, "dtype", None)


def opened(program: Any) -> tuple[Any, list[Value]]:
    """Returns the jaxpr of a program and its constants."""
    jaxpr = getattr(program, "jaxpr", program)
    consts = zip(jaxpr.constvars, getattr(program, "consts", ()), strict=True)
    return jaxpr, [Value(*shaped(v), c) for v, c in consts]


def _inner_programs(
    eqn: Any, given: tuple[Value, ...]
) -> Iterator[tuple[Any, Sequence[Value], bool]]:
    """Yields the inner programs of an equation, the inputs of each, and whether its results are the equation's."""
    name, params = eqn.primitive.name, eqn.params
    if name == "jit" and params.get("name") in RESIZES:
        return  # one operation
    read: list[Sequence[Value]]
    if name in {"scan", "while"}:  # the values of the first turn, but for what may count the turns
        given = tuple(Value(v.shape, v.dtype) if _may_count(v) else v for v in given)
    if name == "while":
        conds, consts = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        programs = [params["cond_jaxpr"], params["body_jaxpr"]]
        read = [[*given[:conds], *given[consts:]], given[conds:]]
    elif name == "cond":
        programs = list(params["branches"])
        read = [given[1:]] * len(programs)
    elif name.startswith(("scatter", "reduce", "select_and")):
        return  # how two numbers are combined
    else:
        programs = [p for p in params.values() if isinstance(p, PROGRAMS)]
        read = [given] * len(programs)
    for program, values in zip(programs, read, strict=True):
        inputs = [Value(*shaped(v)) for v in getattr(program, "jaxpr", program).invars]
        if len(inputs) == len(values):
            inputs = [entering(v, inner) for v, inner in zip(values, inputs, strict=True)]
        yield program, inputs, name not in {"scan", "while", "cond"}


def _may_count(value: Value) -> bool:
    return (
        value.shape == () and value.dtype is not None and jnp.issubdtype(value.dtype, jnp.integer)
    )


def entering(value: Value, inner: Value) -> Value:
    """Returns a value as an inner program reads it: whole, as an entry of a stack, or by its shape alone."""
    if value.shape == inner.shape:
        return value
    numbers = value.given is not None or value.equation is not None or value.stacked is not None
    turns = value.shape[0] if value.shape[1:] == inner.shape else 0
    if isinstance(turns, int) and turns and numbers:
        inner.stacked, inner.turns = value, value.turns * turns
    return inner


def own_line(eqn: Any) -> tuple[str, int] | None:
    """Returns the innermost line that belongs to no library of layers."""
    traceback = eqn.source_info.traceback
    libraries = _library_files()
    for frame in traceback.frames if traceback else ():
        if not frame.file_name.startswith(libraries):
            return frame.file_name, frame.line_num
    return None


def _library_files() -> tuple[str, ...]:
    """Returns the prefixes of the names of their files."""
    return _prefixes(tuple(name for name in LIBRARIES if name in sys.modules))


@functools.cache
def _prefixes(libraries: tuple[str, ...]) -> tuple[str, ...]:
    files = [getattr(sys.modules[name], "__file__", None) for name in libraries]
    folders = [f"{Path(file).parent}/" for file in files if file]
    return (*folders, contextlib.__file__, functools.__file__, "<frozen")
