"""Repair of whole trained networks: weights change as little as the data allow, so that no pattern reaches the output.

Weights alone mislead: a trained network cancels most of what they predict, for the features that occur. So the network
runs, and its output y is what counts. With J, the derivative of y by the kernels of layers that enlarge, the change d
of these kernels minimizes

    |J d|² / (pixels · ε²)  +  strength · Σ_b |B_b (y + J d)|² / (number of b · P_b)

where B_b is the Hann-windowed spectrum of a patch within one bin of a stride harmonic, P_b the power around it, and
ε a hundredth of the output's standard deviation: Gauss-Newton, exact where the layer makes the output. Conjugate
gradients solve it; they go first along what the data determine, and stop early.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import lcm, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from tconvjax._program.program import Value, traced, walk
from tconvjax._program.responses import reader_of

PATCH = 128  # pixels of a patch along an axis: a pattern is coherent over many
RADIUS, SURROUND = 1, 4  # bins of a band and of the ring around it, as in `metrics.band_contrast`
EPSILON = 0.01  # change that costs as much as a contrast of 1, in standard deviations of the output
LEAST = 0.5  # dB that a layer must take away to be changed
RIDGE = 1e-4  # of the preconditioner, relative to the mean power
ARRAYS = jax.Array | np.ndarray | jax.ShapeDtypeStruct
PROBES = 8  # random outputs that estimate the covariance of what a kernel reads


class RepairedLayer(NamedTuple):
    """Effect of one layer's repair.

    Attributes:
      alone: contrast of the output in dB if this layer alone is repaired.
      change: norm of the change of its kernel over the norm of the kernel.
    """

    alone: float
    change: float


class Repaired(NamedTuple):
    """A repaired network.

    Attributes:
      params: as given, but for the kernels of `layers`; all other leaves are the same objects.
      layers: the repaired layers, by the path of their weight, such as "params['up']['kernel']".
      skipped: reason why a layer that enlarges is unchanged, by the same paths.
      before: contrast of the output: power near the stride harmonics over its surroundings in dB, of the strongest
        orientation, mean over images. White noise has 0 to 2.
      after: the same with the repaired params.
      change: norm of the change of the output over the norm of the output.
    """

    params: Any
    layers: dict[str, RepairedLayer]
    skipped: dict[str, str]
    before: float
    after: float
    change: float


class Site(NamedTuple):
    """A layer that enlarges: the leaf with its weights, and the period of its pattern by axes of the output."""

    path: str
    leaf: int
    period: dict[int, int]


class Problem(NamedTuple):
    """A network as a function of some of its leaves: `run(chosen, others)`."""

    run: Callable[[list[jax.Array], list[Any]], jax.Array]
    chosen: list[jax.Array]
    others: list[Any]


def repair(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    strength: float = 10.0,
    iterations: int = 20,
    layers: Sequence[str] | None = None,
) -> Repaired:
    """Repairs a trained network: patterns that its upsampling leaves in the output fade, and the output stays.

    Finds the transposed convolutions and the convolutions before pixel shuffles whose kernel comes from `params`, tries
    which of them take the pattern away on the given data, and changes these kernels, together, as little as possible.
    No ground truth is needed. Grouped and dilated kernels stay so, and tied weights stay tied, as leaves of `params`
    change.

    Args:
      fn: `fn(params, *args)` of any framework; its largest array of floats is the output, an image or a signal.
      params: a pytree with the weights; leaves that are not arrays are left alone.
      *args: data as varied as those to come, at least 16 images; what they do not show is not repaired.
      strength: weight of the contrast against the change of the output, >= 0; 0 changes nothing.
      iterations: steps of conjugate gradients; more remove more of the pattern of these very data.
      layers: paths of the weights to try, such as "params['up']['kernel']"; by default of all layers that enlarge.

    Returns:
      The repaired params, what happened to each layer, and contrast of the output before and after, on these data.

    Raises:
      ValueError: for a negative strength, no iterations, an unknown path, an output without images, or a period that
        is too long for its size.
      TypeError: if `fn` is not callable. Errors of `fn` pass through.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (16, 16, 16, 4)) + 1
      >>> params = {"up": jnp.ones((4, 4, 4, 1)).at[::2, ::2].mul(1.1)}  # one phase is too strong
      >>> up = lambda params, x: jax.lax.conv_transpose(x, params["up"], (2, 2), "SAME")
      >>> found = repair(up, params, x)
      >>> list(found.layers), found.before - found.after > 3
      (["params['up']"], True)

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658, for the condition on constants, which this replaces by data.
    """
    if not callable(fn):
        raise TypeError(f"repair: fn must be callable; got an object of type {type(fn).__name__}.")
    if not strength >= 0 or iterations < 1:
        raise ValueError(
            f"repair: strength must be >= 0 and iterations >= 1; got strength={strength}, iterations={iterations}."
        )
    leaves, tree = jax.tree.flatten(params)
    sites, skipped = _sites(fn, params, args)
    unknown = {*(layers or ())} - {site.path for site in sites}
    if unknown:
        raise ValueError(
            f"repair: layers must be among {[site.path for site in sites]}; got {sorted(unknown)}."
        )
    skipped |= {
        site.path: "not named" for site in sites if layers is not None and site.path not in layers
    }
    sites = [site for site in sites if site.path not in skipped]
    if not sites:
        return Repaired(params, {}, skipped, 0.0, 0.0, 0.0)

    period: dict[int, int] = {}
    for site in sites:
        for axis, p in site.period.items():
            period[axis] = lcm(period.get(axis, 1), p)

    def output(leaves: Sequence[Any], args: Any) -> jax.Array:
        return _image(fn(jax.tree.unflatten(tree, leaves), *args))

    def problem(chosen: Sequence[Site]) -> Problem:
        return _problem(output, leaves, args, [site.leaf for site in chosen])

    nothing = problem([])
    y = jax.jit(nothing.run)([], nothing.others)
    bands = Bands(y, period)
    before = bands.contrast(y)
    if strength == 0:
        skipped |= dict.fromkeys((site.path for site in sites), "strength 0")
        return Repaired(params, {}, skipped, before, before, 0.0)

    def solved(chosen: Sequence[Site]) -> tuple[float, list[jax.Array], jax.Array]:
        kernels, new = _solved(problem(chosen), bands, y, strength, iterations)
        return bands.contrast(new), kernels, new

    alone = {site.leaf: solved([site]) for site in sites}
    good = [site for site in sites if before - alone[site.leaf][0] >= LEAST]
    for site in sites:
        if site not in good:
            taken = before - alone[site.leaf][0]
            skipped[site.path] = f"its repair takes {taken:.1f} of {before:.1f} dB away"
    if not good:
        return Repaired(params, {}, skipped, before, before, 0.0)
    best = min(good, key=lambda site: alone[site.leaf][0])
    chosen, (after, kernels, new) = [best], alone[best.leaf]
    if len(good) > 1:
        together = solved(good)
        if together[0] < after - LEAST:
            chosen, (after, kernels, new) = good, together
        else:
            why = f"{best.path} alone takes as much away"
            skipped |= dict.fromkeys((site.path for site in good if site != best), why)
    found: dict[str, RepairedLayer] = {}
    repaired = {id(leaf): leaf for leaf in leaves}
    for site, kernel in zip(chosen, kernels, strict=True):
        old = leaves[site.leaf]
        repaired[id(old)] = jnp.asarray(kernel, old.dtype)
        found[site.path] = RepairedLayer(alone[site.leaf][0], _relative(_wide(old), kernel))
    new_params = jax.tree.unflatten(tree, [repaired[id(leaf)] for leaf in leaves])
    return Repaired(new_params, found, skipped, before, after, _relative(y, new))


# The layers.


def _sites(fn: Callable[..., Any], params: Any, args: Any) -> tuple[list[Site], dict[str, str]]:
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
    image = next(v for v in place.inputs if v.shape == _largest([v.shape for v in place.inputs]))
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


def _largest(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return max(shapes, key=lambda shape: (len(shape) > 1, prod(shape)), default=())


def _image(outputs: Any) -> jax.Array:
    """Returns the largest array of an output, in float32 or wider."""
    leaves = [x for x in jax.tree.leaves(outputs) if isinstance(x, jax.Array)]
    arrays = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    shape = _largest([x.shape for x in arrays])
    if len(shape) < 2:
        raise ValueError(f"repair: fn must return an image; got shapes {[x.shape for x in arrays]}.")  # fmt: skip
    return _wide(next(x for x in arrays if x.shape == shape))


# The pattern.


class Bands:
    """Power of images near the harmonics of a pattern, in units of its surroundings in the first images.

    Attributes:
      axes: axes of the images with a period.
      tones: for each the windowed waves `(patches, s, bins, pixels)`: of the band, and of the band with its ring.
      weight: 1 / (number of values · power of the surroundings), for each image, harmonic, patch and channel.
    """

    def __init__(self, y: jax.Array, period: dict[int, int]) -> None:
        self.axes = tuple(sorted(period))
        s = [period[axis] for axis in self.axes]
        surround = min([SURROUND, *(y.shape[a] // (2 * p) for a, p in zip(self.axes, s, strict=True))])  # fmt: skip
        if surround <= RADIUS:
            raise ValueError(
                f"repair: the output must have at least {2 * (RADIUS + 1)} periods along each axis; got shape "
                f"{y.shape}, periods {s} along axes {self.axes}. Give larger images."
            )
        self.tones = [
            [_tones(y.shape[a], p, half) for a, p in zip(self.axes, s, strict=True)]
            for half in (RADIUS, surround)
        ]
        around = self._powers(y)[1]
        # What rounding leaves counts as no power.
        floor = 1e-3 * jnp.median(around) + jnp.finfo(y.dtype).eps ** 2 * jnp.mean(y**2) + 1e-30
        self.weight = 1 / ((around + floor) * around.size * prod(2 * RADIUS + 1 for _ in s))

    def spectrum(self, y: jax.Array, tones: Sequence[Any]) -> jax.Array:
        """Returns the windowed spectra near harmonics: `(*bins, *rest, *patches, harmonics without 0)`."""
        z = y.astype(np.promote_types(y.dtype, np.complex64))
        for done, (axis, waves) in enumerate(reversed(list(zip(self.axes, tones, strict=True)))):
            waves = jnp.asarray(waves, z.dtype)
            z = jnp.tensordot(waves, z, (3, axis + 3 * done), precision="highest")
        n = len(self.axes)
        patches, harmonics, bins = (range(i, 3 * n, 3) for i in range(3))
        z = z.transpose(*bins, *range(3 * n, z.ndim), *patches, *harmonics)
        return z.reshape(*z.shape[: z.ndim - n], -1)[..., 1:]

    def penalty(self, y: jax.Array, weight: jax.Array, tones: Any) -> jax.Array:
        """Returns the mean contrast of images, a quadratic form; 1 is as much power as around the harmonics."""
        z = self.spectrum(y, tones)
        same = weight.reshape((1,) * (z.ndim - weight.ndim) + weight.shape)
        return jnp.sum((z.real**2 + z.imag**2) * same)

    def contrast(self, y: jax.Array) -> float:
        """Returns the contrast in dB: mean over images of the strongest harmonic."""
        band, around = self._powers(y)
        inside = tuple(range(int(0 not in self.axes), band.ndim - 1))  # axis 0 may count images
        floor = jnp.finfo(y.dtype).eps ** 2 * jnp.mean(y**2) + 1e-30
        ratio = (band.mean(inside) + floor) / (around.mean(inside) + floor)
        return float(jnp.mean(10 * jnp.log10(ratio.max(-1))))

    def _powers(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the mean power of the band and the median of the ring around it."""
        z = jax.jit(self.spectrum)(y, self.tones[1])
        n = len(self.axes)
        power = jnp.abs(z) ** 2
        grid = np.indices(power.shape[:n]) - np.array(power.shape[:n]).reshape(-1, *[1] * n) // 2
        ring = np.abs(grid).max(0) > RADIUS
        power = power.reshape(-1, *power.shape[n:])
        return power[~ring.ravel()].mean(0), jnp.median(power[ring.ravel()], 0)


def _tones(n: int, s: int, half: int) -> np.ndarray:
    """Returns Hann-windowed waves `(patches, s, 2·half + 1, n)` at bins around the harmonics of a patch."""
    patch = min(n, max(PATCH, 8 * s)) // s * s
    window = np.hanning(patch + 1)[:-1]
    starts = range(0, n - patch + 1, max(1, patch // 2))
    bins = np.arange(s)[:, None] * (patch // s) + np.arange(-half, half + 1)
    waves = np.zeros((len(starts), *bins.shape, n), np.complex64)
    for i, start in enumerate(starts):
        phase = np.outer(bins.ravel(), np.arange(patch)) / patch
        wave = window * np.exp(-2j * np.pi * phase)
        waves[i, ..., start : start + patch] = wave.reshape(*bins.shape, patch)
    return waves


# The change.


def _problem(
    output: Callable[..., jax.Array], leaves: Sequence[Any], args: Any, chosen: Sequence[int]
) -> Problem:
    """Returns the output as a function of some leaves, in float32 or wider; other arrays are arguments, too."""
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

    return Problem(run, [_wide(leaves[i]) for i in chosen], list(arrays.values()))


def _solved(
    problem: Problem, bands: Bands, y: jax.Array, strength: float, iterations: int
) -> tuple[list[jax.Array], jax.Array]:
    """Returns the kernels that minimize the objective, and the output with them."""
    run = jax.jit(problem.run)
    _, forward = jax.linearize(lambda kernels: run(kernels, problem.others), problem.chosen)
    # What the linear function holds, features above all, are arguments: XLA folds constants for minutes.
    program = jax.make_jaxpr(forward)(problem.chosen)
    consts, kinds = program.consts, [jax.ShapeDtypeStruct(k.shape, k.dtype) for k in problem.chosen]
    scale = 1 / (y.size * EPSILON**2 * (jnp.var(y) + 1e-30))
    tones = bands.tones[0]

    def push(consts: Any, kernels: Any) -> jax.Array:
        opened: Any = getattr(program, "jaxpr", program)
        (dy,) = core.jaxpr_as_fun(core.ClosedJaxpr(opened, consts))(*kernels)
        out: jax.Array = dy
        return out

    def pull(consts: Any, dy: jax.Array) -> Any:
        return jax.linear_transpose(partial(push, consts), kinds)(dy)[0]

    @jax.jit
    def change(consts: Any, y: jax.Array, weight: Any, scale: Any, key: jax.Array) -> Any:
        def inside(dy: jax.Array, base: Any) -> jax.Array:
            slope = jax.grad(bands.penalty)(base + dy, weight, tones)
            return scale * dy + strength / 2 * slope

        def hessian(kernels: Any) -> Any:
            return pull(consts, inside(push(consts, kernels), 0))

        def probe(key: jax.Array) -> Any:
            return pull(consts, jax.random.normal(key, y.shape, y.dtype) * jnp.sqrt(scale))

        gradients = jax.lax.map(probe, jax.random.split(key, PROBES))
        precondition = [_preconditioner(g) for g in gradients]
        target = jax.tree.map(jnp.negative, pull(consts, inside(jnp.zeros_like(y), y)))
        apply = lambda r: [p(x) for p, x in zip(precondition, r, strict=True)]
        return _conjugate_gradients(hessian, target, apply, iterations)

    step = change(consts, y, bands.weight, scale, jax.random.key(0))

    def objective(new: jax.Array) -> float:
        kept = scale * jnp.sum((new - y) ** 2)
        return float(kept + strength * bands.penalty(new, bands.weight, tones))

    # Behind a layer that does not make the output, a network is linear in small steps only.
    start = objective(y)
    for size in (1.0, 0.5, 0.25):
        kernels = [k + size * d for k, d in zip(problem.chosen, step, strict=True)]
        new = run(kernels, problem.others)
        if objective(new) < start:
            return kernels, new
    return problem.chosen, y


def _preconditioner(gradients: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Returns the inverse of the gradients' covariance along the longest axis, which holds the channels."""
    axis = max(range(1, gradients.ndim), key=lambda a: gradients.shape[a], default=0)
    if axis == 0 or gradients.shape[axis] > 2048:
        return lambda r: r
    rows = jnp.moveaxis(gradients, axis, -1).reshape(-1, gradients.shape[axis])
    covariance = jnp.matmul(rows.T, rows, precision="highest") / len(rows)
    mean = jnp.trace(covariance) / len(covariance) + 1e-30
    ridge = RIDGE * mean * jnp.eye(len(covariance), dtype=rows.dtype)
    factor = jax.scipy.linalg.cho_factor(covariance + ridge)

    def apply(r: jax.Array) -> jax.Array:
        moved = jnp.moveaxis(r, axis - 1, 0)
        flat = moved.reshape(len(covariance), -1)
        return jnp.moveaxis(jax.scipy.linalg.cho_solve(factor, flat).reshape(moved.shape), 0, axis - 1)  # fmt: skip

    return apply


def _conjugate_gradients(
    hessian: Callable[[Any], Any], target: Any, precondition: Callable[[Any], Any], iterations: int
) -> Any:
    """Returns an approximate solution x of `hessian(x) = target`, from x = 0."""
    dot = lambda a, b: sum(jnp.vdot(u, v) for u, v in zip(a, b, strict=True))
    along = lambda t, a, b: [u + t * v for u, v in zip(a, b, strict=True)]

    def step(_: int, state: Any) -> Any:
        x, r, p, rz = state
        hp = hessian(p)
        curvature = dot(p, hp)
        size = jnp.where(curvature > 0, rz / jnp.where(curvature > 0, curvature, 1), 0)
        x, r = along(size, x, p), along(-size, r, hp)
        z = precondition(r)
        new = dot(r, z)
        return x, r, along(jnp.where(rz > 0, new / jnp.where(rz > 0, rz, 1), 0), z, p), new

    z = precondition(target)
    start = [jnp.zeros_like(u) for u in target], target, z, dot(target, z)
    return jax.lax.fori_loop(0, iterations, step, start)[0]


def _relative(old: jax.Array, new: jax.Array) -> float:
    norm = float(jnp.linalg.norm(old))
    return float(jnp.linalg.norm(new - old)) / norm if norm else 0.0


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x, jax.dtypes.canonicalize_dtype(np.promote_types(x.dtype, np.float32)))
