"""Whole models: the weights of a model of PyTorch in a model of Flax NNX, layer by layer by name.

PyTorch                              NNX, of Flax or ours              weights
ConvTranspose1d to 3d                ConvTranspose                     kernel, bias
Conv1d to 3d                         Conv, ResizeConv, SubpixelConv    kernel, bias
Linear                               Linear                            kernel, bias
BatchNorm1d to 3d                    BatchNorm                         scale, bias, mean, var
GroupNorm, LayerNorm                 GroupNorm, LayerNorm              scale, bias
PReLU with one slope                 PReLU                             negative_slope
Embedding                            Embed                             embedding
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tconvjax.interop import _torch as torch_layers
from tconvjax.interop._checks import described, facts, relative_difference
from tconvjax.interop._converted import channels_last, exchanged
from tconvjax.interop._flax import as_layer

CONVOLUTIONS = ("ConvTranspose", "Conv", "ResizeConv", "SubpixelConv")
NORMS = ("BatchNorm", "GroupNorm", "LayerNorm")
NAMES = {  # of PyTorch's tensor for every parameter; of layers without a kernel
    **{norm: {"scale": "weight", "bias": "bias"} for norm in NORMS},
    "BatchNorm": {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"},
    "PReLU": {"negative_slope": "weight"},
    "Embed": {"embedding": "weight"},
}
EPSILON = 1e-5  # PyTorch's default in every norm
Rename = Mapping[str, str] | Callable[[str], str]


class Loaded(NamedTuple):
    """What was loaded.

    Attributes:
      loaded: path of every layer of the model that was filled, with the name of PyTorch's layer.
      missing: paths of all parts of the model with parameters or statistics that no tensors belong to, of whatever
        kind; they are unchanged.
      unused: names of tensors that belong to no layer of the model.
      unchecked: paths of norms whose epsilon is not PyTorch's default, 1e-5, where a state dict does not tell it.
    """

    loaded: dict[str, str]
    missing: list[str]
    unused: list[str]
    unchecked: list[str]


def load_torch(
    model: Any,
    source: Any,
    *,
    rename: Rename | None = None,
    flattened: Mapping[str, tuple[int, ...]] | None = None,
) -> Loaded:
    """Fills a model of Flax NNX, in place, with the weights of a model of PyTorch: by name, and nothing is guessed.

    A layer at the path `decoder.up.0` takes the tensors `decoder.up.0.weight` and so on, kernels in use from weight
    norm, spectral norm and pruning. Shapes must fit; of a module, so must strides, paddings, groups and epsilons.
    Either all is loaded that is listed, or an error leaves the model as it was.

    Args:
      model: an `nnx.Module` with layers of Flax and of `tconvjax.nnx`; it may have other parts.
      source: a module of PyTorch, a state dict, or the path of a safetensors file.
      rename: PyTorch's names of layers to paths in the model: a function, or a mapping from starts of names to starts
        of paths, `{"main": "layers"}`; of several the longest counts, and '' is the start of all.
      flattened: `(channels, *spatial)` of images that a `Linear` reads or writes as vectors, by its path in the model:
        channels come first in PyTorch's vectors, and last in ours.

    Returns:
      The layers that were filled, those that were not, and tensors that were not used. Run `verify` afterwards.

    Raises:
      TypeError: if `model` is no NNX module, or weights are no plain numbers.
      ValueError: for layers that do not fit, or if no layer does.

    Example:
      >>> from flax import nnx
      >>> from tconvjax.nnx import ConvTranspose
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> state = {"0.weight": np.ones((3, 2)), "0.bias": np.zeros(3)}
      >>> load_torch(model, state, rename={"": "layers"})
      Loaded(loaded={'layers.0': '0'}, missing=[], unused=[], unchecked=[])
    """
    from flax import nnx

    who = "load_torch"
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"{who}: model must be an nnx.Module; got {described(model)}. Fill an NNX model, and copy its state."
        )
    tensors, modules = _tensors(who, source)
    layers = _layers(model)
    images = dict(flattened or {})
    unknown = images.keys() - {path for path, v in layers.items() if _kind(v) == "Linear"}
    if unknown:
        raise ValueError(
            f"{who}: flattened must name Linear layers of the model by path; got {sorted(unknown)}."
        )
    names: dict[str, str] = {}
    for name in _groups(tensors):
        path = _renamed(name, rename)
        if path in names:
            raise ValueError(
                f"{who}: rename must give every layer a path of its own; got {path!r} for {names[path]!r} and {name!r}."
            )
        names[path] = name
    loaded: dict[str, str] = {}
    filled: list[tuple[Any, np.ndarray]] = []
    used: set[str] = set()
    for path, layer in layers.items():
        if path not in names:
            continue
        name = names[path]
        mine = {n: v for n, v in tensors.items() if _group(n) == name}
        where = f"{who}: {path} from {name or 'the model itself'}"
        values = _values(where, layer, name, mine, modules.get(name), images.get(path))
        for parameter, value in values.items():
            filled.append((_variable(where, layer, parameter, value), value))
        loaded[path] = name
        used |= mine.keys()
    if not loaded:
        raise ValueError(
            f"{who}: no name of a layer is a path of the model; got {sorted(names)[:6]}, and the model has "
            f"{list(layers)[:6]}. Give rename."
        )
    for variable, value in filled:
        variable[...] = jnp.asarray(value, variable[...].dtype)
    variables = nnx.Param, nnx.BatchStat
    holders = {_joined(p[:-1]) for p, v in nnx.iter_graph(model) if isinstance(v, variables)}
    missing = sorted(holders - loaded.keys())
    unchecked = (
        []
        if modules
        else [p for p in loaded if _kind(layers[p]) in NORMS and layers[p].epsilon != EPSILON]
    )
    return Loaded(loaded, missing, sorted(tensors.keys() - used), unchecked)


def verify(ours: Callable[..., Any], theirs: Callable[..., Any], *inputs: Any) -> float:
    """Returns the largest difference between a model and its source in PyTorch, over the source's largest output.

    The source runs in evaluation and stays as it is. Images of three or more axes are channels last here, and are
    given to it, and taken from it, channels first.

    Args:
      ours: a function of JAX, or a model in evaluation, such as after `model.eval()`.
      theirs: a module of PyTorch.
      *inputs: arrays of NumPy or JAX, as `ours` takes them.

    Returns:
      0 or more; about 1e-6 for equal models in float32; infinite if shapes or NaNs differ.

    Example:
      >>> import pytest; torch = pytest.importorskip("torch")
      >>> verify(lambda x: 2 * x, torch.nn.Identity(), np.ones((1, 4, 4, 3)))
      1.0
    """
    outputs = jax.tree.leaves(jax.device_get(ours(*map(jnp.asarray, inputs))))
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(theirs, torch.nn.Module):
        raise TypeError(f"verify: theirs must be a module of PyTorch; got {described(theirs)}.")
    like = next(theirs.parameters(), torch.zeros(0))
    given = [torch.as_tensor(np.ascontiguousarray(_first(np.asarray(x)))) for x in inputs]
    given = [x.to(like) if x.is_floating_point() else x.to(like.device) for x in given]
    with torch.no_grad(), torch_layers.untouched(theirs):
        found = theirs(*given)
    tensors = found if isinstance(found, tuple | list) else [found]
    wanted = [_last(torch_layers.array_of("verify", "the output", y)) for y in tensors]
    if len(wanted) != len(outputs):
        return np.inf
    pairs = zip(outputs, wanted, strict=True)
    return max(relative_difference(np.asarray(a), b) for a, b in pairs)


def _first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1) if x.ndim > 2 else x


def _last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1) if x.ndim > 2 else x


# The source.


def _tensors(who: str, source: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns tensors by name, and modules by name if there are any."""
    if isinstance(source, Mapping | str | os.PathLike):
        state = torch_layers.state_of(who, source)
        return {str(name): v for name, v in state.items() if not _counts(name)}, {}
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.nn.Module):
        raise TypeError(
            f"{who}: source must be a module of PyTorch, a state dict or the path of a safetensors file; got "
            f"{described(source)}."
        )
    modules = dict(source.named_modules())
    tensors = torch_layers.tensors_of(source)
    return {name: v for name, v in tensors.items() if not _counts(name)}, modules


def _counts(name: str) -> bool:
    return str(name).rsplit(".", 1)[-1] == "num_batches_tracked"


def _group(name: str) -> str:
    """Returns the name of the layer that a tensor belongs to."""
    return (
        name.split(".parametrizations.")[0]
        if ".parametrizations." in name
        else (name.rpartition(".")[0])
    )


def _groups(tensors: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(map(_group, tensors)))


def _renamed(name: str, rename: Rename | None) -> str:
    if callable(rename):
        return rename(name)
    for old in sorted(rename or {}, key=len, reverse=True):
        if old in ("", name) or name.startswith(f"{old}."):
            rest = name[len(old) :].lstrip(".")
            return ".".join(part for part in ((rename or {})[old], rest) if part)
    return name


# The model.


def _layers(model: Any) -> dict[str, Any]:
    """Returns the layers of a model that can be filled, by path."""
    from flax import nnx

    found = {}
    for path, node in nnx.iter_modules(model):
        if _kind(node) in (*CONVOLUTIONS, "Linear", *NAMES):
            found[_joined(path)] = node
    return dict(sorted(found.items()))


def _joined(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def _kind(layer: Any) -> str | None:
    """Returns the name of a layer's class if Flax or this library defines it."""
    cls = type(layer)
    own = cls.__module__.startswith(("flax.nnx.", "tconvjax.nnx."))
    return cls.__name__ if own else None


def _variable(where: str, layer: Any, name: str, value: np.ndarray) -> Any:
    variable = getattr(layer, name, None)
    if variable is None or variable[...].shape != value.shape:
        has = "none" if variable is None else f"shape {variable[...].shape}"
        raise ValueError(
            f"{where}: {name} must have the shape of PyTorch's; got {has}, there {value.shape}. Build the layer "
            "with its sizes, and with a bias where it has one."
        )
    return variable


def _values(
    where: str,
    layer: Any,
    name: str,
    tensors: Mapping[str, Any],
    module: Any,
    image: tuple[int, ...] | None,
) -> dict[str, np.ndarray]:
    """Returns the values of a layer's parameters, by name; refuses those of another layer."""
    kind, prefix = _kind(layer), f"{name}." if name else ""
    _check_module(where, layer, module)
    if kind in NAMES:
        values = {
            parameter: torch_layers.array_of(where, tensor, tensors[prefix + tensor])
            for parameter, tensor in NAMES[kind].items()
            if prefix + tensor in tensors
        }
        extra = len(tensors) - len(values)
        if extra:
            raise ValueError(
                f"{where}: a {kind} has only {list(NAMES[kind].values())}; got {sorted(tensors)}."
            )
        if kind == "PReLU":
            values = {n: v.reshape(()) if v.size == 1 else v for n, v in values.items()}
    else:
        weight, bias = torch_layers.weights_in_use(where, tensors, prefix)
        kernel = (
            _linear(where, weight, image) if kind == "Linear" else _kernel(where, layer, weight)
        )
        values = {"kernel": kernel}
        if bias is not None:
            values["bias"] = _vector(layer, bias, image)
    absent = [
        n
        for n in (*NAMES.get(kind or "", {}), "bias")
        if getattr(layer, n, None) is not None and n not in values
    ]
    if absent:
        raise ValueError(
            f"{where}: every parameter must be among the tensors; got none for {absent}. Build the layer without it."
        )
    return values


def _kernel(where: str, layer: Any, weight: np.ndarray) -> np.ndarray:
    """Returns PyTorch's weight of a convolution as the kernel of a layer."""
    kernel = channels_last(weight)
    kind = _kind(layer)
    if kind == "ConvTranspose" and not layer.transpose_kernel:
        kernel = exchanged(kernel, getattr(layer, "feature_group_count", 1))
    if kind == "SubpixelConv" and layer.order == "DCR":
        kernel = _depth_last(kernel, prod(layer.scale))
    if getattr(layer, "mask", None) is not None or getattr(layer, "balanced", False):
        raise ValueError(
            f"{where}: a layer with a mask or balanced=True computes with another kernel. Load into a plain layer."
        )
    return kernel


def _depth_last(array: np.ndarray, phases: int) -> np.ndarray:
    """Returns outputs of the order 'CRD' in the order 'DCR'."""
    split = array.reshape(*array.shape[:-1], -1, phases)
    return split.swapaxes(-1, -2).reshape(array.shape)


def _vector(layer: Any, bias: np.ndarray, image: tuple[int, ...] | None) -> np.ndarray:
    if _kind(layer) == "SubpixelConv" and layer.order == "DCR":
        return _depth_last(bias, prod(layer.scale))
    if image is not None and prod(image) == bias.size and prod(image) != layer.in_features:
        return _channels_moved(bias[None], image)[0]
    return bias


def _linear(where: str, weight: np.ndarray, image: tuple[int, ...] | None) -> np.ndarray:
    """Returns the kernel of a Linear layer, the vectors of images in our order."""
    if weight.ndim != 2:
        raise ValueError(f"{where}: the weight of a Linear has two axes; got shape {weight.shape}.")
    if image is None:
        return weight.T
    reads, writes = (prod(image) == n for n in weight.shape[::-1])
    if reads == writes:
        raise ValueError(
            f"{where}: prod of flattened must be the number of inputs or of outputs, not both; got {image} for "
            f"{weight.shape[1]} inputs and {weight.shape[0]} outputs."
        )
    return _channels_moved(weight, image).T if reads else _channels_moved(weight.T, image)


def _channels_moved(rows: np.ndarray, image: tuple[int, ...]) -> np.ndarray:
    """Returns vectors of images `(channels, *spatial)` as vectors of images `(*spatial, channels)`."""
    return np.moveaxis(rows.reshape(-1, *image), 1, -1).reshape(rows.shape)


def _check_module(where: str, layer: Any, module: Any) -> None:
    """Raises unless a module of PyTorch computes what the layer does, apart from weights."""
    kind = _kind(layer)
    if module is None:
        return
    if kind in NORMS and layer.epsilon != module.eps:
        raise ValueError(
            f"{where}: epsilon must be that of PyTorch; got {layer.epsilon}, there {module.eps}. "
            "Build the layer with it."
        )
    if kind in CONVOLUTIONS:
        own, theirs = (
            facts(where, c) for c in (as_layer(where, layer), torch_layers.from_torch(module))
        )
        if own != theirs:
            raise ValueError(
                f"{where}: both layers must have the same sizes, groups and padding; got {own}, there {theirs}."
            )
