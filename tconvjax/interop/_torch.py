"""PyTorch: its modules and state dicts as layers, and layers as its modules.

PyTorch may compute a weight from other tensors. A module or a state dict then has these tensors:

    in place of `weight`                                  the weight
    weight_orig, weight_mask                              pruning: orig · mask
    weight_g, weight_v                                    weight norm: g · v/‖v‖, over all axes on which g has 1
    weight_orig, weight_u, weight_v                       spectral norm: orig/σ with σ = uᵀ W v, as stored
    parametrizations.weight.original0, .original1         weight norm: g, v
    parametrizations.weight.original, .0._u, .0._v        spectral norm, one or several behind each other

`bias` and each name on the left may be computed in the same ways.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tconvjax import _geometry as geo
from tconvjax._geometry import Ints
from tconvjax.interop._checks import (
    as_numpy,
    check_round_trip,
    compare,
    described,
    is_own,
    writable,
)
from tconvjax.interop._composite import (
    PAD,
    UPSAMPLE,
    convolution_of,
    enlargement,
    factors_of,
    mode_of,
    padded,
    subpixel_parts,
)
from tconvjax.interop._converted import (
    LAYERS,
    SHUFFLES,
    Converted,
    Foreign,
    as_converted,
    as_shuffle,
    boundary,
    channels_first,
    channels_last,
    crops,
    forward_kernel,
    in_sequence,
    sizes,
    spatial_rank,
    split,
    square,
)
from tconvjax.interop._flax import as_layer

TORCH: dict[str, Any] = {  # PyTorch's arguments and defaults
    "stride": 1,
    "padding": 0,
    "output_padding": 0,
    "groups": 1,
    "dilation": 1,
    "padding_mode": "zeros",
    "transposed": True,
}
STEP: dict[str, Any] = {"upscale_factor": None, "scale_factor": None, "mode": "nearest"}
CONVOLUTION = r"Conv(Transpose)?[123]d"  # names of classes
FACTORS = {"PixelShuffle": "upscale_factor", "PixelUnshuffle": "downscale_factor"}
PACKAGES = tuple(
    f"torch.nn.modules.{name}"
    for name in ("conv", "pixelshuffle", "container", "upsampling", "padding")
)

# Names of classes, one behind the other, that are one layer here.
ONE_LAYER = rf"Pixel(Uns|S)huffle|{CONVOLUTION}( PixelShuffle)?|({UPSAMPLE})( {PAD})? {CONVOLUTION}"

ALIGNED = 0.99  # cosine between u and W v, 1 where these are singular vectors

# Hooks and parametrizations that may compute a weight from other tensors: `_Layer` computes it, too.
HOOKS = (
    "torch.nn.utils.weight_norm.WeightNorm",
    "torch.nn.utils.spectral_norm.SpectralNorm",
    "torch.nn.utils.prune.BasePruningMethod",
)
PARAMETRIZATIONS = (
    "torch.nn.utils.parametrizations._WeightNorm",
    "torch.nn.utils.parametrizations._SpectralNorm",
)


def from_torch(
    source: Any,
    *,
    stride: Ints = 1,
    padding: str | Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    transposed: bool = True,
    upscale_factor: int | None = None,
    scale_factor: Ints | None = None,
    mode: str = "nearest",
    prefix: str = "",
) -> Converted:
    """Converts a layer of PyTorch: same numbers, channels last.

    The kernel is the one in use in evaluation, computed from weight norm and spectral norm, as hooks or as
    parametrizations, and from pruning. Anything else that may change the numbers is an error. A module runs beside the
    converted layer, which must compute the same, and stays as it is.

    Args:
      source: a module (`ConvTranspose1d` to `3d`, `Conv1d` to `3d`, `PixelShuffle`, `PixelUnshuffle`,
        `Sequential(Conv2d, PixelShuffle)`, `Sequential(Upsample, Conv2d)` of 1 to 3 axes, perhaps with a pad such as
        `ReflectionPad2d` between), which has its arguments; or a state dict or the path of a safetensors file, whose
        arguments are the ones below, with PyTorch's names, defaults and meanings.
      stride: one int for all axes, or one per axis.
      padding: ints; for a plain convolution also 'same' or 'valid'.
      output_padding: pixels that a transposed convolution adds at the high end of each axis.
      groups: groups of channels.
      dilation: output pixels between taps of the kernel.
      padding_mode: border of a plain convolution.
      transposed: whether the weights belong to a transposed convolution.
      upscale_factor: factor of a `PixelShuffle` behind a plain convolution; it sets `transposed` to False.
      scale_factor: whole factor, or one per axis, of an `Upsample` before a plain convolution; likewise.
      mode: of that `Upsample`: 'nearest', or 'linear', 'bilinear' or 'trilinear' with `align_corners=False`.
      prefix: start of the names in the state dict, such as 'decoder.up.', in front of 'weight' and 'bias' or the names
        in their place.

    Returns:
      A 'ConvTranspose', a 'Conv', a 'SubpixelConv', a 'ResizeConv' or the name of a shuffle.

    Raises:
      TypeError: for a source of another kind, subclasses and wrappers included, and weights that are no plain numbers.
      ValueError: for arguments beside a module, other hooks and parametrizations, layers that compute different
        numbers, missing weights, unknown tensors beside them, or a file that only unpickling can read.

    Example:
      >>> state = {"up.weight": np.zeros((8, 3, 4, 4)), "up.bias": np.zeros(3)}
      >>> for name, value in from_torch(state, prefix="up.", stride=2, padding=1).arguments.items():
      ...     print(f"{name}={value}", end=" ")
      in_features=8 out_features=3 kernel_size=(4, 4) strides=(2, 2) padding=1 transpose_kernel=True
    """
    who = "from_torch"
    arguments: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
        "padding_mode": padding_mode,
        "transposed": transposed,
    }
    step = {"upscale_factor": upscale_factor, "scale_factor": scale_factor, "mode": mode}
    if isinstance(source, Mapping | str | os.PathLike):
        arguments["transposed"] &= upscale_factor is None and scale_factor is None
        return _from_tensors(who, state_of(who, source), prefix, arguments, step)
    if (arguments, step, prefix) != (TORCH, STEP, ""):
        extra = {n: v for n, v in (arguments | step).items() if v != (TORCH | STEP)[n]} or "prefix"
        raise ValueError(
            f"{who}: a module brings its own arguments and weights; got {extra} beside "
            f"{type(source).__name__}. Leave them out, or give the state dict."
        )
    layers = _layers(who, source)
    called = callable(source)
    for module in {id(m): m for m in (source, *layers)}.values() if called else ():
        _refuse_changes(who, module)
    first, name = layers[0], _class(layers[0]).__name__
    if name in FACTORS:
        factor = getattr(first, FACTORS[name])
        converted = as_shuffle(SHUFFLES[list(FACTORS).index(name)], factor, "CRD")
    else:
        converted = _from_layers(who, layers)
    if not called:
        return converted
    device = next((str(p.device) for p in source.parameters()), "cpu")
    return compare(who, source, lambda x: _run(source, x), converted, on_cpu=device == "cpu")


def _layers(who: str, source: Any) -> list[Any]:
    """Returns the layers of a module that are one layer here; raises for others."""
    layers = list(source) if _is(source, "Sequential") else [source]
    known = "|".join((CONVOLUTION, *FACTORS, UPSAMPLE, PAD))
    wrong = next((v for v in layers if not _is(v, known)), None)
    kinds = " ".join(_class(layer).__name__ for layer in layers)
    if wrong is not None or not re.fullmatch(ONE_LAYER, kinds):
        inside = f" with {described(wrong)}" if wrong is not None else f" of {kinds or 'none'}"
        inside = "" if wrong is source else inside
        raise TypeError(
            f"{who}: source must be a convolution, a pixel shuffle, Sequential(Conv2d, PixelShuffle) or "
            f"Sequential(Upsample, Conv2d) of PyTorch itself, a state dict or the path of a safetensors file; got "
            f"{described(source)}{inside}. Convert the layers of a model one by one; of a subclass or a wrapper that "
            "computes what the plain layer does, give the state dict and the arguments; run a lazy module once."
        )
    return layers


def _from_layers(who: str, layers: list[Any]) -> Converted:
    """Returns a convolution with what stands before and behind it."""
    place = next(i for i, layer in enumerate(layers) if _is(layer, CONVOLUTION))
    layer, before, behind = layers[place], layers[:place], layers[place + 1 :]
    if callable(
        layer
    ):  # reading `layer.weight` would advance spectral norm's iteration: pytorch/pytorch#57784
        tensors = tensors_of(layer)
        hints = {"others": True, "spectral_axis": _spectral_axis(layer)}
    else:
        tensors, hints = {n: getattr(layer, n) for n in ("weight", "bias")}, {}
    arguments = {name: getattr(layer, name) for name in TORCH}
    step = dict(STEP)
    if behind:
        step["upscale_factor"] = behind[0].upscale_factor
    if before:
        step |= {n: getattr(before[0], n) for n in ("scale_factor", "mode", "align_corners")}
    pad = before[1] if before[1:] else None
    return _from_tensors(who, tensors, "", arguments, step, pad, **hints)


def _from_tensors(
    who: str,
    tensors: Mapping[str, Any],
    prefix: str,
    arguments: dict[str, Any],
    step: dict[str, Any],
    pad: Any = None,
    **hints: Any,
) -> Converted:
    """Returns the layer with these tensors and PyTorch's arguments.

    Args:
      who: the converter, for error messages.
      tensors: by name.
      prefix: of the names.
      arguments: of the convolution, those of TORCH.
      step: what enlarges before or behind the convolution: arguments of STEP, perhaps `align_corners`.
      pad: a pad before the convolution, if there is one.
      **hints: for `weights_in_use`.
    """
    weight, bias = weights_in_use(who, tensors, prefix, **hints)
    _refuse_arguments(who, spatial_rank(who, weight), arguments)
    kernel, pads = channels_last(weight), arguments["padding"]
    options = {
        "strides": arguments["stride"],
        "padding": pads.upper() if isinstance(pads, str) else pads,
        "padding_mode": arguments["padding_mode"],
        "kernel_dilation": arguments["dilation"],
        "feature_group_count": arguments["groups"],
    }
    options = options if pad is None else padded(who, pad, options)
    upscale_factor, scale_factor = step["upscale_factor"], step["scale_factor"]
    if step != STEP:
        rank, s = kernel.ndim - 2, geo.per_axis(who, "stride", options["strides"], kernel.ndim - 2)
        del options["strides"]
        if arguments["transposed"] or set(s) != {1} or (upscale_factor is not None and rank != 2):
            raise ValueError(
                f"{who}: before a pixel shuffle there must be a plain convolution over two axes with stride 1, and "
                f"behind an enlargement one over any; got transposed={arguments['transposed']}, stride={s}. Convert "
                "the two layers one by one."
            )
        if upscale_factor is not None and step != STEP | {"upscale_factor": upscale_factor}:
            raise ValueError(
                f"{who}: one enlargement makes a layer; got upscale_factor={upscale_factor} beside scale_factor="
                f"{scale_factor}, mode={step['mode']!r}. Convert the layers one by one."
            )
        if upscale_factor is not None:
            options |= {"scale": (upscale_factor,) * 2, "order": "CRD"}
            return as_converted(who, "SubpixelConv", kernel, bias, options)
        corners = step.get("align_corners")
        options |= enlargement(who, rank, scale_factor, step["mode"], align_corners=corners)
        return as_converted(who, "ResizeConv", kernel, bias, options)
    if not arguments["transposed"]:
        return as_converted(who, "Conv", kernel, bias, options)
    options |= {"output_padding": arguments["output_padding"], "transpose_kernel": True}
    return as_converted(who, "ConvTranspose", kernel, bias, options)


def to_torch(layer: Any) -> Foreign:
    """Converts a layer to `torch.nn.<name>(**arguments)` and its state dict, in NumPy.

    Args:
      layer: `Converted`, or an NNX layer that `from_flax` takes.

    Returns:
      The class in `torch.nn`, its arguments and its state. A 'SubpixelConv' becomes a 'Sequential': its arguments are
      two results of this kind.

    Raises:
      TypeError: for a layer of another kind.
      ValueError: for what PyTorch does not have: crops other than `(p, p − output_padding)` with `output_padding <
        max(stride, dilation)`, as of 'SAME' for odd `k − s`; a padding that depends on the size of the input; other
        boundaries than zeros in a transposed convolution; shuffles with two factors or in order 'DCR'; methods of a
        resize-convolution other than 'nearest', 'area' and 'linear'.

    Example:
      >>> arguments = {"kernel_size": (4, 4), "strides": (2, 2), "padding": "SAME", "transpose_kernel": True}
      >>> name, arguments, state = to_torch(Converted("ConvTranspose", arguments, {"kernel": np.zeros((4, 4, 3, 8))}))
      >>> name, arguments["padding"], arguments["output_padding"], state["weight"].shape
      ('ConvTranspose2d', (1, 1), (0, 0), (8, 3, 4, 4))
    """
    who = "to_torch"
    c = writable(who, as_layer(who, layer), (*LAYERS, *SHUFFLES))
    if c.layer in SHUFFLES:
        names = {"pixel_shuffle": "PixelShuffle", "pixel_unshuffle": "PixelUnshuffle"}
        factor = "upscale_factor" if c.layer == "pixel_shuffle" else "downscale_factor"
        if c.arguments["order"] != "CRD":
            raise ValueError(
                f"{who}: PyTorch shuffles in order 'CRD'; got order={c.arguments['order']!r}."
            )
        return Foreign(names[c.layer], {factor: square(who, c)}, {})
    if c.layer == "SubpixelConv":
        return in_sequence(*map(to_torch, subpixel_parts(who, c, ("CRD",))))
    if c.layer == "ResizeConv":
        factors: dict[str, Any] = {
            "scale_factor": factors_of(who, c),
            "mode": mode_of(who, c),
        }
        if factors["mode"] != "nearest":
            factors["align_corners"] = False
        return in_sequence(Foreign("Upsample", factors, {}), to_torch(convolution_of(c)))
    k, strides, dilation = sizes(c)
    if len(k) > 3:
        raise ValueError(f"{who}: PyTorch's convolutions have 1 to 3 axes; got kernel_size={k}.")
    extra_arguments: dict[str, Any] = {}
    if c.layer == "ConvTranspose":
        cropped = crops(who, c)
        padding: Any = tuple(lo for lo, _ in cropped)
        extra_arguments["output_padding"] = extra = tuple(lo - hi for lo, hi in cropped)
        limits = tuple(max(pair) for pair in zip(strides, dilation, strict=True))
        if min(padding) < 0 or any(not 0 <= op < n for op, n in zip(extra, limits, strict=True)):
            raise ValueError(
                f"{who}: PyTorch crops p >= 0 pixels in front and p - output_padding behind, 0 <= output_padding < "
                f"max(stride, dilation); got padding={c.arguments['padding']!r} with kernel_size={k}, "
                f"strides={strides}, kernel_dilation={dilation}, which crops {cropped}. Choose a padding of that form."
            )
    else:
        extra_arguments["padding_mode"], pads = boundary(who, c)
        same = tuple(split(e - 1) for e in geo.kernel_extent(k, dilation))
        if not isinstance(pads, str) and all(lo == hi >= 0 for lo, hi in pads):
            padding = tuple(lo for lo, _ in pads)
        elif pads == same and set(strides) == {1}:
            padding = "same"
        else:
            raise ValueError(
                f"{who}: PyTorch pads both ends alike, or 'same' with stride 1; got padding={c.arguments['padding']!r} "
                f"with kernel_size={k}, strides={strides}. Pad the image in front of the layer."
            )
    kernel, bias = forward_kernel(c), c.parameters.get("bias")
    groups = c.arguments.get("feature_group_count", 1)
    features = (kernel.shape[-2] * groups, kernel.shape[-1])
    source, target = features[::-1] if c.layer == "ConvTranspose" else features
    arguments = {
        "in_channels": source,
        "out_channels": target,
        "kernel_size": k,
        "stride": strides,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": bias is not None,
        **extra_arguments,
    }
    weight = channels_first(kernel)
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    options = {n: arguments[n] for n in TORCH if n in arguments}
    read_again = from_torch(state, **options, transposed=c.layer == "ConvTranspose")
    check_round_trip(who, c, read_again)
    return Foreign(f"{c.layer}{len(k)}d", arguments, state)


def _class(module: Any) -> type:
    """Returns the class of a module; for a parametrized one, the base of the class that PyTorch generates."""
    cls = type(module)
    generated = cls.__module__ == "torch.nn.utils.parametrize" and len(cls.__bases__) == 1
    return cls.__bases__[0] if generated else cls


def _is(module: Any, pattern: str) -> bool:
    return is_own(_class(module), pattern, PACKAGES, called=callable(module))


def _refuse_changes(who: str, module: Any) -> None:
    """Raises if a module of PyTorch's own class may compute something else than its class."""
    name, attributes = _class(module).__name__, vars(module)
    changes = [f"the hook {described(h)}" for h in _hooks(module) if not _descends(h, HOOKS)]
    changes += [
        f"the parametrization {described(p)}"
        for p in _parametrizations(module)
        if not _descends(p, PARAMETRIZATIONS)
    ]
    patched = (n for n in attributes if callable(getattr(type(module), n, None)))
    changes += [f"a {n} of its own" for n in patched]
    if name != "Sequential":
        inside = (n for n in attributes["_modules"] if n != "parametrizations")
        changes += [f"a module {n!r} inside" for n in inside]
    if changes:
        raise ValueError(
            f"{who}: what changes weights or images must be weight norm, spectral norm or pruning of PyTorch; got "
            f"{name} with {', '.join(changes)}. Remove it, or give the weights in use as a state dict, and the "
            "arguments."
        )


def _hooks(module: Any) -> list[Any]:
    kinds = ("_forward_pre_hooks", "_forward_hooks")
    return [hook for kind in kinds for hook in vars(module)[kind].values()]


def _parametrizations(module: Any) -> list[Any]:
    chains = vars(module)["_modules"].get("parametrizations")
    return [] if chains is None else [p for chain in chains.values() for p in chain]


def _spectral_axis(module: Any) -> int | None:
    """Returns the axis of spectral norm, if the module has one; the tensors alone may fit several axes."""
    norms = (
        p for p in (*_hooks(module), *_parametrizations(module)) if hasattr(p, "n_power_iterations")
    )
    return next((norm.dim for norm in norms if hasattr(norm, "dim")), None)


def _descends(value: Any, classes: tuple[str, ...]) -> bool:
    return any(f"{cls.__module__}.{cls.__qualname__}" in classes for cls in type(value).__mro__)


def _refuse_arguments(who: str, rank: int, arguments: Mapping[str, Any]) -> None:
    """Raises for arguments that PyTorch refuses, too."""
    per_axis = lambda name, least: geo.per_axis(who, name, arguments[name], rank, minimum=least)
    stride, dilation, extra = (
        per_axis(n, m) for n, m in (("stride", 1), ("dilation", 1), ("output_padding", 0))
    )
    pads, transposed = arguments["padding"], arguments["transposed"]
    geo.choice(who, "padding_mode", arguments["padding_mode"], geo.PADDING_MODES)
    if isinstance(pads, str):
        geo.choice(who, "padding", pads, ("same", "valid"))
        good = not transposed and (pads == "valid" or set(stride) == {1})
    else:
        per_axis("padding", 0)
        good = True
    if transposed:
        good &= arguments["padding_mode"] == "zeros"
        good &= all(op < max(s, d) for op, s, d in zip(extra, stride, dilation, strict=True))
    else:
        good &= set(extra) == {0}
    if not good:
        listed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ValueError(
            f"{who}: in PyTorch, a transposed convolution has integers of padding, zeros around, and output_padding "
            f"below max(stride, dilation); a plain one has no output_padding, and 'same' with stride 1 alone; got "
            f"{listed}. Give the arguments of the layer that these weights belong to."
        )


def tensors_of(module: Any) -> dict[str, Any]:
    """Returns parameters and buffers by name."""
    every = {"remove_duplicate": False}
    return dict(module.named_parameters(**every)) | dict(module.named_buffers(**every))


def _run(module: Any, x: np.ndarray) -> np.ndarray:
    """Returns the output of a module on an image, channels last, and leaves the module as it was."""
    torch = sys.modules["torch"]  # the module has imported it
    like = next(module.parameters(), torch.zeros(0))
    first = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    if first.dtype == jnp.bfloat16:
        first = first.astype(np.float32)
    with torch.no_grad(), untouched(module):
        y = module(torch.as_tensor(first).to(like))
    return np.moveaxis(array_of("from_torch", "the output", y), 1, -1)


@contextmanager
def untouched(module: Any) -> Iterator[None]:
    """Sets a module to evaluation, and restores all its attributes: hooks write weights, and `eval` writes flags."""
    saved = [(vars(part), dict(vars(part))) for part in module.modules()]
    try:
        for attributes, _ in saved:
            attributes["training"] = False
        yield
    finally:
        for attributes, before in saved:
            attributes.clear()
            attributes.update(before)


def state_of(who: str, source: Any) -> Mapping[str, Any]:
    """Returns a state dict, from a safetensors file if the source is a path."""
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{who}: weights are read from safetensors files, never unpickled; got {path.name!r}. In PyTorch, "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors') writes one."
        )
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise ValueError(
            f"{who}: safetensors files need the package safetensors; got {path.name!r}. Install "
            "tconvjax[export]."
        ) from None
    return load_file(path)


def weights_in_use(
    who: str,
    state: Mapping[str, Any],
    prefix: str,
    *,
    others: bool = False,
    spectral_axis: int | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the weight and the bias in use.

    Args:
      who: the converter, for error messages.
      state: tensors by name.
      prefix: start of the names of this layer.
      others: whether the state may have unknown tensors, too.
      spectral_axis: axis of spectral norm, if it is known.

    Raises:
      ValueError: for a missing weight and for unknown tensors.
    """
    tensors = {
        str(name).removeprefix(prefix): value
        for name, value in state.items()
        if str(name).startswith(prefix) and value is not None
    }
    layer = _Layer(who, tensors, spectral_axis)
    if not layer.holds("weight"):
        names = sorted(map(str, state), key=lambda name: (-_common_length(name, prefix), name))
        candidates = [n for n in names if "weight" in n] or names
        raise ValueError(
            f"{who}: prefix + 'weight' must be a name in the state dict, or what weight norm, spectral norm or pruning "
            f"keep in its place; got prefix={prefix!r}, weights {candidates[:8]}."
        )
    weight = layer.resolve("weight")
    bias = layer.resolve("bias") if layer.holds("bias") else None
    unknown = tensors.keys() - layer.used
    if prefix and not prefix.endswith("."):  # names of another layer may start with 'up_', too
        unknown = {n for n in unknown if n.startswith(("weight", "bias"))}
    if others:
        unknown = {n for n in unknown if n.startswith("parametrizations.")}
    if unknown:
        raise ValueError(
            f"{who}: beside weight and bias, a convolution has only what weight norm, spectral norm and pruning keep; "
            f"got {sorted(unknown)[:8]} below prefix={prefix!r}, too. Give the tensors of this layer alone, and the "
            "weight in use if something else makes it."
        )
    return weight, bias


class _Layer:
    """The tensors of a layer, and the names of those that its weight and bias were computed from."""

    def __init__(self, who: str, tensors: Mapping[str, Any], axis: int | None) -> None:
        self.who, self.tensors, self.axis = who, tensors, axis
        self.used: set[str] = set()

    def holds(self, name: str) -> bool:
        """Returns whether the layer has a tensor, or others in its place."""
        start = f"parametrizations.{name}.original"
        places = (name, f"{name}_orig", f"{name}_g", start, f"{start}0")
        return any(place in self.tensors for place in places)

    def take(self, name: str) -> np.ndarray:
        """Returns a tensor; raises if the layer does not have it."""
        if name not in self.tensors:
            raise ValueError(
                f"{self.who}: {name} must be there, too; got {sorted(self.tensors)[:8]}. Give all tensors of the layer."
            )
        self.used.add(name)
        return array_of(self.who, name, self.tensors[name])

    def resolve(self, name: str) -> np.ndarray:
        """Returns a tensor in use, in its own dtype."""
        if name in self.tensors or not self.holds(name):
            return self.take(name)
        if f"{name}_mask" in self.tensors:
            original = self.resolve(f"{name}_orig")
            return original * self._mask(f"{name}_mask", original)
        if self.holds(f"{name}_g"):
            return self._normed(self.resolve(f"{name}_g"), self.resolve(f"{name}_v"))
        if f"{name}_u" in self.tensors:
            u, v = self.take(f"{name}_u"), self.take(f"{name}_v")
            return self._divided(self.resolve(f"{name}_orig"), u, v)
        start, i, weight = f"parametrizations.{name}.", 0, np.zeros(0)
        if f"{start}original0" in self.tensors:
            weight, i = self._normed(*(self.take(f"{start}original{n}") for n in range(2))), 1
        elif f"{start}original" in self.tensors:
            weight = self.take(f"{start}original")
        while f"{start}{i}._u" in self.tensors:
            weight = self._divided(weight, *(self.take(f"{start}{i}._{n}") for n in "uv"))
            i += 1
        if i == 0:
            raise ValueError(
                f"{self.who}: what makes {name} of other tensors must be weight norm, spectral norm or pruning, "
                f"and among the tensors; got {sorted(self.tensors)[:8]}. Give the {name} in use."
            )
        return weight

    def _mask(self, name: str, original: np.ndarray) -> np.ndarray:
        self.used.add(name)
        mask = self.tensors[name]
        mask = mask.detach().cpu() if hasattr(mask, "detach") else mask
        mask = np.asarray(mask.float() if hasattr(mask, "float") else mask).astype(original.dtype)
        if mask.shape != original.shape:
            raise ValueError(
                f"{self.who}: a mask has the shape of what it masks; got {name} of shape {mask.shape}, original of "
                f"shape {original.shape}."
            )
        return mask

    def _normed(self, g: np.ndarray, v: np.ndarray) -> np.ndarray:
        fits = g.ndim in {0, v.ndim} and all(
            n in {1, m} for n, m in zip(g.shape or (1,) * v.ndim, v.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{self.who}: the lengths of weight norm have the axes of its directions; got lengths of shape "
                f"{g.shape}, directions of shape {v.shape}."
            )
        axes = tuple(i for i, n in enumerate(g.shape or (1,) * v.ndim) if n == 1)
        wide = _wide(v)
        with np.errstate(invalid="ignore", divide="ignore"):
            norm = np.sqrt(np.sum(np.abs(wide) ** 2, axes, keepdims=True))
            return (_wide(g) * (wide / norm)).astype(v.dtype)

    def _divided(self, weight: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        shape, wide = weight.shape, _wide(weight)
        matrices = {
            axis: np.moveaxis(wide, axis, 0).reshape(n, -1)
            for axis, n in enumerate(shape)
            if u.shape == (n,) and v.shape == (weight.size // n,) and self.axis in {None, axis}
        }
        if not matrices:
            raise ValueError(
                f"{self.who}: the vectors of spectral norm fit the weight along an axis; got u of shape {u.shape}, v "
                f"of shape {v.shape}, weight of shape {shape}."
            )
        u, v = _wide(u), _wide(v)

        # PyTorch does not store the axis. If several fit, u is parallel to W v on the right one once it is trained.
        def cosine(axis: int) -> float:
            image = matrices[axis] @ v
            return float(abs(u @ image) / (np.linalg.norm(u) * np.linalg.norm(image) or 1))

        axis = max(matrices, key=cosine)
        if len(matrices) > 1 and cosine(axis) < ALIGNED:
            raise ValueError(
                f"{self.who}: spectral norm must be trained where its vectors fit several axes, so that they tell "
                f"which; got a weight of shape {shape}, u of shape {u.shape}. Give the module, or the weight in use."
            )
        sigma = u @ (matrices[axis] @ v)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (wide / sigma).astype(weight.dtype)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _common_length(name: str, prefix: str) -> int:
    """Returns the number of characters at the start that two names have in common."""
    pairs = enumerate(zip(name, prefix, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(name), len(prefix)))


def array_of(who: str, name: str, value: Any) -> np.ndarray:
    """Returns a copy of a tensor, or of an array; a tensor must be plain and dense, and have values."""
    if not hasattr(value, "detach"):
        return as_numpy(who, name, value)
    tensor, plain = value, type(value).__name__ in {"Tensor", "Parameter", "Buffer"}
    dtype, layout, device = (str(getattr(tensor, n)) for n in ("dtype", "layout", "device"))
    if not plain or layout != "torch.strided" or device == "meta" or tensor.is_quantized:
        raise TypeError(
            f"{who}: {name} must be a plain, dense tensor with values; got {described(type(tensor))}, dtype={dtype}, "
            f"layout={layout}, device={device}. Initialize, dequantize or densify it first."
        )
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if dtype == "torch.bfloat16":  # `numpy()` refuses it: pytorch/pytorch#109873
        array = tensor.float().numpy().astype(jnp.bfloat16)
    else:  # `numpy()` refuses 8 bits, too, and so does `as_numpy`
        array = tensor if dtype.startswith("torch.float8") else tensor.numpy()
    return as_numpy(who, name, array, value)
