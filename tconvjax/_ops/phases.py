"""The taps of a kernel by the phase of the output that they reach.

A kernel is *painted*: w[a] lands on pixel `s·i + a`, so the taps w[p], w[p + s], .. of the painted kernel
`(*kernel_size, in, out)` make phase p of the full output, before any crop.
"""

from collections.abc import Sequence
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from tconvjax import _geometry as geo
from tconvjax._geometry import Ints


def painted(kernel: jax.Array, *, transpose_kernel: bool) -> jax.Array:
    """Turns a kernel of `conv_transpose` into the painted one, and back."""
    if transpose_kernel:
        return jnp.swapaxes(kernel, -1, -2)
    return jnp.flip(kernel, tuple(range(kernel.ndim - 2)))


def per_spatial_axis(who: str, name: str, value: Ints, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns `value` as one positive integer per spatial axis of a kernel of `shape`."""
    if len(shape) < 3:
        raise ValueError(
            f"{who}: kernel must have shape (*kernel_size, in, out) with at least one spatial axis; got "
            f"kernel shape {tuple(shape)}."
        )
    return geo.per_axis(who, name, value, len(shape) - 2)


def tap_counts(kernel_size: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """Returns n_p, the taps of every phase, in the shape of the strides."""
    pairs = zip(kernel_size, strides, strict=True)
    return outer([np.maximum(0, -((np.arange(s) - k) // s)) for k, s in pairs])


def of_taps(kernel_size: Sequence[int], strides: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Returns the index that repeats values per phase, `(*strides, ..)`, on all their taps, `(*kernel_size, ..)`."""
    return np.ix_(*(np.arange(k) % s for k, s in zip(kernel_size, strides, strict=True)))


@partial(jax.jit, static_argnames="strides", inline=True)
def gains(kernel: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """Returns `G_p = Σ_j w[p + s·j]`, shape `(*strides, in, out)`."""
    for axis, stride in enumerate(strides):
        rows = -(-kernel.shape[axis] // stride)
        pads = [(0, 0)] * kernel.ndim
        pads[axis] = (0, rows * stride - kernel.shape[axis])
        padded = jnp.pad(kernel, pads)
        split = padded.reshape(*padded.shape[:axis], rows, stride, *padded.shape[axis + 1 :])
        kernel = split.sum(axis)
    return kernel


def balance(who: str, kernel: jax.Array, strides: Ints) -> jax.Array:
    """Returns the nearest kernel whose phases all have the gain `Ḡ = Σ(G_p/n_p) / Σ(1/n_p)`.

    The change `(Ḡ − G_p)/n_p` on the taps of phase p is an orthogonal projection. The layout does not matter: painting
    reorders the phases and swaps channels, and nothing here depends on either.
    """
    s = per_spatial_axis(who, "strides", strides, kernel.shape)
    k = kernel.shape[:-2]
    if any(a < b for a, b in zip(k, s, strict=True)):
        raise ValueError(
            f"{who}: kernel_size must be at least strides along every axis, as a phase without taps is 0 whatever the "
            f"weights; got kernel_size={k}, strides={s}. Use a larger kernel or smaller strides."
        )
    return _balanced(kernel, s)


@partial(jax.jit, static_argnames="strides", inline=True)
def _balanced(kernel: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    k = kernel.shape[:-2]
    counts = jnp.asarray(tap_counts(k, strides), kernel.dtype)[..., None, None]
    g, axes = gains(kernel, strides), tuple(range(len(strides)))
    mean = jnp.sum(g / counts, axes, keepdims=True) / jnp.sum(1 / counts, axes, keepdims=True)
    return kernel + ((mean - g) / counts)[of_taps(k, strides)]


def outer(per_axis: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the products of one count per axis."""
    return np.array(prod(np.ix_(*per_axis)))
