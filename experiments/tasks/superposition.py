"""From point sources to their field: a transposed convolution whose kernel is a Green's function.

Sources sit on every fourth pixel of a periodic square; their field solves `−Δu + κ² u = q` on all pixels, five-point
stencil. By superposition it is the sum of one Green's function per source, so a transposed convolution of stride 4 with
that kernel, cut off at a radius, where the function has fallen by `exp(−κ · radius)`. An enlargement that smears the
sources before it convolves solves another problem, and a layer that is off by a pixel has moved the field.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training import Arrays, Measures, Scalars
from tconvjax import conv, conv_transpose, resize

STRIDE = 4
DECAY = 0.5  # κ, per pixel
METRICS = ("relative_error", "relative_residual")


@dataclass(frozen=True)
class Options:
    """What a variant may change."""

    radius: int = field(default=32, metadata={"minimum": 1, "maximum": 48})  # of the kernel, pixels
    sources: Literal["points", "nearest", "linear"] = "points"  # or smeared by `resize`
    size: int = field(default=96, metadata={"minimum": 48})  # pixels of the field along each axis
    off_by: int = field(default=0, metadata={"minimum": 0})  # pixels along both axes

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        wrong = self.size % STRIDE
        return [f"size: must be a multiple of {STRIDE}; got {self.size}"] if wrong else []


@cache
def symbol(n: int) -> np.ndarray:
    """Returns the eigenvalues of `−Δ + κ²` on n x n periodic pixels."""
    wave = 2 - 2 * np.cos(2 * np.pi * np.fft.fftfreq(n))
    return np.add.outer(wave, wave) + DECAY**2


@cache
def greens_function(radius: int) -> np.ndarray:
    """Returns the field of one source, as far as `radius` pixels, `(2 radius + 1, 2 radius + 1)`, on a large square."""
    whole = np.fft.fftshift(np.fft.ifft2(1 / symbol(256)).real)
    return whole[128 - radius : 129 + radius, 128 - radius : 129 + radius]


def solve(sources: jax.Array) -> jax.Array:
    """Returns the field `(n, n)` of sources on all pixels, by its eigenvalues."""
    eigenvalues = jnp.asarray(symbol(len(sources)), sources.dtype)
    return jnp.fft.ifft2(jnp.fft.fft2(sources) / eigenvalues).real


def measure(options: Options, key: jax.Array) -> tuple[Scalars, Arrays]:
    """Returns the metrics of one variant, and what pictures need."""
    radius, size = options.radius, options.size
    kernel = jnp.asarray(greens_function(radius))[..., None, None]

    def superposed(charges: jax.Array) -> jax.Array:
        if options.sources == "points":
            # Source m is at pixel 4 m: the forward convolution reads around it.
            u = conv_transpose(
                charges,
                kernel,
                strides=STRIDE,
                padding=((radius, radius - STRIDE + 1),) * 2,
                padding_mode="circular",
                transpose_kernel=True,
                output_shape=(size, size),
            )
        else:
            smeared = resize(charges, (STRIDE, STRIDE), method=options.sources) / STRIDE**2
            u = conv(smeared, kernel, padding=radius, padding_mode="circular")
        return jnp.roll(u, (options.off_by,) * 2, (0, 1))[..., 0]

    coarse = size // STRIDE
    charges = jax.random.normal(key, (coarse, coarse, 1))
    points = jnp.zeros((size, size)).at[::STRIDE, ::STRIDE].set(charges[..., 0])
    truth, u = solve(points), superposed(charges)
    around = sum(jnp.roll(u, shift, axis) for axis in (0, 1) for shift in (1, -1))
    residual = (4 + DECAY**2) * u - around - points
    norm = jnp.linalg.norm
    return {
        "relative_error": norm(u - truth) / norm(truth),
        "relative_residual": norm(residual) / norm(points),
    }, {"panel": u[:48, :48]}


DOTS = {
    "relative_error": "relative error of the field",
    "relative_residual": "relative residual of the equation",
}
KIND = Measures(
    options=Options,
    metrics=METRICS,
    curves=DOTS,
    measure=measure,
    panels="The field of the same charges",
)
