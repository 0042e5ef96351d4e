"""Programs, walked: every equation of a jaxpr with the values that it reads and the user's line that wrote it.

Values are followed backwards to the weights through whatever lies between (casts, masks, flips, a resize folded into a
kernel); what is known by shape alone is drawn at random for this.
"""

import contextlib
import functools
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

LARGE = 1 << 26  # numbers that are computed, at most, to know the weights of a layer
# Libraries of layers, whose lines are not the user's own.
LIBRARIES = (
    "jax", "jaxlib", "flax", "keras", "equinox", "haiku", "einops", "jaxtyping", "tconvjax",
)  # fmt: skip
PROGRAMS: Any = (Jaxpr, getattr(core, "ClosedJaxpr"))  # noqa: B009  # one and the same from jax 0.12 on
# Operations that are not worth computing to know a weight.
OPAQUE = {
    "conv_general_dilated", "scan", "while", "cond", "shard_map", "custom_call", "pure_callback",
    "io_callback", "pallas_call", "tconv_gather", "tconv_paint", "tconv_correlate",
}  # fmt: skip
# Operations that tell the compiler, not the numbers, what a value is inside of `shard_map`.
MARKS = {"pvary", "pcast"}


class Unknown(Exception):
    """A value that more than a few cheap operations compute."""


@dataclass(eq=False)
class Value:
    """A value of a program: given, or computed by an equation, or known by shape alone.

    Attributes:
      shape: its shape.
      dtype: its dtype.
      given: the array, if it is.
      equation: that computes it, if one does.
      inputs: what the equation reads.
      index: which result of the equation it is.
      stacked: of which it is an entry, inside of a loop over stacked layers.
      turns: how many values it has, one in each turn of the loops around it.
      drawn: once computed, whether random numbers took part.
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
    _known: dict[int, jax.Array] = field(default_factory=dict)

    @property
    def made_by(self) -> str:
        """The name of the primitive that computes it, '' if none does."""
        return self.equation.primitive.name if self.equation else ""

    def compute(self, turn: int = 0) -> jax.Array:
        """Returns the value in one turn of the loops around it.

        Raises:
          Unknown: if that takes more than cheap operations.
        """
        turn %= self.turns
        if turn not in self._known:
            known = all(isinstance(n, int) for n in self.shape)
            if self.made_by in OPAQUE or not known or prod(self.shape) > LARGE:
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
        try:
            out = self.equation.primitive.bind(*operands, **self.equation.params)
        except Exception as error:  # a collective, say, of which every device has a part
            raise Unknown from error
        results: Sequence[jax.Array] = out if self.equation.primitive.multiple_results else (out,)
        return results[self.index]


class Place(NamedTuple):
    """One equation of a program.

    Attributes:
      equation: of the jaxpr.
      inputs: what it reads.
      shape: of its first result.
      where: file and number of the user's own line; ('', 0) if there is none.
      backward: whether it calculates a gradient.
      images: shapes of what the whole program returns.
    """

    equation: Any
    inputs: tuple[Value, ...]
    shape: tuple[int, ...]
    where: tuple[str, int]
    backward: bool
    images: Sequence[tuple[int, ...]]


class Around(NamedTuple):
    """What the equations of a program inside of another do not say themselves.

    Attributes:
      where: as in `Place`.
      names: of the transformations and scopes, as JAX writes them.
    """

    where: tuple[str, int] = ("", 0)
    names: str = ""


def traced(fn: Any, args: tuple[Any, ...]) -> tuple[Any, list[Value]]:
    """Returns the jaxpr of a function of pytrees, and its inputs; leaves that are no arrays are part of the program.

    A model that is a pytree, or whose method is given, is one of its inputs: what it does to its state stays inside.
    """
    if isinstance(fn, MethodType):
        fn, args = fn.__func__, (fn.__self__, *args)
    leaves, tree = jax.tree.flatten((fn, args))
    kinds = jax.Array | np.ndarray | jax.ShapeDtypeStruct
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, kinds)}

    def run(*traced: jax.Array) -> list[jax.Array]:
        given = dict(enumerate(leaves)) | dict(zip(arrays, traced, strict=True))
        model, inputs = jax.tree.unflatten(tree, given.values())
        outputs = jax.tree.leaves(model(*inputs))
        return [leaf for leaf in outputs if isinstance(leaf, jax.Array)]

    shapes = [_like(a) for a in arrays.values()]
    inputs = [Value(a.shape, a.dtype, a if _held_by(a) else None) for a in arrays.values()]
    return jax.make_jaxpr(run)(*shapes), inputs


def _like(array: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(array, "sharding", None)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _held_by(array: Any) -> bool:
    """Whether an array has numbers: a donated one has none left, and another process's are not here."""
    if isinstance(array, jax.Array):
        return array.is_fully_addressable and not array.is_deleted()
    return isinstance(array, np.ndarray)


def walk(program: Any, inputs: Sequence[Value]) -> Iterator[Place]:
    """Yields every equation of a program, those of the programs inside of it included.

    What `checkpoint` calculates a second time is left out.
    """
    images = [tuple(v.aval.shape) for v in program.jaxpr.outvars]
    return _walk(program, inputs, Around(), images, [])


def _walk(
    program: Any,
    inputs: Sequence[Value],
    around: Around,
    images: Sequence[tuple[int, ...]],
    outputs: list[Value],
) -> Iterator[Place]:
    """As `walk`; appends the results of the program to `outputs`."""
    jaxpr, consts = _opened(program)
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def value(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            return Value(np.shape(atom.val), np.result_type(atom.val), atom.val)
        return values[atom]

    for eqn in jaxpr.eqns:
        given = tuple(map(value, eqn.invars))
        turns = max((v.turns for v in given), default=1)
        results = [
            Value(*_shaped(v), None, eqn, given, index, turns=turns)
            for index, v in enumerate(eqn.outvars)
        ]
        where = _own_line(eqn) or around.where
        names = f"{around.names}/{eqn.source_info.name_stack}"
        if "rematted_computation" not in names:
            backward = "transpose(jvp(" in names
            yield Place(eqn, given, results[0].shape if results else (), where, backward, images)
        for inner, entering, same_results in _held(eqn, given):
            inside: list[Value] = []
            yield from _walk(inner, entering, Around(where, names), images, inside)
            if same_results and len(inside) == len(results):
                results = inside
        values |= dict(zip(eqn.outvars, results, strict=True))
    outputs.extend(map(value, jaxpr.outvars))


def _shaped(atom: Any) -> tuple[tuple[int, ...], Any]:
    return tuple(getattr(atom.aval, "shape", ())), getattr(atom.aval, "dtype", None)


def _opened(program: Any) -> tuple[Any, list[Value]]:
    """Returns a program without its constants, and these."""
    consts = [Value(np.shape(c), jnp.result_type(c), c) for c in getattr(program, "consts", ())]
    return getattr(program, "jaxpr", program), consts


def _held(eqn: Any, given: tuple[Value, ...]) -> Iterator[tuple[Any, Sequence[Value], bool]]:
    """Yields the programs of an equation, what each reads, and whether its results are those of the equation."""
    name, params = eqn.primitive.name, eqn.params
    entering: list[Sequence[Value]]
    if name == "while":  # and scan: what a loop reads at its first turn
        conds, consts = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        programs = [params["cond_jaxpr"], params["body_jaxpr"]]
        entering = [[*given[:conds], *given[consts:]], given[conds:]]
    elif name == "cond":
        programs = list(params["branches"])
        entering = [given[1:]] * len(programs)
    else:
        programs = [p for p in params.values() if isinstance(p, PROGRAMS)]
        entering = [given] * len(programs)
    for program, values in zip(programs, entering, strict=True):
        wanted = [Value(*_shaped(v)) for v in _opened(program)[0].invars]
        if len(wanted) == len(values):
            wanted = [_entering(v, inner) for v, inner in zip(values, wanted, strict=True)]
        yield program, wanted, name not in {"scan", "while", "cond"}


def _entering(value: Value, inner: Value) -> Value:
    """Returns what a program inside of another sees of a value: all, an entry of a stack, or its shape."""
    if value.shape == inner.shape:
        return value
    numbers = value.given is not None or value.equation is not None or value.stacked is not None
    turns = value.shape[0] if value.shape[1:] == inner.shape else 0
    if isinstance(turns, int) and turns and numbers:
        inner.stacked, inner.turns = value, value.turns * turns
    return inner


def _own_line(eqn: Any) -> tuple[str, int] | None:
    """Returns the innermost line that belongs to no library of layers."""
    traceback = eqn.source_info.traceback
    libraries = _library_files()
    for frame in traceback.frames if traceback else ():
        if not frame.file_name.startswith(libraries):
            return frame.file_name, frame.line_num
    return None


def _library_files() -> tuple[str, ...]:
    """Returns where the names of their files begin."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in LIBRARIES]
    folders = [f"{Path(file).parent}/" for file in files if file]
    return (*folders, contextlib.__file__, functools.__file__, "<frozen")
