"""Procedural shapes with exact masks, drawn on the device; `draw` is pure, for jit, vmap and scan."""

import functools

import jax
import jax.numpy as jnp

from experiments.data.source import Arrays, arrays

KINDS = ("circle", "triangle", "square", "ring", "cross")


def shapes(count: int = 4096, size: int = 32, seed: int = 0) -> Arrays:
    """Returns images of one shape each in front of a gradient, labelled by kind, with masks.

    Args:
      count: images.
      size: pixels along each axis.
      seed: of the key.
    """
    for name, value, minimum in (("count", count, 1), ("size", size, 8), ("seed", seed, 0)):
        if value < minimum:
            raise ValueError(f"{name}: must be at least {minimum}, got {value}")
    keys = jax.random.split(jax.random.key(seed), count)
    return arrays(**jax.jit(jax.vmap(functools.partial(draw, size=size)))(keys))


def draw(key: jax.Array, size: int) -> dict[str, jax.Array]:
    """Returns a record: an image `(size, size, 3)`, its mask `(size, size)` bool and its label, a place in `KINDS`.

    A pixel is in the mask when its center lies in the shape; in the image, edges are blended over one pixel, and the
    mask is where the shape has the larger part.

    Args:
      key: of kind, place, size, angle and colors.
      size: pixels along each axis, static.
    """
    keys = jax.random.split(key, 7)
    kind = jax.random.randint(keys[0], (), 0, len(KINDS))
    radius = size * jax.random.uniform(keys[1], (), minval=0.15, maxval=0.35)
    center = jax.random.uniform(keys[2], (2,), minval=radius + 1, maxval=size - radius - 1)
    angle = jax.random.uniform(keys[3], (), maxval=2 * jnp.pi)
    inside = -distance(kind, center, radius, angle, size)
    part = jnp.clip(0.5 + inside, 0, 1)[..., None]  # of a pixel, where the edge is straight
    # A background darker than the shape, or the other way round.
    sign = jax.random.rademacher(keys[4], (), jnp.float32)
    first, second = jax.random.uniform(keys[5], (2, 3), minval=-1, maxval=0)
    color, direction = jnp.split(jax.random.uniform(keys[6], (5,), minval=0.2), [3])
    at = (jnp.arange(size) + 0.5) / size
    ramp = (direction[0] * at[:, None] + direction[1] * at) / direction.sum()
    ground = first + (second - first) * ramp[..., None]
    image = sign * (ground + part * (color - ground))
    return {"image": image, "mask": inside > 0, "label": kind}


def distance(
    kind: jax.Array | int,
    center: jax.Array,
    radius: jax.Array | float,
    angle: jax.Array | float,
    size: int,
) -> jax.Array:
    """Returns the distance of every pixel's center from the edge of a shape, in pixels, negative inside.

    Beyond a corner it is the distance from the longer of the edges' lines.

    Args:
      kind: a place in `KINDS`.
      center: row and column, in pixels from the upper left corner of the image.
      radius: of the circle around the shape.
      angle: in radians.
      size: pixels along each axis.
    """
    at = jnp.arange(size) + 0.5
    y, x = at[:, None] - center[0], at[None, :] - center[1]
    u, v = x * jnp.cos(angle) + y * jnp.sin(angle), y * jnp.cos(angle) - x * jnp.sin(angle)
    r = jnp.hypot(u, v)

    def polygon(n: int) -> jax.Array:
        turns = 2 * jnp.pi * jnp.arange(n)[:, None, None] / n
        return (u * jnp.cos(turns) + v * jnp.sin(turns)).max(0) - radius * jnp.cos(jnp.pi / n)

    def bar(u: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.abs(u) - 0.95 * radius, jnp.abs(v) - 0.3 * radius)

    ring = jnp.abs(r - 0.8 * radius) - 0.2 * radius
    cross = jnp.minimum(bar(u, v), bar(v, u))
    return jnp.stack([r - radius, polygon(3), polygon(4), ring, cross])[kind]
