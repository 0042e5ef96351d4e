"""Definitions in float64 NumPy, in loops that can be checked by eye. Nothing of ours is imported here."""

from itertools import product
from math import ceil

import numpy as np


def conv_pads(n, k, s, d, padding):
    """Padding of the forward convolution along one axis."""
    extent = d * (k - 1) + 1
    if padding == "VALID":
        return 0, 0
    if padding in {"SAME", "SAME_LOWER"}:
        total = max((ceil(n / s) - 1) * s + extent - n, 0)
        half = total // 2
        return (half, total - half) if padding == "SAME" else (total - half, half)
    return padding


def sources(n, low, high, mode):
    """Which of n pixels every pixel of the padded axis shows; -1 is none."""
    how = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}.get(mode, "constant")
    fill = {"constant_values": -1} if how == "constant" else {}
    padded = np.pad(np.arange(n), (max(low, 0), max(high, 0)), how, **fill)
    return padded[max(-low, 0) : len(padded) - max(-high, 0)]


def conv(x, kernel, strides, pads, dilation, groups, mode="zeros"):
    """x (batch, *spatial, in), kernel (*k, in // groups, out), pads ((low, high), ..) -> (batch, *new, out)."""
    rank = kernel.ndim - 2
    k, per_group, out = kernel.shape[:rank], kernel.shape[-2], kernel.shape[-1]
    for axis, (low, high) in enumerate(pads, start=1):
        at = sources(x.shape[axis], low, high, mode)
        column = [-1 if i == axis else 1 for i in range(x.ndim)]
        x = np.take(x, np.maximum(at, 0), axis) * (at >= 0).reshape(column)
    new = [
        (n - d * (t - 1) - 1) // s + 1
        for n, t, s, d in zip(x.shape[1:-1], k, strides, dilation, strict=True)
    ]
    y = np.zeros((x.shape[0], *new, out), np.result_type(x, kernel))
    for c in range(out):
        group = c // (out // groups)
        channels = slice(group * per_group, (group + 1) * per_group)
        for o in product(*map(range, new)):
            for a in product(*map(range, k)):
                at = tuple(
                    s * i + d * t for s, i, d, t in zip(strides, o, dilation, a, strict=True)
                )
                y[(slice(None), *o, c)] += (
                    x[(slice(None), *at, channels)] @ kernel[(*a, slice(None), c)]
                )
    return y


def paint(y, kernel, strides, pads, dilation, groups, big, mode="zeros"):
    """Transpose of `conv`: y (batch, *small, out) and the forward kernel give (batch, *big, in)."""
    rank = kernel.ndim - 2
    k, per_group, out = kernel.shape[:rank], kernel.shape[-2], kernel.shape[-1]
    seen = [sources(n, low, high, mode) for n, (low, high) in zip(big, pads, strict=True)]
    x = np.zeros((y.shape[0], *big, per_group * groups), np.result_type(y, kernel))
    for c in range(out):
        group = c // (out // groups)
        channels = slice(group * per_group, (group + 1) * per_group)
        for o in product(*map(range, y.shape[1:-1])):
            for a in product(*map(range, k)):
                at = tuple(
                    shows[s * i + d * t]
                    for shows, s, i, d, t in zip(seen, strides, o, dilation, a, strict=True)
                )
                if min(at) >= 0:
                    x[(slice(None), *at, channels)] += (
                        y[(slice(None), *o, c)][:, None] * kernel[(*a, slice(None), c)]
                    )
    return x


def forward_kernel(kernel, groups):
    """The kernel of lax.conv_transpose, (*k, in // g, out), as the forward one, (*k, out // g, in), by entries."""
    *k, per_group, out = kernel.shape
    result = np.zeros((*k, out // groups, per_group * groups), kernel.dtype)
    for a in product(*map(range, k)):
        mirrored = tuple(n - 1 - t for n, t in zip(k, a, strict=True))
        for group, i, o in product(range(groups), range(per_group), range(out // groups)):
            result[(*a, o, group * per_group + i)] = kernel[
                (*mirrored, i, group * (out // groups) + o)
            ]
    return result
