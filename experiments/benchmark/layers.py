"""One layer under every peer: the same arrays, the same numbers, timed together.

Two passes: 'forward', and 'train', which is forward and backward for a fixed cotangent and returns the output and the
gradients of input and kernel, so that nothing of it can be left out. JAX peers are compiled ahead, as in a user's
`jax.jit`; torch is eager, as its users run it. No bias anywhere.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

import tconvjax
from experiments.benchmark import machine, timing
from experiments.benchmark.config import Layer
from experiments.benchmark.shared import Arrays, Prepared, Unavailable, draw
from experiments.records import RunError

PASSES = ("forward", "train")
OURS = "ours"
JAX_PEERS = (OURS, "lax", "flax", "keras")
# Relative, of norms. On accelerators float32 products may take their operands with 10 bits.
TOLERANCES = {
    ("float32", "cpu"): 1e-4,
    ("float32", "accelerator"): 1e-2,
    ("bfloat16", "cpu"): 5e-2,
    ("bfloat16", "accelerator"): 5e-2,
}

Function = Callable[[jax.Array, jax.Array], jax.Array]


def measure(
    layer: Layer,
    dtype: str,
    peers: Sequence[str],
    here: Mapping[str, Any],
    *,
    rounds: int,
    budget_s: float,
) -> list[dict[str, Any]]:
    """Checks and times one layer, and returns one entry per pass and peer, ours first.

    Args:
      layer: to measure.
      dtype: of all arrays.
      peers: beside ours.
      here: what `machine.measure` found.
      rounds: as in `timing.interleaved`, like `budget_s`.
      budget_s: see there.

    Raises:
      RunError: if a peer computes something else.
    """
    arrays = draw(layer)
    entries: list[dict[str, Any]] = []
    for direction in PASSES:
        ready, skipped = prepare(layer, dtype, (OURS, *peers), direction, arrays)
        differences = compare(layer, dtype, direction, ready)
        samples = timing.interleaved([p.subject for p in ready.values()], rounds, budget_s)
        common = {"layer": layer.name, "dtype": dtype, "pass": direction}
        for name, prepared in ready.items():
            entry = {**common, "peer": name, **timing.milliseconds(samples, name)}
            seconds = (samples[name].seconds, samples[OURS].seconds)
            itemsize = jnp.dtype(dtype).itemsize
            flops, traffic = layer.flops(direction), layer.traffic(direction, itemsize)
            entries.append(
                {
                    **entry,
                    "ratio": None if name == OURS else timing.ratio(*seconds)._asdict(),
                    **machine.shares(entry, here, flops, traffic),
                    "compile_s": prepared.compile_s,
                    "temporary_bytes": prepared.temporary_bytes,
                    "difference": differences.get(name),
                }
            )
        entries += [{**common, "peer": name, "skipped": why} for name, why in skipped.items()]
    return entries


def prepare(
    layer: Layer, dtype: str, peers: Sequence[str], direction: str, arrays: Arrays
) -> tuple[dict[str, Prepared], dict[str, str]]:
    """Returns the peers that can run a layer, ready, and why the others cannot."""
    ready: dict[str, Prepared] = {}
    skipped: dict[str, str] = {}
    for peer in peers:
        try:
            if peer in JAX_PEERS:
                ready[peer] = _prepare_jax(layer, dtype, peer, direction, arrays)
            else:
                require("torch")
                # Imported here: without torch there is no such module.
                from experiments.benchmark import in_torch

                ready[peer] = in_torch.prepare(layer, dtype, peer, direction, arrays)
        except Unavailable as error:
            skipped[peer] = str(error)
        except RuntimeError as error:  # memory, or a dtype that a peer lacks
            if peer == OURS:
                raise
            skipped[peer] = f"failed: {str(error).strip().splitlines()[0]}"
    return ready, skipped


def compare(
    layer: Layer, dtype: str, direction: str, ready: Mapping[str, Prepared]
) -> dict[str, float]:
    """Returns the relative difference between ours and each peer, the largest over output and gradients.

    Keras pads and thus shifts some layers in its own way; its shapes are compared alone.

    Raises:
      RunError: if a difference is not rounding.
    """
    place = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    tolerance = TOLERANCES[dtype, place]
    want = ready[OURS].outputs()
    differences = {}
    for name, prepared in ready.items():
        if name == OURS:
            continue
        got = prepared.outputs()
        if name == "keras":
            alike = got[0].shape == want[0].shape
            difference = 0.0 if alike else float("inf")
        else:
            difference = max(map(_difference, got, want))
            differences[name] = difference
        if not difference < tolerance:
            raise RunError(
                f"layer {layer.name}, {dtype}, {direction}: {name} computes something else than ours: relative "
                f"difference {difference:.2g}, allowed {tolerance:g}. What was measured before is kept."
            )
    return differences


def require(package: str) -> None:
    """Raises `Unavailable` if a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Unavailable(f"{package} is not installed")


def jax_function(layer: Layer, peer: str, dtype: str) -> Function:
    """Returns a layer under a peer on JAX as a function of input and kernel.

    Raises:
      Unavailable: if the peer has no such layer or is not installed.
    """
    if peer == "keras":
        return _keras(layer, dtype)
    return {OURS: _ours, "lax": _lax, "flax": _flax}[peer](layer)


def _prepare_jax(layer: Layer, dtype: str, peer: str, direction: str, arrays: Arrays) -> Prepared:
    function = jax_function(layer, peer, dtype)
    kernel = _keras_kernel(layer, arrays.kernel) if peer == "keras" else arrays.kernel

    def train(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(function, x, kernel)
        return (y, *pull(cotangent))

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
        return (function(x, kernel),)

    given = [jnp.asarray(a).astype(dtype) for a in (arrays.x, kernel, arrays.cotangent)]
    program, operands = (train, given) if direction == "train" else (forward, given[:2])
    return compiled(peer, program, operands)


def compiled(name: str, program: Callable[..., Any], operands: Sequence[Any]) -> Prepared:
    """Compiles a program of JAX for its operands."""
    start = time.perf_counter()
    executable = jax.jit(program).lower(*operands).compile()
    compile_s = time.perf_counter() - start
    call = partial(executable, *operands)
    memory = executable.memory_analysis()  # None on some backends

    def outputs() -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(a, np.float32) for a in jax.tree.leaves(call()))

    temporary = getattr(memory, "temp_size_in_bytes", None)
    return Prepared(timing.on_jax(name, call), outputs, compile_s, temporary)


def _ours(layer: Layer) -> Function:
    groups: dict[str, Any] = {"feature_group_count": layer.groups}
    if layer.kind == "conv_transpose":
        return lambda x, w: tconvjax.conv_transpose(
            x,
            w,
            strides=layer.scale,
            padding=layer.pads,
            output_padding=layer.output_padding,
            **groups,
        )
    if layer.kind == "conv":
        return lambda x, w: tconvjax.conv(x, w, strides=layer.scale, padding=layer.pads, **groups)
    if layer.kind == "resize_conv":
        return lambda x, w: tconvjax.resize_conv(
            x, w, scale=layer.scale, method=layer.method, **groups
        )
    return lambda x, w: tconvjax.subpixel_conv(x, w, scale=layer.scale, **groups)


def _around(layer: Layer, convolve: Function) -> Function:
    """Returns a layer made of a convolution and what JAX offers around it."""
    if layer.kind == "resize_conv":
        big = (layer.batch, *layer.output_size, layer.in_features)
        return lambda x, w: convolve(jax.image.resize(x, big, layer.method), w)
    if layer.kind == "subpixel_conv":
        return lambda x, w: shuffle(layer, convolve(x, w))
    return convolve


def shuffle(layer: Layer, x: jax.Array) -> jax.Array:
    """Moves phases into space as users of JAX write it: reshape, transpose, reshape; torch's order of channels."""
    rank = layer.rank
    split = x.reshape(*x.shape[:-1], layer.out_features, *layer.scale)
    pairs = [axis for i in range(rank) for axis in (1 + i, 2 + rank + i)]
    return split.transpose(0, *pairs, 1 + rank).reshape(layer.output_shape)


def _lax(layer: Layer) -> Function:
    if layer.kind == "conv_transpose" and layer.groups == 1:
        return lambda x, w: lax.conv_transpose(
            x, w, layer.scale, dilated_pads(layer), dimension_numbers=dimension_numbers(layer)
        )
    convolve = partial(
        lax.conv_general_dilated,
        dimension_numbers=dimension_numbers(layer),
        feature_group_count=layer.groups,
    )
    ones = (1,) * layer.rank
    if layer.kind == "conv_transpose":  # lax.conv_transpose knows no groups
        return lambda x, w: convolve(
            x, w, window_strides=ones, padding=dilated_pads(layer), lhs_dilation=layer.scale
        )
    strides = layer.scale if layer.kind == "conv" else ones
    pads = [(p, p) for p in layer.pads]
    return _around(layer, lambda x, w: convolve(x, w, window_strides=strides, padding=pads))


def dilated_pads(layer: Layer) -> list[tuple[int, int]]:
    """Returns the padding of a transposed convolution as lax and Flax count it: of the zero-inserted input."""
    triples = zip(layer.kernel, layer.pads, layer.output_padding, strict=True)
    return [(k - 1 - p, k - 1 - p + extra) for k, p, extra in triples]


def dimension_numbers(layer: Layer) -> tuple[str, str, str]:
    """Returns channels last, in lax's letters."""
    axes = "DHW"[-layer.rank :]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def _flax(layer: Layer) -> Function:
    if layer.kind == "conv_transpose" and layer.groups > 1:
        raise Unavailable("flax.nnx.ConvTranspose has no groups")
    make: Any = partial(
        nnx.Conv, padding=[(p, p) for p in layer.pads], feature_group_count=layer.groups
    )
    strides = layer.scale if layer.kind in ("conv", "conv_transpose") else (1,) * layer.rank
    if layer.kind == "conv_transpose":
        make = partial(nnx.ConvTranspose, padding=dilated_pads(layer))
    module = nnx.eval_shape(
        lambda: make(
            layer.in_features,
            layer.kernel_features,
            layer.kernel,
            strides=strides,
            use_bias=False,
            rngs=nnx.Rngs(0),
        )
    )
    graph, _ = nnx.split(module)
    return _around(layer, lambda x, w: nnx.merge(graph, {"kernel": w})(x))


def _keras(layer: Layer, dtype: str) -> Function:
    """Returns a layer of Keras as a function of the input and of the kernel in Keras's own layout."""
    keras = _import_keras()
    axes = f"{layer.rank}D"
    if layer.kind == "subpixel_conv":
        raise Unavailable("keras has no layer that shuffles pixels")
    if layer.kind == "conv_transpose" and layer.groups > 1:
        raise Unavailable(f"keras.layers.Conv{axes}Transpose has no groups")
    options = {"padding": "same", "data_format": "channels_last", "dtype": dtype}
    before: Callable[[jax.Array], jax.Array] = lambda x: x
    if layer.kind == "resize_conv":
        if layer.method != "nearest" and layer.rank != 2:
            raise Unavailable(f"keras.layers.UpSampling{axes} knows no interpolation")
        size = layer.scale[0] if layer.rank == 1 else layer.scale
        smooth = {"interpolation": "bilinear"} if layer.method == "linear" else {}
        before = getattr(keras.layers, f"UpSampling{axes}")(size, dtype=dtype, **smooth)
    convolve = {
        "conv_transpose": f"Conv{axes}Transpose",
        "conv": f"Conv{axes}",
        "resize_conv": f"Conv{axes}",
    }[layer.kind]
    strides = layer.scale if layer.kind in ("conv", "conv_transpose") else (1,) * layer.rank
    groups = {} if layer.kind == "conv_transpose" else {"groups": layer.groups}
    module = getattr(keras.layers, convolve)(
        layer.out_features, layer.kernel, strides, use_bias=False, **options, **groups
    )
    small = layer.input_shape if layer.kind != "resize_conv" else layer.output_shape
    module.build((*small[:-1], layer.in_features))
    return lambda x, w: module.stateless_call([w], [], before(x))[0]


def _keras_kernel(layer: Layer, kernel: np.ndarray) -> np.ndarray:
    """Returns our kernel as Keras keeps it: that of a transposed convolution is the forward convolution's."""
    if layer.kind != "conv_transpose":
        return kernel
    return np.flip(kernel, tuple(range(layer.rank))).swapaxes(-1, -2)


def _import_keras() -> Any:
    require("keras")
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "jax"  # read once, at import
    import keras

    if keras.backend.backend() != "jax":
        raise Unavailable(f"keras runs on {keras.backend.backend()}, not on jax")
    return keras


def _difference(got: np.ndarray, want: np.ndarray) -> float:
    """Returns the norm of the difference over the norm."""
    if got.shape != want.shape:
        return float("inf")
    return float(np.linalg.norm(got - want) / max(float(np.linalg.norm(want)), 1e-30))
