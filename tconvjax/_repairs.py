"""Repair of trained layers, shared by NNX and Linen.

Two repairs: the smallest change of the weights that keeps a constant constant, and the replacement by a layer that
cannot make a checkerboard, with the same output size, alignment and receptive field.
"""

from collections.abc import Mapping
from math import hypot, inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tconvjax import _geometry as geo
from tconvjax import analysis

# Options that a resize-convolution takes over from the transposed convolution that it replaces.
KEPT = (
    "feature_group_count", "use_bias", "dtype", "param_dtype", "precision", "promote_dtype", "preferred_element_type",
)  # fmt: skip


class Balanced(NamedTuple):
    """Effect of balancing on one kernel, or on a stack of kernels.

    Attributes:
      before: harmonic share of the trained kernel; the largest of a stack.
      after: harmonic share of the balanced kernel, 0 up to rounding.
      change: norm of the change over the norm of the kernel.
    """

    before: float
    after: float
    change: float


class Report(NamedTuple):
    """Effect of balancing on a model.

    Attributes:
      layers: effect on each balanced kernel, by the path of its layer.
      skipped: reason why a transposed convolution is unchanged, by the path of its layer.
      output_change: norm of the change of the model's output over the norm of the output, for the given data; None
        without data.
    """

    layers: dict[str, Balanced]
    skipped: dict[str, str]
    output_change: float | None


class Candidate(NamedTuple):
    """A transposed convolution of a model, which balancing may change.

    Attributes:
      module: the layer, with its options.
      kernel_shape: shape of one layer's kernel.
      kernel: the stored kernel, under `vmap` or `scan` a stack along leading axes; None if there is none.
    """

    module: Any
    kernel_shape: tuple[int, ...]
    kernel: Any


def repaired(
    candidates: Mapping[tuple[Any, ...], Candidate],
) -> tuple[dict[tuple[Any, ...], jax.Array], Report]:
    """Returns the balanced kernels by the paths of their layers, and a report without the change of the output."""
    kernels: dict[tuple[Any, ...], jax.Array] = {}
    report = Report({}, {}, None)
    for path, candidate in candidates.items():
        name, obstacle = "/".join(map(str, path)), _obstacle(candidate)
        if obstacle:
            report.skipped[name] = obstacle
        else:
            kernels[path], report.layers[name] = _balanced(candidate)
    return kernels, report


def relative_change(before: Any, after: Any) -> float:
    """Returns the norm of the change of a pytree over its norm, over numeric leaves, in float32 or wider."""
    old, new = ([_wide(leaf) for leaf in jax.tree.leaves(t) if _is_number(leaf)] for t in (before, after))  # fmt: skip
    change = hypot(*(float(jnp.linalg.norm(b - a)) for a, b in zip(old, new, strict=True)))
    norm = hypot(*(float(jnp.linalg.norm(a)) for a in old))
    return change / norm if norm else inf if change else 0.0


def is_abstract(tree: Any) -> bool:
    """Returns whether a `jax.ShapeDtypeStruct`, which has no numbers, stands for an array."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _obstacle(candidate: Candidate) -> str | None:
    """Returns why a layer cannot be balanced, None if it can."""
    module, shape, kernel = candidate
    rank = len(shape) - 2
    s = geo.per_axis("balance", "strides", module.strides or 1, rank)
    d = geo.per_axis("balance", "kernel_dilation", module.kernel_dilation or 1, rank)
    if max(s) == 1:
        return "stride 1"
    if max(d) > 1:
        return "kernel_dilation above 1"
    if any(k < t for k, t in zip(shape, s, strict=False)):
        return "kernel_size below strides: some pixels have no taps"
    if module.mask is not None:
        return "a mask"
    if kernel is None:
        return "a kernel that is calculated at every call"
    if is_abstract(kernel):
        return "a kernel without numbers, only a shape"
    if kernel.shape[-len(shape) :] != shape:
        return f"kernels of {shape} that are not stacked along leading axes: {kernel.shape}"
    return None


def _balanced(candidate: Candidate) -> tuple[jax.Array, Balanced]:
    """Returns a balanced kernel, calculated in float32 or wider, and the effect."""
    module, shape, kernel = candidate
    s, old = module.strides, _wide(kernel)
    options = {"transpose_kernel": module.transpose_kernel}
    balance: Any = lambda w: analysis.balance(w, s, **options)
    share: Any = lambda w: analysis.harmonic_share(w, s, **options)
    for _ in range(old.ndim - len(shape)):
        balance, share = jax.vmap(balance), jax.vmap(share)
    narrow = balance(old).astype(kernel.dtype)
    new = _wide(narrow)
    before, after = (float(jnp.max(share(w))) for w in (old, new))
    return narrow, Balanced(before, after, relative_change(old, new))


def _is_number(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.number)


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x, jax.dtypes.canonicalize_dtype(np.promote_types(x.dtype, np.float32)))


def resize_conv_options(
    layer: Any, kernel_size: tuple[int, ...], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the options of the resize-convolution that replaces a transposed convolution of NNX or Linen.

    For k taps at stride s it has `k − s + 1` taps on the enlarged image, which see the same input pixels.

    Args:
      layer: a `ConvTranspose`.
      kernel_size: its kernel size.
      options: those of its function.
    """
    who = "artifact_free"
    if layer.mask is not None:
        raise ValueError(f"{who}: the layer must have no mask. Build a ResizeConv.")
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
    return {"kernel_size": size, "scale": s, "padding": pads} | {n: getattr(layer, n) for n in KEPT}


def fitted(layer: Any, options: Mapping[str, Any], kernel: jax.Array) -> jax.Array:
    """Returns the kernel of the 'nearest' resize-convolution that is closest to a transposed convolution.

    Repeating pixels and convolving paints the kernel convolved with ones(s); this is the least-squares inverse of that
    convolution, along one axis after the other.

    Args:
      layer: a `ConvTranspose`.
      options: those of its function.
      kernel: with which it computes.
    """
    groups, strides = layer.feature_group_count, options["strides"]
    if layer.transpose_kernel:  # (*k, out // groups, in), painted as it is
        rank = kernel.ndim - 2
        kernel = jnp.flip(kernel, tuple(range(rank)))
        *k, o, i = kernel.shape
        split = kernel.reshape(*k, o, groups, i // groups)
        kernel = jnp.moveaxis(split, -1, -3).swapaxes(-1, -2).reshape(*k, i // groups, groups * o)
    for axis, s in enumerate(strides):
        taps = kernel.shape[axis]
        t, a = np.ogrid[:taps, : taps - s + 1]
        inverse = jnp.asarray(np.linalg.pinv(((t >= a) & (t < a + s)).astype(float)), kernel.dtype)
        kernel = jnp.moveaxis(
            jnp.tensordot(inverse, kernel, (1, axis), precision="highest"), 0, axis
        )
    return kernel
