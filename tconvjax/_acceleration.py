"""Replacement of the convolutions of any program by the faces of this library.

`accelerate` traces a function to a jaxpr, replaces the convolutions in it and evaluates the result; layers, models and
training loops stay unchanged. Gradients that the function takes itself are convolutions like all others:
`tconvjax._program.reading` decides which face each of them is.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from itertools import chain, product
from typing import Any, NamedTuple, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.extend.core.primitives import conv_general_dilated_p
from jax.sharding import AxisType

from tconvjax import _faces as faces
from tconvjax._arguments import Call, flip_and_swap
from tconvjax._program.convolutions import without_rest, without_zeros
from tconvjax._program.program import Value, value_of, values_of
from tconvjax._program.reading import Groups, Reading, groups_apart, read
from tconvjax._program.zeros import Spread, Thinned, spread, thinned, whole

PROGRAMS: Any = (Jaxpr, getattr(core, "ClosedJaxpr"))  # noqa: B009  # one class since jax-ml/jax#39009
P = ParamSpec("P")
R = TypeVar("R")

# Operations that hold programs and keep their meaning if an equivalent program replaces one.
HOLDERS = {
    "jit", "closed_call", "core_call", "remat2", "checkpoint", "scan", "while", "cond",
    "custom_jvp_call", "custom_vjp_call", "shard_map",
}  # fmt: skip


def accelerate(fn: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that computes the same as `fn`, with the convolutions of this library.

    Every `lax.conv_general_dilated` in `fn`, from any library of layers, becomes a gather, paint or correlate, so that
    gradients cost as much as a convolution: `jax.grad(accelerate(loss))`. Convolutions change only by rounding, other
    operations not at all. `jit`, `scan`, `while`, `cond`, `checkpoint` with its policy, functions with derivatives of
    their own and `shard_map` are kept, and the programs in them are rewritten.

    Zeros between pixels are read however they come: as `lhs_dilation` or `rhs_dilation`, or from a `lax.pad`, a scatter
    into zeros, a stack with zeros, or a pad and a reshape before the convolution, with transposes, casts, further pads
    and crops and axes of size 1 in between. Such a convolution reads the small image; the large one is not made, unless
    others read it. Pixels that a strided slice behind a convolution leaves out, as in gradients of `lax.pad`, are not
    computed if nothing else reads the result.

    Unchanged: convolutions of integers, of 8-bit floats, without a spatial axis, of empty arrays, over meshes with
    Explicit axes, with an algorithm as precision, and those in which all three arrays are spread (`lhs_dilation`,
    `window_strides` and `rhs_dilation` > 1 on some axis each); zeros inserted in another program of a `jit`, `scan`, ..
    than the convolution's; derivative rules of `custom_jvp` and `custom_vjp`; kernels in Pallas and other operations
    that hold programs.

    Args:
      fn: a function of pytrees, traced at every call as by `jax.jit`, without its cache: put `jax.jit` around the
        result. JAX arrays in its arguments are traced; other leaves, such as `train=True`, reach it unchanged. It must
        return every change of its arguments: for a Flax NNX module with statistics or random streams
        `nnx.state(module)`, which the caller applies with `nnx.update(module, state)`.

    Returns:
      A function of the same arguments, for calls under `jax.jit`, `jax.grad`, `jax.vmap` and all other transformations.

    Raises:
      TypeError: if `fn` is not callable.
      ValueError: from the returned function, if `fn` changes an argument and does not return the change.

    Example:
      >>> def loss(kernel, image):  # strided, so that JAX's own gradient multiplies with inserted zeros
      ...     return lax.conv_general_dilated(image, kernel, (2,), "SAME").sum()
      >>> kernel, image = jnp.ones((4, 3, 5)), jnp.ones((2, 3, 8))
      >>> program = str(jax.make_jaxpr(jax.grad(accelerate(loss)))(kernel, image))
      >>> "tconv_correlate" in program, "conv_general_dilated" in program
      (True, False)
      >>> bool((jax.grad(accelerate(loss))(kernel, image) == jax.grad(loss)(kernel, image)).all())
      True
    """
    if not callable(fn):
        raise TypeError(
            f"accelerate: fn must be callable; got an object of type {type(fn).__name__}."
        )

    @wraps(fn, updated=())
    def accelerated(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves, tree = jax.tree.flatten((args, kwargs))
        arrays, rest = _split(leaves)
        results: Any = None  # the tree that `fn` returns, and its leaves that are no arrays

        def traced(*arrays: jax.Array) -> list[jax.Array]:
            nonlocal results
            inputs = jax.tree.unflatten(tree, _joined(arrays, rest))
            before = jax.tree_util.tree_flatten_with_path(inputs)
            leaves, result_tree = jax.tree.flatten(fn(*inputs[0], **inputs[1]))
            _check_returned(before, jax.tree_util.tree_flatten_with_path(inputs), leaves)
            outputs, others = _split(leaves)
            results = result_tree, others
            return outputs

        program = _rewritten(jax.make_jaxpr(traced)(*arrays))
        outputs = jaxpr_as_fun(program)(*arrays)
        result_tree, others = results
        return jax.tree.unflatten(result_tree, _joined(outputs, others))

    return accelerated


def _split(leaves: Sequence[Any]) -> tuple[list[jax.Array], list[Any]]:
    """Returns the JAX arrays among `leaves`, and the leaves with a mark in the place of each array."""
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    return arrays, [_ARRAY if isinstance(leaf, jax.Array) else leaf for leaf in leaves]


def _joined(arrays: Iterable[jax.Array], rest: Sequence[Any]) -> list[Any]:
    """Undoes `_split`."""
    arrays = iter(arrays)
    return [next(arrays) if leaf is _ARRAY else leaf for leaf in rest]


_ARRAY = object()


def _check_returned(before: Any, after: Any, returned: Sequence[Any]) -> None:
    """Raises if a function changes its arguments, which are copies, and does not return the change.

    Args:
      before: leaves with paths and the tree of the arguments `(args, kwargs)`.
      after: the same after the call.
      returned: leaves of the result.
    """
    (old, old_tree), (new, new_tree) = before, after
    if old_tree == new_tree:
        safe = {id(leaf) for leaf in (*returned, *(leaf for _, leaf in old))}
        lost = [path for path, leaf in new if isinstance(leaf, jax.Array) and id(leaf) not in safe]
        if not lost:
            return
        position, *path = lost[0]
        name = ("args", "kwargs")[position.idx]
        what = f"a new value of {name}{jax.tree_util.keystr(tuple(path))}"
    else:
        what = "a new structure of the arguments"
    raise ValueError(
        f"accelerate: fn must return every change of its arguments; got {what}, which would be lost. Return it, for a "
        "Flax NNX module as nnx.state(module), and nnx.update the module outside."
    )


def _rewritten(program: Any) -> Any:
    """Returns a jaxpr, closed or not, with convolutions bound to faces; the same one if none can be."""
    if program not in _REWRITTEN:
        jaxpr: Any = program if isinstance(program, Jaxpr) else program.jaxpr
        scope = _scope(program, jaxpr)
        eqns = [new for eqn in jaxpr.eqns for new in _rewritten_equation(eqn, scope)]
        changed = eqns != jaxpr.eqns
        new = jaxpr.replace(eqns=_needed(eqns, jaxpr)) if changed else jaxpr
        closed = new if jaxpr is program else program.replace(jaxpr=new)
        _REWRITTEN[program] = closed if changed else None
    return _REWRITTEN[program] or program


# Rewritten programs, None for unchanged ones. JAX finds the compiled code of an inner `jit` by its program's identity.
_REWRITTEN: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class _Scope(NamedTuple):
    """The values of one program.

    Attributes:
      values: by variable.
      variables: by value.
      readers: number of equations and results that read a variable.
    """

    values: dict[Any, Value]
    variables: dict[Value, Any]
    readers: Counter[Any]

    def value(self, atom: Any) -> Value:
        return value_of(atom, self.values)

    def alone(self, value: Value) -> bool:
        """Whether one equation alone reads a value; values inside of a `jit` have the reader that led there."""
        return value not in self.variables or self.readers[self.variables[value]] == 1


def _scope(program: Any, jaxpr: Jaxpr) -> _Scope:
    if all(eqn.primitive is not conv_general_dilated_p for eqn in jaxpr.eqns):
        return _Scope({}, {}, Counter())
    values = values_of(program)
    read = Counter(v for v in _read_by(jaxpr.eqns, jaxpr) if not isinstance(v, Literal))
    return _Scope(values, {value: v for v, value in values.items()}, read)


def _read_by(eqns: Iterable[JaxprEqn], jaxpr: Jaxpr) -> Iterable[Any]:
    return chain((v for eqn in eqns for v in eqn.invars), jaxpr.outvars)


def _needed(eqns: Sequence[JaxprEqn], jaxpr: Jaxpr) -> list[JaxprEqn]:
    """Returns the equations whose results are read, and those whose results were never read."""
    read = {v for v in _read_by(jaxpr.eqns, jaxpr) if not isinstance(v, Literal)}
    idle = {id(eqn) for eqn in jaxpr.eqns if read.isdisjoint(eqn.outvars)}
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    kept = []
    for eqn in reversed(eqns):
        if eqn.effects or id(eqn) in idle or not needed.isdisjoint(eqn.outvars):
            kept.append(eqn)
            needed |= {v for v in eqn.invars if not isinstance(v, Literal)}
    return kept[::-1]


def _rewritten_equation(eqn: JaxprEqn, scope: _Scope) -> list[JaxprEqn]:
    """Returns the equations that take the place of `eqn`."""
    if eqn.primitive is conv_general_dilated_p:
        return _convolution(eqn, eqn, scope) or [eqn]
    if eqn.primitive.name == "slice":
        thin = thinned(scope.values[eqn.outvars[0]], scope.alone) if scope.values else None
        return (thin and _convolution(eqn, thin.result.equation, scope, thin)) or [eqn]
    if eqn.primitive.name not in HOLDERS:
        return [eqn]
    params = {name: _rewritten_param(value) for name, value in eqn.params.items()}
    if all(params[name] is value for name, value in eqn.params.items()):
        return [eqn]
    if params.get("policy") is not None:
        params["policy"] = _as_convolution(params["policy"])
    return [eqn.replace(params=params)]


def _rewritten_param(value: Any) -> Any:
    if isinstance(value, PROGRAMS):
        return _rewritten(value)
    if type(value) is tuple and any(isinstance(v, PROGRAMS) for v in value):
        new = tuple(map(_rewritten, value))
        return value if all(a is b for a, b in zip(new, value, strict=True)) else new
    return value


def _as_convolution(policy: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a policy of `jax.checkpoint` that treats a face as the convolution that it replaces."""

    def of_faces(primitive: Any, *avals: Any, **params: Any) -> Any:
        face = primitive.name.removeprefix("tconv_") in faces.FACES
        return policy(conv_general_dilated_p if face else primitive, *avals, **params)

    return of_faces


def _convolution(
    eqn: JaxprEqn, convolution: JaxprEqn, scope: _Scope, thin: Thinned | None = None
) -> list[JaxprEqn]:
    """Returns the equations of a face that computes the result of `eqn`, none if there is no face.

    Args:
      eqn: the convolution, or the last equation of what leaves out some of its pixels.
      convolution: the convolution.
      scope: of the program with both.
      thin: the pixels that are not left out.
    """
    lhs, rhs, result = map(_aval, (*convolution.invars, *convolution.outvars))
    precision = convolution.params["precision"]
    supported = (
        all(
            jnp.issubdtype(a.dtype, jnp.inexact) and a.dtype.itemsize > 1
            for a in (lhs, rhs, result)
        )
        and all(AxisType.Explicit not in a.sharding.mesh.axis_types for a in (lhs, rhs, result))
        and (precision is None or isinstance(precision, tuple))
    )
    if not supported:
        return []
    options = {"dtype": result.dtype, "precision": precision}
    params = without_rest(convolution.params, thin) if thin else convolution.params
    shape = result.shape
    if thin:
        shape = tuple(size for _, _, size in thin.along_axes())
    choices = [_images(scope.value(v), scope) for v in convolution.invars]
    readings = (_faces(images, shape, params) for images in product(*choices)) if params else ()
    found = next(filter(None, readings), None)
    if found is None:
        return []
    images, groups, reading = found

    def compute(*operands: jax.Array) -> jax.Array:
        arranged = [image.arrange(x) for image, x in zip(images, operands, strict=True)]
        pixels = _compute(reading, groups, arranged, **options)
        return thin.arrange(pixels) if thin else pixels

    (out,) = map(_aval, eqn.outvars)
    operands = [
        scope.variables.get(image.image, v)
        for image, v in zip(images, convolution.invars, strict=True)
    ]
    with eqn.ctx.manager, jax.disable_jit():  # without inner programs
        face = jax.make_jaxpr(compute)(*map(_aval, operands))
    (made,) = face.out_avals
    if (made.shape, made.dtype, made.weak_type) != (out.shape, out.dtype, out.weak_type):
        return []
    variables: dict[Any, Any] = dict(zip(face.jaxpr.invars, operands, strict=True))
    variables |= dict(zip(face.jaxpr.outvars, eqn.outvars, strict=True))

    def renamed(v: Any) -> Any:
        if not isinstance(v, Literal) and v not in variables:
            # This trace is outside of `shard_map`, in which all values vary over the axes of the result.
            variables[v] = Var(v.aval.update(manual_axis_type=out.manual_axis_type))
        return v if isinstance(v, Literal) else variables[v]

    return [
        new.replace(
            invars=[renamed(v) for v in new.invars],
            outvars=[renamed(v) for v in new.outvars],
            source_info=eqn.source_info,
            ctx=eqn.ctx,
        )
        for new in face.jaxpr.eqns
    ]


def _aval(v: Any) -> Any:
    return v.aval


def _images(value: Value, scope: _Scope) -> list[Spread]:
    """Returns an image without the zeros between its pixels, if the program has it, then the image as it is."""
    small = spread(value)
    return [*([small] if small and small.image in scope.variables else []), whole(value)]


def _faces(
    images: Sequence[Spread], shape: tuple[int, ...], params: dict[str, Any]
) -> tuple[Sequence[Spread], Groups | None, Reading] | None:
    """Returns the reading of a convolution of two images without zeros, whole or else of each of its groups."""
    undilated = without_zeros(params, *images)
    if undilated is None:
        return None
    lhs, rhs = (image.shape for image in images)
    reading = read(lhs, rhs, shape, undilated)
    if reading:
        return images, None, reading
    groups = groups_apart(lhs, rhs, shape, undilated)
    reading = groups and read(groups.lhs, groups.rhs, groups.out, groups.params)
    if not reading:
        return None
    return images, groups, reading


def _compute(
    reading: Reading, groups: Groups | None, operands: Sequence[jax.Array], **options: Any
) -> jax.Array:
    """Computes a convolution of XLA by the face of its reading; groups that were read apart are a stack."""
    arrays, axes, flipped, geometry = reading
    role = {name: role for role, name in arrays.items()}

    def flip(array: jax.Array, name: str) -> jax.Array:
        if name != flipped:
            return array
        if role[name] == "w":
            return flip_and_swap(array, geometry.rank, geometry.feature_group_count)
        return lax.rev(array, tuple(range(1, geometry.rank + 1)))

    def arrange(array: jax.Array, name: str) -> jax.Array:
        return flip(lax.transpose(array, axes[name]), name)

    def back(result: jax.Array) -> jax.Array:
        permutation = sorted(range(len(axes["out"])), key=axes["out"].__getitem__)
        return lax.transpose(flip(result, "out"), permutation)

    given = {}
    for index, (name, array) in enumerate(zip(("lhs", "rhs"), operands, strict=True)):
        if groups:
            split = _split_axis(array, groups.axes[index], groups.number)
            given[role[name]] = jax.vmap(partial(arrange, name=name))(split)
        else:
            given[role[name]] = arrange(array, name)[None]
    face, (roles, _) = next((f, spec) for f, spec in faces.FACES.items() if spec[1] == role["out"])
    left, right = (given[r] for r in roles)
    result = faces.bind(face, left, right, Call(geometry, **options))
    if not groups:
        return back(result[0])
    return _joined_axis(jax.vmap(back)(result), groups.axes[2])


def _split_axis(array: jax.Array, axis: int, number: int) -> jax.Array:
    """Splits an axis into parts and makes a new first axis of them."""
    shape = array.shape
    parts = array.reshape(*shape[:axis], number, shape[axis] // number, *shape[axis + 1 :])
    return jnp.moveaxis(parts, axis, 0)


def _joined_axis(array: jax.Array, axis: int) -> jax.Array:
    """Undoes `_split_axis`."""
    number, *shape = array.shape
    shape[axis] *= number
    return jnp.moveaxis(array, 0, axis).reshape(shape)
