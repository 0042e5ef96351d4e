"""Images from blurred samples, by iterations that need the adjoint of a strided convolution.

The measurement is `y = A x`, a strided convolution; its adjoint is the transposed convolution with the same kernel, the
superposition of what each sample saw. Landweber's iteration `x + τ B (y − A x)` with τ = 1 / ‖A‖² converges only if all
eigenvalues of B A that are not 0 have a positive real part, so for B = Aᵀ, and not for a B that merely looks like it:
flipped, or shifted (Zeng & Gullberg 2000, doi:10.1109/42.870265). Conjugate gradients forgive even less.

The kernel is `[.5, .3, .15, .05]` along every axis, not symmetric, so that a flip shows; borders are periodic. Unknown
are random walks, images along two axes with a spectrum of 1 / frequency^1.5.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fields import power_law
from experiments.training import Arrays, Scalars, Task, Trains
from tconvjax import conv, conv_transpose

BLUR = (0.5, 0.3, 0.15, 0.05)
STRIDE = 2
SHOWN = 128  # pixels along each axis of a picture
METRICS = ("relative_residual", "relative_error", "smallest_eigenvalue")
GEOMETRY: dict[str, Any] = {"strides": STRIDE, "padding": ((0, 3),), "padding_mode": "circular"}


@dataclass(frozen=True)
class Options:
    """What a variant may change."""

    method: Literal["landweber", "conjugate_gradients"] = "landweber"
    adjoint: Literal["matched", "flipped", "shifted_1", "shifted_2"] = "matched"
    rank: int = field(default=1, metadata={"minimum": 1, "maximum": 2})
    size: int = field(default=128, metadata={"minimum": 8})  # pixels along each axis, even

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        return [f"size: must be even; got {self.size}"] if self.size % 2 else []


class State(NamedTuple):
    """An iteration."""

    truth: jax.Array  # (*space, 1)
    x: jax.Array
    residual: jax.Array  # of the equations that are solved
    direction: jax.Array  # of conjugate gradients


def make_task(options: Options, *_: Any) -> Task:
    """Returns the iteration of one variant."""
    rank, space = options.rank, (options.size,) * options.rank
    kernel = jnp.asarray(_outer(BLUR, rank))[..., None, None]
    geometry = GEOMETRY | {"padding": GEOMETRY["padding"] * rank}

    def measure(x: jax.Array) -> jax.Array:
        return conv(x, kernel, **geometry)

    def matched(y: jax.Array, kernel: jax.Array = kernel) -> jax.Array:
        return conv_transpose(y, kernel, transpose_kernel=True, output_shape=space, **geometry)

    def back(y: jax.Array) -> jax.Array:
        if options.adjoint == "flipped":
            return matched(y, jnp.flip(kernel, range(rank)))
        shift = {"matched": 0, "shifted_1": 1, "shifted_2": 2}[options.adjoint]
        return jnp.roll(matched(y), (shift,) * rank, range(rank))

    spike = jnp.zeros((*(n // STRIDE for n in space), 1)).at[(0,) * rank].set(1)
    squared_norm = jnp.abs(_eigenvalues(measure(matched(spike)))).max()
    # The eigenvalues of B A that are not 0 are those of A B, which commutes with shifts.
    smallest = _eigenvalues(measure(back(spike))).real.min() / squared_norm

    def init(key: jax.Array) -> State:
        if rank == 1:
            truth = jnp.cumsum(jax.random.normal(key, (*space, 1)), 0)
        else:
            truth = power_law(key, (1, *space, 1), 1.5)[0]
        first = back(measure(truth))
        return State(truth, jnp.zeros_like(truth), first, first)

    def landweber(state: State) -> State:
        x = state.x + state.residual / squared_norm
        residual = back(measure(state.truth - x))
        return state._replace(x=x, residual=residual)

    def conjugate_gradients(state: State) -> State:
        truth, x, r, p = state
        energy = jnp.sum(r**2)
        seen = jnp.sum(measure(p) ** 2)
        # At rounding there is nothing left to gain, only to lose.
        going = energy > (4 * jnp.finfo(r.dtype).eps) ** 2 * jnp.sum(back(measure(truth)) ** 2)
        length = jnp.where(going, energy / jnp.where(going, seen, 1), 0)
        x = x + length * p
        residual = back(measure(truth - x))
        p = jnp.where(going, residual + jnp.sum(residual**2) / jnp.where(going, energy, 1) * p, p)
        return State(truth, x, residual, p)

    one = {"landweber": landweber, "conjugate_gradients": conjugate_gradients}[options.method]

    def rest(state: State) -> Scalars:
        norm = jnp.linalg.norm
        y = measure(state.truth)
        return {
            "relative_residual": norm(measure(state.x) - y) / norm(y),
            "relative_error": norm(state.x - state.truth) / norm(state.truth),
        }

    def step(state: State, key: jax.Array) -> tuple[State, Scalars]:  # noqa: ARG001
        state = one(state)
        return state, {"residual": rest(state)["relative_residual"]}

    def evaluate(state: State, key: jax.Array) -> tuple[Scalars, Arrays]:  # noqa: ARG001
        pictures = {} if rank == 1 else {"panel": state.x[:SHOWN, :SHOWN, 0]}
        return rest(state) | {"smallest_eigenvalue": smallest}, pictures

    return Task(init, step, evaluate)


def _outer(taps: tuple[float, ...], rank: int) -> np.ndarray:
    return np.asarray(taps) if rank == 1 else np.outer(taps, taps)


def _eigenvalues(response: jax.Array) -> jax.Array:
    """Returns the eigenvalues of an operator that commutes with shifts, from its response to one pixel."""
    return jnp.fft.fftn(response[..., 0])


CURVES = {
    "relative_residual": "relative residual",
    "relative_error": "relative error of the reconstruction",
}
KIND = Trains(
    options=Options,
    metrics=METRICS,
    curves=CURVES,
    make_task=make_task,
    panels="What the iterations on images have come to",
)
