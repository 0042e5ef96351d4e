"""The change of kernels that takes a pattern away and leaves the output: rounds of Gauss-Newton.

Each round solves a linear system by conjugate gradients. Its matrix is estimated once, as the covariance of gradients
for random outputs, image by image, and factored: so a few steps converge, although the features that a kernel reads are
nearly dependent.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.extend import core

from tconvjax._repair.bands import Bands

EPSILON = (
    0.01  # change that costs as much as one like the pattern, in standard deviations of the output
)
RIDGE = 1e-5  # cost of a change that the data do not show, relative to the mean curvature
SAMPLES = 2  # gradients per unknown
BATCH = 16  # gradients at once
LARGEST = 4608  # unknowns of a matrix
ROUNDS = 4
TOLERANCE = 1e-3  # of the residual in the norm of the preconditioner, relative


class Problem(NamedTuple):
    """A network as a function of some of its leaves: `run(chosen, others)`.

    Attributes:
      run: the function.
      chosen: the leaves.
      others: all other arrays.
      images: indices of `others` that are data, with an entry for each image of the output.
    """

    run: Callable[[list[jax.Array], list[Any]], jax.Array]
    chosen: list[jax.Array]
    others: list[Any]
    images: tuple[int, ...]

    def image(self, i: int) -> list[Any]:
        """Returns the other arrays with the data of one image."""
        return [x[i : i + 1] if n in self.images else x for n, x in enumerate(self.others)]


def problem_of(
    output: Callable[..., jax.Array], leaves: Sequence[Any], args: Any, chosen: Sequence[int], count: int
) -> Problem:  # fmt: skip
    """Returns the output as a function of some leaves, in float32 or wider; other arrays are arguments, too.

    Args:
      output: the function of `leaves` and `args`.
      leaves: of the params.
      args: the data.
      chosen: indices of the leaves.
      count: number of images, 0 if they are not computed one by one.
    """
    given, tree = jax.tree.flatten((list(leaves), args))
    place = {id(leaves[i]): n for n, i in enumerate(chosen)}
    arrays = {
        i: x
        for i, x in enumerate(given)
        if isinstance(x, jax.Array | np.ndarray) and id(x) not in place
    }

    def run(kernels: list[jax.Array], others: list[Any]) -> jax.Array:
        merged = dict(enumerate(given)) | dict(zip(arrays, others, strict=True))
        for i, leaf in enumerate(given):
            if id(leaf) in place:
                merged[i] = kernels[place[id(leaf)]].astype(leaf.dtype)
        new_leaves, new_args = jax.tree.unflatten(tree, merged.values())
        return output(new_leaves, new_args)

    images = tuple(
        n for n, (i, x) in enumerate(arrays.items())
        if count and i >= len(leaves) and x.shape[:1] == (count,)
    )  # fmt: skip
    return Problem(run, [wide(leaves[i]) for i in chosen], list(arrays.values()), images)


def solved(
    problem: Problem, bands: Bands, y: jax.Array, strength: float, iterations: int
) -> tuple[list[jax.Array], jax.Array]:
    """Returns the kernels that minimize the objective, and the output with them; see `repair`."""
    run = jax.jit(problem.run)
    scale = 1 / (y.size * (EPSILON**2 * jnp.var(y) + bands.pattern + 1e-30))
    gradients = _sampled(problem, bands, y, scale, strength)
    ridges = [RIDGE * float(np.mean(np.square(g))) for g in gradients]
    inverses = [_inverse(g, ridge) for g, ridge in zip(gradients, ridges, strict=True)]
    del gradients

    def objective(kernels: list[jax.Array], new: jax.Array) -> float:
        changes = zip(ridges, kernels, problem.chosen, strict=True)
        far = sum(ridge * jnp.sum((k - old) ** 2) for ridge, k, old in changes)
        kept = scale * jnp.sum((new - y) ** 2)
        return float(far + kept + strength * bands.penalty(new, bands.weight, bands.tones[0]))

    kernels, new = problem.chosen, y
    least = objective(kernels, new)
    for _ in range(ROUNDS):
        here = kernels, new - y, new
        step, gain = _step(problem, bands, here, scale, strength, ridges, inverses, iterations)
        start, best = least, None
        # Behind a layer that does not make the output, a network is linear in small steps only.
        for size in (1.0, 0.5, 0.25, 0.125):
            moved = [k + size * d for k, d in zip(kernels, step, strict=True)]
            there = run(moved, problem.others)
            value = objective(moved, there)
            if value < least:
                least, best = value, (moved, there)
            elif best:
                break
            if start - value > 0.9 * gain * size * (2 - size):
                break  # as the linear network has it
        if best is None:
            break
        kernels, new = best
        if start - least > 0.99 * gain or start - least < 0.01 * start:
            break
    return kernels, new


def _step(
    problem: Problem, bands: Bands, here: tuple[list[jax.Array], jax.Array, jax.Array],
    scale: jax.Array, strength: float, ridges: list[float], inverses: list[Any], iterations: int,
) -> tuple[list[jax.Array], float]:  # fmt: skip
    """Returns the step of one round, and by how much it lowers the objective of the linear network.

    It starts `here`: at kernels, the change of their output so far, and the output.
    """
    kernels, moved, y = here
    run = jax.jit(problem.run)
    _, forward = jax.linearize(lambda kernels: run(kernels, problem.others), kernels)
    # What the linear function holds, features above all, are arguments: XLA folds constants for minutes.
    program = jax.make_jaxpr(forward)(kernels)
    kinds = [jax.ShapeDtypeStruct(k.shape, k.dtype) for k in kernels]
    tones = bands.tones[0]

    def push(consts: Any, kernels: Any) -> jax.Array:
        opened: Any = getattr(program, "jaxpr", program)
        (dy,) = core.jaxpr_as_fun(core.ClosedJaxpr(opened, consts))(*kernels)
        out: jax.Array = dy
        return out

    def pull(consts: Any, dy: jax.Array) -> Any:
        return jax.linear_transpose(partial(push, consts), kinds)(dy)[0]

    def inside(dy: jax.Array, base: Any, weight: Any) -> jax.Array:
        return scale * dy + strength / 2 * jax.grad(bands.penalty)(base, weight, tones)

    @jax.jit
    def hessian(consts: Any, kernels: Any, weight: Any) -> Any:
        dy = push(consts, kernels)
        back = pull(consts, inside(dy, dy, weight))
        return [b + r * k for b, r, k in zip(back, ridges, kernels, strict=True)]

    @jax.jit
    def slope(consts: Any, moved: jax.Array, y: jax.Array, weight: Any) -> Any:
        return pull(consts, inside(moved, y, weight))

    back = slope(program.consts, moved, y, bands.weight)
    target = [r * (o - k) - b for r, o, k, b in zip(ridges, problem.chosen, kernels, back, strict=True)]  # fmt: skip
    apply = lambda r: [f(x) for f, x in zip(inverses, r, strict=True)]
    matrix = lambda k: hessian(program.consts, k, bands.weight)
    step = _conjugate_gradients(matrix, target, apply, iterations)
    return step, float(_dot(step, target))


def _sampled(
    problem: Problem, bands: Bands, y: jax.Array, scale: jax.Array, strength: float
) -> list[np.ndarray]:
    """Returns gradients for random outputs, `(samples, *kernel.shape)`: their mean square is the matrix.

    Each is that of one image if `problem` has images.
    """
    parts = len(y) if problem.images else 1
    channels = prod(n for axis, n in enumerate(y.shape) if axis and axis not in bands.axes)
    unknowns = max(k.size for k in problem.chosen) / channels
    batches = ceil(SAMPLES * min(unknowns, LARGEST) / channels / parts / BATCH)
    shape = (1, *y.shape[1:]) if problem.images else y.shape

    def probe(weight: Any, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)

        def spectrum(y: jax.Array) -> tuple[jax.Array, jax.Array]:
            z = bands.spectrum(y, bands.tones[0])
            return z.real, z.imag

        parts, back = jax.vjp(spectrum, jnp.zeros(shape, y.dtype))
        noise = [jax.random.normal(k, z.shape, z.dtype) for k, z in zip(keys, parts, strict=False)]
        root = jnp.sqrt(strength * weight)
        root = root.reshape((1,) * (noise[0].ndim - root.ndim) + root.shape)
        (banded,) = back(tuple(z * root for z in noise))
        white: jax.Array = jax.random.normal(keys[2], shape, y.dtype)
        return banded + jnp.sqrt(scale) * white

    @jax.jit
    def pulled(kernels: Any, others: Any, weight: Any, key: jax.Array) -> Any:
        _, pull = jax.vjp(lambda kernels: problem.run(kernels, others), kernels)
        keys = jax.random.split(key, batches * BATCH)
        return jax.lax.map(lambda key: pull(probe(weight, key))[0], keys, batch_size=BATCH)

    found = []
    for i in range(parts):
        weight = bands.weight[i : i + 1] if problem.images else bands.weight
        rows = pulled(problem.chosen, problem.image(i), weight, jax.random.key(i))
        found.append([np.asarray(g) * parts**0.5 for g in rows])
    return [np.concatenate(rows) for rows in zip(*found, strict=True)]


def _inverse(gradients: np.ndarray, ridge: float) -> Callable[[jax.Array], jax.Array]:
    """Returns the inverse of the gradients' mean square plus a ridge, one matrix for all entries of some axes."""
    shape = gradients.shape[1:]
    inside = [axis for axis, n in enumerate(shape) if n > 1]
    free = _independent(gradients, inside)
    inside = [axis for axis in inside if axis != free]
    while prod(shape[axis] for axis in inside) > LARGEST and len(inside) > 1:
        inside.remove(min(inside, key=lambda axis: shape[axis]))
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    size = prod(shape[axis] for axis in inside)
    if size > LARGEST:
        return lambda r: r
    order = [*outside, *inside]
    rows = gradients.transpose(0, *(axis + 1 for axis in order)).reshape(-1, size)
    matrix = (rows.T @ rows).astype(np.float64) / len(rows)
    # Fewer gradients than unknowns see too few directions.
    few = min(1.0, size / len(rows)) ** 4 * np.trace(matrix) / size * 1e-2
    matrix[np.diag_indices(size)] += ridge + few + 1e-30
    inverse = jnp.asarray(scipy.linalg.inv(matrix, assume_a="pos"), gradients.dtype)

    def apply(r: jax.Array) -> jax.Array:
        moved = r.transpose(order)
        flat = jnp.matmul(moved.reshape(-1, size), inverse, precision="highest")
        return flat.reshape(moved.shape).transpose(np.argsort(order))

    return apply


def _independent(gradients: np.ndarray, axes: Sequence[int]) -> int | None:
    """Returns the axis along which gradients correlate least, such as that of output features; None if all do."""
    random = np.random.default_rng(0)
    some = gradients[:: max(1, len(gradients) // 512)]

    def correlation(axis: int) -> float:
        rows = np.moveaxis(some, axis + 1, 1).reshape(len(some), some.shape[axis + 1], -1)
        seen = rows @ random.normal(size=(rows.shape[-1], 4)).astype(rows.dtype)
        pairs = np.einsum("nip,njp->pij", seen, seen)
        power = np.einsum("pii->pi", pairs) + 1e-30
        squares = pairs**2 / (power[:, :, None] * power[:, None])
        n = squares.shape[1]
        return float((squares.sum() / len(squares) - n) / (n * (n - 1)))

    found = {axis: correlation(axis) for axis in axes}
    best = min(found, key=lambda axis: found[axis], default=None)
    return best if best is not None and len(found) > 1 and found[best] < 0.05 else None


def _conjugate_gradients(
    hessian: Callable[[Any], Any], target: Any, precondition: Callable[[Any], Any], iterations: int
) -> Any:
    """Returns an approximate solution x of `hessian(x) = target`, from x = 0."""
    along = lambda t, a, b: [u + t * v for u, v in zip(a, b, strict=True)]
    x, r = [jnp.zeros_like(u) for u in target], target
    p = z = precondition(r)
    rz = start = _dot(r, z)
    for _ in range(iterations):
        if not rz > TOLERANCE**2 * start:
            break
        hp = hessian(p)
        curvature = _dot(p, hp)
        if not curvature > 0:
            break
        x, r = along(rz / curvature, x, p), along(-rz / curvature, r, hp)
        z = precondition(r)
        rz, old = _dot(r, z), rz
        p = along(rz / old, z, p)
    return x


def _dot(a: Any, b: Any) -> jax.Array:
    return sum((jnp.vdot(u, v) for u, v in zip(a, b, strict=True)), jnp.zeros(()))


def wide(x: Any) -> jax.Array:
    """Returns an array in float32 or wider."""
    return jnp.asarray(x, jax.dtypes.canonicalize_dtype(np.promote_types(x.dtype, np.float32)))
