"""What a benchmark measures, as frozen dataclasses; all sizes of a layer are integers known here.

Layers are channels last: images `(batch, *size, features)`, kernels `(*kernel_size, in / groups, out)`. A transposed
convolution enlarges exactly by its strides: the forward convolution pads `p = max(⌈(k − s)/2⌉, 0)` pixels on both sides
and `output_padding = s − k + 2p` keeps the rest, which is what torch accepts for every k and s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from experiments.resolved import Resolved

Kind = Literal["conv_transpose", "resize_conv", "subpixel_conv", "conv"]
Peer = Literal["lax", "flax", "keras", "torch", "torch_channels_last"]
Mode = Literal["layers", "models", "autotune", "all"]
POSITIVE = {"minimum": 1}


@dataclass(frozen=True)
class Layer:
    """One layer and the size of its input."""

    name: str
    model: str  # where such a layer stands
    family: str  # whose geometric mean it enters
    kind: Kind
    batch: int = field(metadata=POSITIVE)
    size: tuple[int, ...] = field(metadata=POSITIVE)  # spatial shape of the input
    in_features: int = field(metadata=POSITIVE)
    out_features: int = field(metadata=POSITIVE)
    kernel_size: int | tuple[int, ...] = field(metadata=POSITIVE)  # an int serves all axes
    strides: int | tuple[int, ...] = field(metadata=POSITIVE)  # or the scale of an enlarging layer
    groups: int = field(default=1, metadata=POSITIVE)
    method: Literal["nearest", "linear"] = "nearest"  # of a resize-convolution

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        errors = []
        if not 1 <= len(self.size) <= 3:
            errors.append(f"size: expected one to three spatial axes, got {len(self.size)}")
        for name in ("kernel_size", "strides"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != len(self.size):
                errors.append(
                    f"{name}: expected one entry per axis of size, {len(self.size)}, got {len(value)}"
                )
        if errors:
            return errors
        for name in ("in_features", "out_features"):
            if getattr(self, name) % self.groups:
                errors.append(
                    f"groups: must divide {name}; got {self.groups} and {getattr(self, name)}"
                )
        if self.kind in ("resize_conv", "subpixel_conv") and any(k % 2 == 0 for k in self.kernel):
            errors.append(f"kernel_size: must be odd for {self.kind}, got {self.kernel_size}")
        elif any(s == 1 and k % 2 == 0 for k, s in zip(self.kernel, self.scale, strict=True)):
            errors.append(
                f"kernel_size: must be odd where the stride is 1, to pad both sides alike; got {self.kernel_size}"
            )
        if self.kind == "conv" and any(n % s for n, s in zip(self.size, self.scale, strict=True)):
            errors.append(
                f"size: strides must divide it for conv; got {self.size} and {self.strides}"
            )
        if self.method != "nearest" and self.kind != "resize_conv":
            errors.append(f"method: goes with resize_conv, not with {self.kind}")
        return errors

    @property
    def rank(self) -> int:
        """Spatial axes."""
        return len(self.size)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size per axis."""
        return _per_axis(self.kernel_size, self.rank)

    @property
    def scale(self) -> tuple[int, ...]:
        """Strides per axis."""
        return _per_axis(self.strides, self.rank)

    @property
    def pads(self) -> tuple[int, ...]:
        """Padding of the forward convolution per axis, on both sides."""
        if self.kind in ("resize_conv", "subpixel_conv"):
            return tuple(k // 2 for k in self.kernel)
        return tuple(max(-((s - k) // 2), 0) for k, s in zip(self.kernel, self.scale, strict=True))

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Pixels per axis that a transposed convolution keeps at the high end."""
        return tuple(
            s - k + 2 * p for k, s, p in zip(self.kernel, self.scale, self.pads, strict=True)
        )

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial shape of the output."""
        pairs = zip(self.size, self.scale, strict=True)
        return tuple(n // s if self.kind == "conv" else n * s for n, s in pairs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input, channels last."""
        return (self.batch, *self.size, self.in_features)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output, channels last."""
        return (self.batch, *self.output_size, self.out_features)

    @property
    def kernel_features(self) -> int:
        """Output channels of the kernel: those of all phases together before a shuffle."""
        return self.out_features * (prod(self.scale) if self.kind == "subpixel_conv" else 1)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel as in lax and Flax."""
        return (*self.kernel, self.in_features // self.groups, self.kernel_features)

    @property
    def products(self) -> int:
        """Multiplications that one face cannot avoid, as if no tap fell off the border.

        One per tap, pair of connected channels and pixel of the small image: a transposed convolution that multiplies
        inserted zeros does `prod(strides)` times as many. The taps of a nearest resize-convolution that see the same
        input pixel are one: k + r − 1 for kernel size k and scale r.
        """
        if self.kind == "resize_conv" and self.method == "nearest":
            taps = (k + r - 1 for k, r in zip(self.kernel, self.scale, strict=True))
            return self.batch * prod(self.size) * prod(taps) * prod(self.kernel_shape[-2:])
        small = self.output_size if self.kind in ("conv", "resize_conv") else self.size
        return self.batch * prod(small) * prod(self.kernel_shape)

    def flops(self, direction: str) -> int:
        """Returns useful operations of a pass: training is three faces, a product is two operations."""
        return 2 * self.products * (3 if direction == "train" else 1)

    def traffic(self, direction: str, itemsize: int) -> int:
        """Returns the bytes that a pass reads and writes at least; training has a gradient beside every array."""
        once = prod(self.input_shape) + prod(self.kernel_shape) + prod(self.output_shape)
        return itemsize * once * (2 if direction == "train" else 1)


@dataclass(frozen=True)
class Benchmark(Resolved):
    """One benchmark, resolved; fields without a default must be in the file."""

    mode: Mode = "all"  # 'all' is layers and models
    rounds: int = field(default=15, metadata={"minimum": 3})  # in each, every peer is timed once
    budget_s: float = field(default=3.0, metadata={"minimum": 0.001})  # per layer, pass and peer
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    peers: tuple[Peer, ...] = ("lax", "flax", "keras", "torch", "torch_channels_last")
    models: tuple[Literal["dcgan", "unet"], ...] = ("dcgan", "unet")
    only: tuple[str, ...] = ()  # names of the layers to measure; none is all
    layers: tuple[Layer, ...] = field(default=(), metadata={"table": "layer"})

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        names = [layer.name for layer in self.layers]
        errors = [
            f"layer.{name}.name: another layer has this name"
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        ]
        for key in ("dtypes", "peers", "models", "only"):
            value: Sequence[str] = getattr(self, key)
            if len(set(value)) < len(value):
                errors.append(f"{key}: expected none twice, got {list(value)}")
        if not self.dtypes:
            errors.append("dtypes: expected at least one, got []")
        if not self.layers:
            errors.append("layer: expected at least one [[layer]] table")
        elif unknown := [name for name in self.only if name not in names]:
            errors.append(f"only: no [[layer]] has the name {', '.join(map(repr, unknown))}")
        return errors

    @property
    def selected(self) -> tuple[Layer, ...]:
        """The layers to measure."""
        return tuple(layer for layer in self.layers if not self.only or layer.name in self.only)


def _per_axis(value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else value
