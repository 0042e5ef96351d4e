"""Replacement of the convolutions of any program by the faces of this library.

`accelerate` traces a function to a jaxpr, replaces the convolutions in it and evaluates the result; layers, models and
training loops stay unchanged. Gradients that the function takes itself are convolutions like all others:
`tconvjax._program.reading` decides which face each of them is.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar
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
from tconvjax._program.reading import Reading, read

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

    Unchanged: convolutions of integers, of 8-bit floats, without a spatial axis, of empty or weakly typed arrays, over
    meshes with Explicit axes, with an algorithm as precision, and those in which all three arrays are spread
    (`lhs_dilation`, `window_strides` and `rhs_dilation` > 1 on some axis each); derivative rules of `custom_jvp` and
    `custom_vjp`; kernels in Pallas and other operations that hold programs.

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
        eqns = [new for eqn in jaxpr.eqns for new in _rewritten_equation(eqn)]
        new = jaxpr.replace(eqns=eqns)
        closed = new if jaxpr is program else program.replace(jaxpr=new)
        _REWRITTEN[program] = None if eqns == jaxpr.eqns else closed
    return _REWRITTEN[program] or program


# Rewritten programs, None for unchanged ones. JAX finds the compiled code of an inner `jit` by its program's identity.
_REWRITTEN: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _rewritten_equation(eqn: JaxprEqn) -> list[JaxprEqn]:
    """Returns the equations that take the place of `eqn`."""
    if eqn.primitive is conv_general_dilated_p:
        return _convolution(eqn)
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


def _convolution(eqn: JaxprEqn) -> list[JaxprEqn]:
    """Returns the equations of a face that computes the convolution `eqn`, or `eqn` if there is none."""
    lhs, rhs, out = arrays = [_aval(v) for v in (*eqn.invars, *eqn.outvars)]
    precision = eqn.params["precision"]
    supported = (
        all(jnp.issubdtype(a.dtype, jnp.inexact) and a.dtype.itemsize > 1 for a in arrays)
        and all(AxisType.Explicit not in a.sharding.mesh.axis_types for a in arrays)
        and (precision is None or isinstance(precision, tuple))
    )
    reading = read(lhs.shape, rhs.shape, out.shape, eqn.params) if supported else None
    if reading is None:
        return [eqn]
    compute = partial(_compute, reading, dtype=out.dtype, precision=precision)
    with eqn.ctx.manager, jax.disable_jit():  # without inner programs
        face = jax.make_jaxpr(compute)(lhs, rhs)
    (result,) = face.out_avals
    if (result.shape, result.dtype, result.weak_type) != (out.shape, out.dtype, out.weak_type):
        return [eqn]
    variables: dict[Any, Any] = dict(zip(face.jaxpr.invars, eqn.invars, strict=True))
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


def _compute(reading: Reading, lhs: jax.Array, rhs: jax.Array, **options: Any) -> jax.Array:
    """Computes a convolution of XLA by the face of its reading."""
    arrays, axes, flipped, geometry = reading
    role = {name: role for role, name in arrays.items()}

    def flip(array: jax.Array, name: str) -> jax.Array:
        if name != flipped:
            return array
        if role[name] == "w":
            return flip_and_swap(array, geometry.rank, geometry.feature_group_count)
        return lax.rev(array, tuple(range(1, geometry.rank + 1)))

    given = {
        role[name]: flip(lax.transpose(array, axes[name]), name)[None]
        for name, array in (("lhs", lhs), ("rhs", rhs))
    }
    face, (roles, _) = next((f, spec) for f, spec in faces.FACES.items() if spec[1] == role["out"])
    left, right = (given[r] for r in roles)
    result = faces.bind(face, left, right, Call(geometry, **options))
    permutation = sorted(range(len(axes["out"])), key=axes["out"].__getitem__)
    return lax.transpose(flip(result[0], "out"), permutation)
