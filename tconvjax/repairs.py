"""Repair of trained layers: what NNX and Linen share.

Two cures: the smallest change of the weights that makes a constant stay constant, and another layer in the place, which
cannot make a checkerboard, with the same output size, alignment and receptive field.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tconvjax import analysis
from tconvjax import geometry as geo
from tconvjax.geometry import Ints, Pairs


class Balanced(NamedTuple):
    """What balancing did to one kernel.

    Attributes:
      before: harmonic share of the trained kernel.
      after: that of the balanced one, 0 up to rounding.
      change: norm of the change over the norm of the kernel.
    """

    before: float
    after: float
    change: float


class Report(NamedTuple):
    """What balancing did to a model.

    Attributes:
      layers: each balanced kernel, by the path of its layer.
      skipped: why a transposed convolution was left as it is, by the path of its layer.
      output_change: norm of the change of the model's output over the norm of the output, on the data that was given;
        None without data.
    """

    layers: dict[str, Balanced]
    skipped: dict[str, str]
    output_change: float | None


def obstacle(kernel: Sequence[int], strides: Ints, dilation: Ints, mask: Any) -> str | None:
    """Returns why a kernel of this shape cannot be balanced, None if it can."""
    rank = len(kernel) - 2
    s = geo.per_axis("balance", "strides", strides, rank)
    d = geo.per_axis("balance", "kernel_dilation", dilation, rank)
    if max(s) == 1:
        return "stride 1"
    if max(d) > 1:
        return "kernel_dilation above 1"
    if any(k < t for k, t in zip(kernel, s, strict=False)):
        return "kernel_size below strides: some pixels have no taps"
    return None if mask is None else "a mask"


def balanced(
    kernel: jax.Array, strides: Ints, *, transpose_kernel: bool
) -> tuple[jax.Array, Balanced]:
    """Returns a balanced kernel, calculated in float32 or wider, and what that changed."""
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    new = analysis.balance(wide, strides, transpose_kernel=transpose_kernel).astype(kernel.dtype)
    share = lambda w: float(analysis.harmonic_share(w, strides, transpose_kernel=transpose_kernel))
    change = float(jnp.linalg.norm(new.astype(wide.dtype) - wide) / jnp.linalg.norm(wide))
    return new, Balanced(share(wide), share(new.astype(wide.dtype)), change)


def output_change(before: Any, after: Any) -> float:
    """Returns the norm of a difference of pytrees over the norm of the first."""
    old, new = (jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (before, after))  # fmt: skip
    norm = float(jnp.linalg.norm(old))
    return float(jnp.linalg.norm(new - old)) / norm if norm else inf


def resize_conv_arguments(
    who: str,
    kernel_size: tuple[int, ...],
    options: Mapping[str, Any],
) -> tuple[tuple[int, ...], tuple[int, ...], Pairs]:
    """Returns kernel size, scale and padding of the resize-convolution in the place of a transposed convolution.

    Of k taps at stride s it takes `k − s + 1` on the enlarged image, which see the same input pixels.
    """
    s: tuple[int, ...] = options["strides"]
    if max(options["kernel_dilation"]) > 1 or any(
        k < t for k, t in zip(kernel_size, s, strict=True)
    ):
        raise ValueError(
            f"{who}: the layer must have kernel_dilation=1 and a kernel at least as large as its strides; got "
            f"kernel_size={kernel_size}, strides={s}, kernel_dilation={options['kernel_dilation']}. Build a ResizeConv."
        )
    if options["padding_mode"] != "zeros":
        raise ValueError(
            f"{who}: the layer must have padding_mode='zeros'; got {options['padding_mode']!r}. Build a ResizeConv."
        )
    geometry = geo.conv_transpose_geometry(
        who, (1 << 20,) * len(s), kernel_size,
        **{n: options[n] for n in ("strides", "padding", "output_padding", "padding_convention")},
    )  # fmt: skip
    size = tuple(k - t + 1 for k, t in zip(kernel_size, s, strict=True))
    lows = tuple(k - 1 - p for k, p in zip(size, geometry.offset, strict=True))
    pads = tuple(
        (low, new - t * n + k - 1 - low)
        for low, new, t, n, k in zip(lows, geometry.big, s, geometry.small, size, strict=True)
    )
    return size, s, pads


def fitted(
    kernel: jax.Array, strides: tuple[int, ...], *, transpose_kernel: bool, groups: int
) -> jax.Array:
    """Returns the kernel of a 'nearest' resize-convolution that is nearest to a transposed convolution.

    Repeating pixels and convolving paints the kernel convolved with ones(s); this is its least-squares inverse, along
    one axis after the other.
    """
    if transpose_kernel:  # (*k, out // groups, in), painted as it is
        rank = kernel.ndim - 2
        kernel = jnp.flip(kernel, tuple(range(rank)))
        *k, o, i = kernel.shape
        split = kernel.reshape(*k, o, groups, i // groups)
        kernel = jnp.moveaxis(split, -1, -3).swapaxes(-1, -2).reshape(*k, i // groups, groups * o)
    for axis, s in enumerate(strides):
        taps = kernel.shape[axis]
        t, a = np.ogrid[:taps, : taps - s + 1]
        inverse = jnp.asarray(np.linalg.pinv(((t >= a) & (t < a + s)).astype(float)), kernel.dtype)
        kernel = jnp.moveaxis(jnp.tensordot(inverse, kernel, (1, axis)), 0, axis)
    return kernel
