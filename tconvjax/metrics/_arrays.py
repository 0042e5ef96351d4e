"""Steps of all metrics: checks of the images, and divisions that rounding cannot spoil."""

from collections.abc import Sequence
from math import prod

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tconvjax import _geometry as geo
from tconvjax._arguments import as_array
from tconvjax._geometry import Ints


def real_images(who: str, images: ArrayLike, rank: int = 2, name: str = "images") -> jax.Array:
    """Returns images `(*batch, *spatial, channels)` in float32 or wider; `name` is the argument's, for errors."""
    x = as_array(who, name, images)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(
            f"{who}: {name} must be real; got dtype {x.dtype}. Pass real parts, imaginary parts or moduli."
        )
    if x.ndim < rank + 1 or prod(x.shape[-rank - 1 :]) == 0:
        raise ValueError(
            f"{who}: {name} must have shape (*batch, *spatial, channels) with {rank} spatial axes and at least one "
            f"channel; got {x.shape}. A gray image needs a last axis of size 1."
        )
    return at_least_float32(x)


def whole_periods(
    who: str, images: ArrayLike, period: Ints, periods: int = 1
) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns images cropped at their ends to multiples of the period, and the period per axis."""
    rank = len(period) if isinstance(period, Sequence) else 2
    s = geo.per_axis(who, "period", period, rank, minimum=2)
    x = real_images(who, images, rank)
    spatial = x.shape[-rank - 1 : -1]
    if any(n < periods * p for n, p in zip(spatial, s, strict=True)):
        raise ValueError(
            f"{who}: images must hold at least {('one period', 'two periods')[periods - 1]} along every axis; got "
            f"{spatial} pixels for period {s}. Use larger images or a shorter period."
        )
    crop = tuple(slice(n // p * p) for n, p in zip(spatial, s, strict=True))
    return x[(..., *crop, slice(None))], s


def one_set(who: str, x: jax.Array) -> jax.Array:
    """Returns images with all batch axes in one, which must not be empty."""
    if prod(x.shape[:-3]) == 0:
        raise ValueError(f"{who}: a set must hold at least one image; got shape {x.shape}.")
    return x.reshape(-1, *x.shape[-3:])


def at_least_float32(x: jax.Array) -> jax.Array:
    """Returns `x`, integers, booleans and half precision in float32."""
    wide = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits >= 32
    return x if wide else x.astype(jnp.float32)


def rounding(x: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
    """Returns the power that rounding alone may leave in a pixel: white noise, a few units in the last place."""
    info = jnp.finfo(x.dtype)
    return (4 * info.eps) ** 2 * jnp.mean(x**2, axis=axes) + info.tiny


def ratio(part: jax.Array, whole: jax.Array, floor: jax.Array, otherwise: float = 0) -> jax.Array:
    """Returns `part / whole`; where `whole` is not above `floor`, `otherwise`, with gradient 0."""
    flat = whole <= floor
    return jnp.where(flat, otherwise, part / jnp.where(flat, 1, whole))


def root(x: jax.Array) -> jax.Array:
    """Returns the square root, with gradient 0 at 0."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def centered(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns `x` without its mean, subtracted twice, as the rounding of the first time would count as a pattern."""
    for _ in range(2):
        x = x - x.mean(axes, keepdims=True)
    return x


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the matrix product in full precision on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
