"""Repair of whole trained networks: weights change as little as the data allow, so that no pattern reaches the output.

Weights alone mislead: a trained network cancels most of what they predict, for the features that occur. So the network
runs, and its output y is what counts. With J, the derivative of y by the kernels of layers that enlarge, the change d
of these kernels minimizes

    |J d|² / (pixels · ε²)  +  strength · Σ_b |B_b (y + J d)|² / (number of b · P_b)  +  ridge · |d|²

where B_b is the Hann-windowed spectrum of a patch within one bin of a stride harmonic, P_b the power around it, and
ε² the power of the pattern in y plus that of a hundredth of its standard deviation: exact where the layer makes the
output. Elsewhere rounds of Gauss-Newton follow, each with a search along its step. The ridge is 1e-5 of the mean
curvature: what the data do not show stays.
"""

from collections.abc import Callable, Sequence
from math import lcm
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tconvjax._repair.bands import Bands
from tconvjax._repair.sites import Site, largest, sites_of
from tconvjax._repair.solving import Problem, problem_of, solved, wide

LEAST = 0.5  # dB that a layer must take away to be changed


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


def repair(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    strength: float = 0.3,
    iterations: int = 8,
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
      strength: weight of the contrast against the change of the output, >= 0; 0 changes nothing. A change costs 1 if it
        has as much power as the pattern and a hundredth of the output's standard deviation have together.
      iterations: steps of conjugate gradients in a round, at most; fewer are an approximation.
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
    sites, skipped = sites_of(fn, params, args)
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
        return problem_of(output, leaves, args, [site.leaf for site in chosen], count)

    count = 0
    nothing = problem([])
    y = jax.jit(nothing.run)([], nothing.others)
    count = 0 if 0 in period else _images(problem_of(output, leaves, args, [], len(y)), y)
    bands = Bands(y, period)
    before = bands.contrast(y)
    if strength == 0:
        skipped |= dict.fromkeys((site.path for site in sites), "strength 0")
        return Repaired(params, {}, skipped, before, before, 0.0)

    def tried(chosen: Sequence[Site]) -> tuple[float, list[jax.Array], jax.Array]:
        kernels, new = solved(problem(chosen), bands, y, strength, iterations)
        return bands.contrast(new), kernels, new

    alone = {site.leaf: tried([site]) for site in sites}
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
        together = tried(good)
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
        found[site.path] = RepairedLayer(alone[site.leaf][0], _relative(wide(old), kernel))
    new_params = jax.tree.unflatten(tree, [repaired[id(leaf)] for leaf in leaves])
    return Repaired(new_params, found, skipped, before, after, _relative(y, new))


def _image(outputs: Any) -> jax.Array:
    """Returns the largest array of an output, in float32 or wider."""
    leaves = [x for x in jax.tree.leaves(outputs) if isinstance(x, jax.Array)]
    arrays = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    shape = largest([x.shape for x in arrays])
    if len(shape) < 2:
        raise ValueError(f"repair: fn must return an image; got shapes {[x.shape for x in arrays]}.")  # fmt: skip
    return wide(next(x for x in arrays if x.shape == shape))


def _images(problem: Problem, y: jax.Array) -> int:
    """Returns the number of images if each is computed by itself, otherwise 0."""
    if len(y) < 2 or not problem.images:
        return 0
    run = jax.jit(problem.run)
    for i in (0, len(y) - 1):
        try:
            one = run([], problem.image(i))
        except Exception:  # a number of images that is fixed
            return 0
        if one.shape != (1, *y.shape[1:]) or not jnp.allclose(one[0], y[i], 1e-3, 1e-3 * jnp.std(y)):  # fmt: skip
            return 0
    return len(y)


def _relative(old: jax.Array, new: jax.Array) -> float:
    norm = float(jnp.linalg.norm(old))
    return float(jnp.linalg.norm(new - old)) / norm if norm else 0.0
