"""Geometric multigrid for Poisson's equation, whose grid transfers are the two faces of one convolution.

The problem is −Δu = 0 on a periodic square, five-point stencil, h = 1 on the finest grid. A step is one V-cycle from a
random start; what is left of the residual tends to the convergence factor. Restriction is `conv`, prolongation
`conv_transpose`: a layer that leaves checkerboards, or is off by a pixel, is a cycle that does not converge
(Trottenberg, Oosterlee & Schüller 2001; Hemker 1990 for the orders).

Coarse operators are the same stencil on the coarser grid. Smoothers are damped Jacobi or red-black Gauss-Seidel, once
before and once after. The residual is scaled to 1 after each cycle, so that 80 of them reach no smallest number.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training import Arrays, Scalars, Task, Trains, traced
from tconvjax import conv, conv_transpose

Transfer = Literal["vertex", "vertex_off_by_one", "cell", "nearest"]
Smoother = Literal["jacobi", "red_black"]
SIZES = (32, 64, 128, 256, 512, 1024)  # pixels along each axis of a finest grid
COARSEST = 4
LAST = 40  # cycles that a convergence factor is the geometric mean of
# Weights of the fine pixels 2m − 1 to 2m + 2 around coarse pixel m, along one axis, of sum 2.
TRANSFERS = {
    "vertex": (0.5, 1.0, 0.5, 0.0),
    "vertex_off_by_one": (0.0, 0.5, 1.0, 0.5),
    "cell": (0.25, 0.75, 0.75, 0.25),
    "nearest": (0.0, 1.0, 1.0, 0.0),
}
# Damping of red and of black pixels in the first half of a sweep, and in the second.
SMOOTHERS = {"jacobi": ((0.8, 0.8), (0.0, 0.0)), "red_black": ((1.0, 0.0), (0.0, 1.0))}
METRICS = tuple(f"convergence_factor_{n}" for n in SIZES)


@dataclass(frozen=True)
class Options:
    """What a variant may change; in a task, numbers of the tables above."""

    prolongation: Transfer = field(default="vertex", metadata=traced(TRANSFERS))
    restriction: Transfer = field(default="vertex", metadata=traced(TRANSFERS))
    smoother: Smoother = field(default="red_black", metadata=traced(SMOOTHERS))
    grids: tuple[int, ...] = (32, 64, 128)  # sizes of the finest grid, each a problem of its own

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        known = ", ".join(map(str, SIZES))
        wrong = (
            not self.grids or len(set(self.grids)) < len(self.grids) or set(self.grids) - set(SIZES)
        )
        return (
            [f"grids: expected some of {known}, none twice; got {list(self.grids)}"]
            if wrong
            else []
        )


def lacking(options: Options) -> frozenset[str]:
    """Returns the metrics of grids that a variant has not."""
    return frozenset(f"convergence_factor_{n}" for n in set(SIZES) - set(options.grids))


class State(NamedTuple):
    """By size of the finest grid: the error, whose residual is 1, and logarithms of what the last cycles left of it."""

    error: dict[int, jax.Array]
    log_factors: dict[int, jax.Array]  # (LAST,), a ring; 0 where no cycle has been yet
    cycle: jax.Array


def laplacian(u: jax.Array, h: float) -> jax.Array:
    """Returns −Δu on a periodic grid `(n, n)` of spacing h, five points."""
    around = sum(jnp.roll(u, shift, axis) for axis in (0, 1) for shift in (1, -1))
    return (4 * u - around) / h**2


def restrict(u: jax.Array, weights: jax.Array) -> jax.Array:
    """Averages `(n, n)` to `(n/2, n/2)`: a quarter of the adjoint of `prolong`."""
    return conv(u[..., None], _kernel(weights) / 4, **GEOMETRY)[..., 0]


def prolong(u: jax.Array, weights: jax.Array) -> jax.Array:
    """Interpolates `(n, n)` to `(2n, 2n)`."""
    return conv_transpose(u[..., None], _kernel(weights), transpose_kernel=True, **GEOMETRY)[..., 0]


GEOMETRY: dict[str, Any] = {"strides": 2, "padding": 1, "padding_mode": "circular"}


def _kernel(weights: jax.Array) -> jax.Array:
    return jnp.outer(weights, weights)[..., None, None]


def smooth(u: jax.Array, f: jax.Array, h: float, damping: jax.Array) -> jax.Array:
    """One sweep of the smoother on −Δu = f, in halves."""
    red = jnp.asarray(np.indices(u.shape).sum(0) % 2 == 0)
    for of_red, of_black in damping:
        step = jnp.where(red, of_red, of_black)
        u = u + step * h**2 / 4 * (f - laplacian(u, h))
    return u


def cycle(
    u: jax.Array, f: jax.Array, h: float, options: Any, coarsest: int = COARSEST
) -> jax.Array:
    """One V(1,1)-cycle; the coarsest grid is solved by its eigenvalues."""
    n = u.shape[0]
    if n <= coarsest:
        wave = 2 - 2 * np.cos(2 * np.pi * np.arange(n) / n)
        eigenvalues = np.add.outer(wave, wave) / h**2
        inverse = np.where(eigenvalues > 0, 1 / np.maximum(eigenvalues, 1e-9), 0)
        spectrum = jnp.fft.fft2(f)
        return jnp.fft.ifft2(spectrum * jnp.asarray(inverse, spectrum.dtype)).real
    u = smooth(u, f, h, options.smoother)
    coarse = restrict(f - laplacian(u, h), options.restriction)
    correction = cycle(jnp.zeros_like(coarse), coarse, 2 * h, options, coarsest)
    u = u + prolong(correction, options.prolongation)
    return smooth(u, f, h, options.smoother)


def make_task(options: Options, *_: Any) -> Task:
    """Returns the cycles of one variant on all grids."""
    grids = options.grids

    def normalized(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = u - u.mean()  # which the equation leaves open
        norm = jnp.linalg.norm(laplacian(u, 1.0))
        return u / norm, norm

    def init(key: jax.Array) -> State:
        keys = dict(zip(grids, jax.random.split(key, len(grids)), strict=True))
        error = {n: normalized(jax.random.normal(k, (n, n)))[0] for n, k in keys.items()}
        return State(error, {n: jnp.zeros(LAST) for n in grids}, jnp.zeros((), int))

    def step(state: State, key: jax.Array) -> tuple[State, Scalars]:  # noqa: ARG001
        error, rings, seen = {}, {}, {}
        for n in grids:
            u = state.error[n]
            error[n], factor = normalized(cycle(u, jnp.zeros_like(u), 1.0, options))
            rings[n] = state.log_factors[n].at[state.cycle % LAST].set(jnp.log(factor))
            seen[f"factor_{n}"] = factor
        return State(error, rings, state.cycle + 1), seen

    def evaluate(state: State, key: jax.Array) -> tuple[Scalars, Arrays]:  # noqa: ARG001
        count = jnp.clip(state.cycle, 1, LAST).astype(float)
        factors = {n: jnp.exp(ring.sum() / count) for n, ring in state.log_factors.items()}
        return {f"convergence_factor_{n}": factor for n, factor in factors.items()}, {}

    return Task(init, step, evaluate)


CURVES = {f"convergence_factor_{n}": f"convergence factor on {n} x {n} pixels" for n in SIZES}
KIND = Trains(
    options=Options,
    shared=frozenset({"grids"}),
    metrics=METRICS,
    curves=CURVES,
    make_task=make_task,
    lacking=lacking,
)
