"""The type of a lowering: one function per face, for one problem."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from tconvjax._arguments import Call

Face = Callable[[jax.Array, jax.Array, Call], jax.Array]


class Lowering(NamedTuple):
    """The three faces of one problem.

    x  (batch, *big, in)        w  (*kernel_size, in // groups, out)        y  (batch, *small, out)
    """

    gather: Face  # (x, w) -> y
    paint: Face  # (y, w) -> x
    correlate: Face  # (x, y) -> w
