"""Causal convolutions of signals that come in chunks: state in, state out.

A frame is one pixel at the coarse rate: the s input pixels of an output pixel of `causal_conv`, the input pixel of s
output pixels of `causal_conv_transpose`. Every frame is one step of a scan over windows of one shape, so its sums have
one order however the signal is cut, and chunks give bitwise what the whole gives.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from tconvjax import _geometry as geo
from tconvjax._arguments import (
    Implementation,
    as_array,
    operands,
    resolve_gather,
    resolve_paint,
    spatial_shape,
)
from tconvjax._geometry import Ints
from tconvjax._ops.convolution import gather, paint


def causal_conv(
    x: ArrayLike,
    kernel: ArrayLike,
    strides: Ints = 1,
    *,
    state: ArrayLike | None = None,
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: Implementation = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Convolves the next chunk of a signal: `(*batch, n, in)` to `(*batch, n / s, out)`, and the state behind it.

    All chunks together give, up to rounding, `conv` with padding `(d(k − 1), 0)`: an output pixel depends on no later
    input.

    Args:
      x: floating or complex, the next n >= s input pixels, a multiple of s; any number of leading batch axes.
      kernel: `(k, in // groups, out)`, as in `conv`.
      strides: s >= 1, input pixels per output pixel.
      state: of the chunk before, its last d(k − 1) pixels `(*batch, d(k − 1), in)`; None at the beginning, for zeros.
      kernel_dilation: d >= 1, input pixels between neighboring taps.
      feature_group_count: as in `conv`, like all arguments below.
      precision: see there.
      preferred_element_type: see there.
      implementation: see there.

    Returns:
      The next output pixels, and the state for the next chunk. Chunks of any lengths give the same bits.

    Raises:
      ValueError: for more than one spatial axis, a length that is no multiple of s, a state of another shape; else as
        `conv`.
      TypeError: as `conv`.

    Example:
      >>> kernel = jnp.ones((3, 1, 1))
      >>> y, state = causal_conv(jnp.array([[1.0], [2.0]]), kernel)
      >>> more, state = causal_conv(jnp.array([[4.0]]), kernel, state=state)
      >>> y[:, 0], more[:, 0]
      (Array([1., 3.], dtype=float32), Array([7.], dtype=float32))

    References:
      van den Oord et al. 2016, arXiv:1609.03499, section 2.1.
    """
    who = "causal_conv"
    x, kernel, s, d, extent = _checked(who, x, kernel, strides, kernel_dilation)

    def frame(window: jax.Array) -> jax.Array:
        bordered = resolve_gather(
            who,
            window,
            kernel,
            strides=s,
            padding="VALID",
            kernel_dilation=d,
            feature_group_count=feature_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            implementation=implementation,
        )
        return gather(window, kernel, bordered)

    return _streamed(who, frame, x, state, s, extent - 1)


def causal_conv_transpose(
    x: ArrayLike,
    kernel: ArrayLike,
    strides: Ints = 1,
    *,
    state: ArrayLike | None = None,
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    transpose_kernel: bool = False,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: Implementation = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Enlarges the next chunk of a signal: `(*batch, n, in)` to `(*batch, s · n, out)`, and the state behind it.

    All chunks together give, up to rounding, `conv_transpose` with padding `(0, d(k − 1) + 1 − s)`: an output pixel
    depends on no later input, and there are s for each input pixel.

    Args:
      x: floating or complex, the next n >= 1 input pixels; any number of leading batch axes.
      kernel: `(k, in // groups, out)`, as in `conv_transpose`.
      strides: s >= 1, output pixels per input pixel.
      state: of the chunk before, its last `h = d(k − 1) // s` pixels `(*batch, h, in)`; None at the beginning, for
        zeros.
      kernel_dilation: d >= 1, output pixels between neighboring taps.
      feature_group_count: as in `conv_transpose`, like all arguments below.
      transpose_kernel: see there.
      precision: see there.
      preferred_element_type: see there.
      implementation: see there.

    Returns:
      The next output pixels, and the state for the next chunk. Chunks of any lengths give the same bits.

    Raises:
      ValueError: for more than one spatial axis, or a state of another shape; else as `conv_transpose`.
      TypeError: as `conv_transpose`.

    Example:
      >>> kernel = jnp.array([1.0, 10, 100])[::-1, None, None]  # painted flipped
      >>> y, state = causal_conv_transpose(jnp.array([[1.0], [2.0]]), kernel, 2)
      >>> more, state = causal_conv_transpose(jnp.array([[4.0]]), kernel, 2, state=state)
      >>> y[:, 0], more[:, 0]
      (Array([  1.,  10., 102.,  20.], dtype=float32), Array([204.,  40.], dtype=float32))

    References:
      Kong, Kim & Bae 2020, arXiv:2010.05646, whose generators enlarge by transposed convolutions.
    """
    who = "causal_conv_transpose"
    x, kernel, s, d, extent = _checked(who, x, kernel, strides, kernel_dilation)
    length = (extent - 1) // s

    def frame(window: jax.Array) -> jax.Array:
        bordered = resolve_paint(
            who,
            window,
            kernel,
            strides=s,
            padding=((s * length, extent - s),),
            kernel_dilation=d,
            feature_group_count=feature_group_count,
            transpose_kernel=transpose_kernel,
            precision=precision,
            preferred_element_type=preferred_element_type,
            implementation=implementation,
        )
        return paint(window, kernel, bordered, transpose_kernel=transpose_kernel)

    return _streamed(who, frame, x, state, 1, length)


def _checked(
    who: str, x: ArrayLike, kernel: ArrayLike, strides: Ints, kernel_dilation: Ints
) -> tuple[jax.Array, jax.Array, int, int, int]:
    """Returns the operands, stride, dilation and extent of the kernel, or refuses more than one axis."""
    x, kernel = operands(who, x, kernel)
    if len(spatial_shape(who, x.shape, kernel)) != 1:
        raise ValueError(
            f"{who}: kernel must have shape (k, in, out), for one spatial axis; got kernel shape {kernel.shape}."
        )
    (s,) = geo.per_axis(who, "strides", strides, 1)
    (d,) = geo.per_axis(who, "kernel_dilation", kernel_dilation, 1)
    (extent,) = geo.kernel_extent(kernel.shape[:1], (d,))
    return x, kernel, s, d, extent


def _streamed(
    who: str,
    frame: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    state: ArrayLike | None,
    pixels: int,
    length: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns the output of one frame of `pixels` after the other, and the last `length` pixels."""
    *batch, n, channels = x.shape
    if n % pixels or n == 0:
        raise ValueError(
            f"{who}: a chunk must have a multiple of strides pixels, at least one; got {n} pixels, strides={pixels}. "
            "Keep the rest for the next chunk."
        )
    shape = (*batch, length, channels)
    last = jnp.zeros(shape, x.dtype) if state is None else as_array(who, "state", state)
    if last.shape != shape or last.dtype != x.dtype:
        raise ValueError(
            f"{who}: state must be what the chunk before returned, {x.dtype}{list(shape)}; got "
            f"{last.dtype}{list(last.shape)}."
        )

    def step(last: jax.Array, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        window = jnp.concatenate([last, pixels], -2)
        return window[..., window.shape[-2] - length :, :], frame(window)

    count = n // pixels
    frames = jnp.moveaxis(x.reshape(*batch, count, pixels, channels), -3, 0)
    if count == 1:  # XLA opens a loop of one step, and its sums may have another order then
        frames = jnp.concatenate([frames, jnp.zeros_like(frames)])
    y = jnp.moveaxis(lax.scan(step, last, frames)[1][:count], 0, -3)
    y = y.reshape(*y.shape[:-3], y.shape[-3] * y.shape[-2], y.shape[-1])
    return y, jnp.concatenate([last, x], -2)[..., n:, :]
