"""What a lowering is: one function per face, for one problem."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh

from tconvjax._geometry import Geometry


class Options(NamedTuple):
    """What a lowering needs to know beside arrays and geometry."""

    precision: lax.PrecisionLike
    preferred_element_type: jnp.dtype
    platform: str | None  # 'cpu', or None for any accelerator
    spread: bool = (
        False  # the compiler may split arrays over devices: no axis is cut that need not be
    )
    mesh: AbstractMesh | None = None  # of these devices, where a convolution must not see them

    @property
    def product(self) -> dict[str, Any]:
        """Keywords of XLA's convolutions and products."""
        return {
            "precision": self.precision,
            "preferred_element_type": self.preferred_element_type,
        }


Face = Callable[[jax.Array, jax.Array, Geometry, Options], jax.Array]


class Lowering(NamedTuple):
    """The three faces of one problem.

    x  (batch, *big, in)        w  (*kernel_size, in // groups, out)        y  (batch, *small, out)
    """

    gather: Face  # (x, w) -> y
    paint: Face  # (y, w) -> x
    correlate: Face  # (x, y) -> w


def flip_and_swap(w: jax.Array, rank: int, groups: int) -> jax.Array:
    """Turns a convolution's kernel into its transpose's and back: axes reversed, channels swapped per group.

    `(*kernel_size, in // groups, out)` becomes `(*kernel_size, out // groups, in)`.
    """
    w = jnp.flip(w, tuple(range(rank)))
    *k, i, o = w.shape
    split = w.reshape(*k, i, groups, o // groups)
    return jnp.swapaxes(split, -3, -1).reshape(*k, o // groups, groups * i)
