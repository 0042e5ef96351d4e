"""Names of weights: where an array lies in the arguments of a function or in what it closes over."""

import functools
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey, keystr

from tconvjax._program.program import Value, unbound

DEEPEST = 4  # functions inside of functions
MOST_SEEN = 256  # values between a kernel and the array that it comes from
HOLDERS = (".value", ".raw_value", "[...]")  # around the array of a Flax variable, and not its name


def of_arguments(fn: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """Returns the names of the leaves of `(fn, args)`, as "params['up']['kernel']"."""
    fn, args = unbound(fn, args)
    leaves, _ = jax.tree_util.tree_flatten_with_path((fn, args))
    names = _parameters(fn, len(args))
    result = []
    for path, _ in leaves:
        if path[0].idx == 0:
            result.append(_name("", path[1:]))
        else:
            result.append(_name(names[path[1].idx], path[2:]))
    return result


def _parameters(fn: Callable[..., Any], count: int) -> list[str]:
    try:
        known = [
            p.name
            for p in inspect.signature(fn).parameters.values()
            if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}
        ]
    except (TypeError, ValueError):
        known = []
    known = ["" if name == "self" else name for name in known]
    return [*known[:count], *(f"args[{i}]" for i in range(len(known), count))]


def _name(start: str, path: Any) -> str:
    """Returns a path in words; a single key of a flat dictionary, as in a state dict, is the name itself."""
    if len(path) == 1 and isinstance(path[0], DictKey) and "." in str(path[0].key):
        return str(path[0].key)
    name = start + keystr(tuple(path))
    for end in HOLDERS:
        name = name.removesuffix(end)
    return name.removeprefix(".")


def of_closure(fn: Callable[..., Any]) -> dict[int, str]:
    """Returns the names of arrays that a function closes over, by identity."""
    found: dict[int, str] = {}
    for name, thing in _closed_over(fn, DEEPEST, set()):
        try:
            variables = getattr(thing, "variables", None)
        except Exception:  # a property of someone else's class
            variables = None
        if isinstance(variables, list):  # Keras
            for v in variables:
                array = getattr(v, "_value", None)
                found.setdefault(id(array), getattr(v, "path", name))
            continue
        try:
            leaves, _ = jax.tree_util.tree_flatten_with_path(thing)
        except Exception:  # what JAX cannot flatten has no named arrays
            continue
        for path, leaf in leaves:
            if isinstance(leaf, jax.Array | np.ndarray):
                found.setdefault(id(leaf), _name(name, path))
    return found


def _closed_over(fn: Any, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if depth == 0 or id(fn) in seen:
        return
    seen.add(id(fn))
    inner: list[tuple[str, Any]] = []
    if isinstance(fn, functools.partial):
        inner = [
            ("", fn.func),
            *((f"args[{i}]", a) for i, a in enumerate(fn.args)),
            *fn.keywords.items(),
        ]
    elif isinstance(fn, MethodType):
        inner = [("", fn.__self__), ("", fn.__func__)]
    elif isinstance(fn, FunctionType):
        closed = inspect.getclosurevars(fn) if _is_whole(fn) else None
        if closed is not None:
            inner = [*closed.nonlocals.items(), *closed.globals.items()]
    elif hasattr(fn, "__wrapped__"):
        inner = [("", fn.__wrapped__)]
    for name, thing in inner:
        if isinstance(thing, FunctionType | MethodType | functools.partial) or hasattr(
            thing, "__wrapped__"
        ):
            yield from _closed_over(thing, depth - 1, seen)
        elif not inspect.ismodule(thing) and not inspect.isclass(thing):
            yield name, thing
    if not isinstance(fn, FunctionType | MethodType | functools.partial):
        yield "", fn


def _is_whole(fn: FunctionType) -> bool:
    """Whether every cell of a closure is filled, as `inspect.getclosurevars` needs."""
    try:
        _ = [cell.cell_contents for cell in fn.__closure__ or ()]
    except ValueError:
        return False
    return True


def leaf_of(kernel: Value) -> Value | None:
    """Returns the named array, the largest one, of which a kernel is computed."""
    seen, waiting = {kernel}, [kernel]
    found: list[Value] = []
    while waiting and len(seen) < MOST_SEEN:
        value = waiting.pop(0)
        if value.name:
            found.append(value)
            continue
        before = [*value.inputs, *([value.stacked] if value.stacked else [])]
        new = [v for v in before if v not in seen]
        seen.update(new)
        waiting += new
    sizes = lambda v: np.prod([n for n in v.shape if isinstance(n, int)])
    return max(found, key=sizes, default=None)
