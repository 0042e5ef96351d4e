"""One layer under torch: eager, all cores, channels first in memory or channels last.

Runs where JAX runs: on CUDA if JAX is on an accelerator, else on the CPU. Importing this module needs torch.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import torch
from torch.nn import functional

from experiments.benchmark import timing
from experiments.benchmark.config import Layer
from experiments.benchmark.shared import Arrays, Prepared, Unavailable

LAST = "torch_channels_last"
Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def prepare(layer: Layer, dtype: str, peer: str, direction: str, arrays: Arrays) -> Prepared:
    """Returns a layer under torch, ready.

    Args:
      layer: to run.
      dtype: of all tensors.
      peer: 'torch' (contiguous) or 'torch_channels_last'.
      direction: 'forward' or 'train'.
      arrays: channels last, the kernel as in lax.

    Raises:
      Unavailable: if torch has no such format or layer, or does not see the accelerator that JAX runs on.
    """
    if peer == LAST and layer.rank == 1:
        raise Unavailable("torch has no channels_last format in 1-D")
    if layer.kind == "subpixel_conv" and layer.rank != 2:
        raise Unavailable(f"torch shuffles no pixels in {layer.rank}-D")
    place = device()
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    to = {"memory_format": formats[layer.rank]} if peer == LAST else {}

    def tensor(array: np.ndarray) -> torch.Tensor:
        value = torch.from_numpy(np.ascontiguousarray(array)).to(place, getattr(torch, dtype))
        return value.contiguous(**to)

    x = tensor(np.moveaxis(arrays.x, -1, 1))
    weight = tensor(weight_of(layer, arrays.kernel))
    cotangent = tensor(np.moveaxis(arrays.cotangent, -1, 1))
    function = _function(layer)

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return function(x, weight)

    def train() -> torch.Tensor:
        x.grad = weight.grad = None
        y = function(x, weight)
        y.backward(cotangent)
        return y

    call = train if direction == "train" else forward
    x.requires_grad_(direction == "train")
    weight.requires_grad_(direction == "train")

    def outputs() -> tuple[np.ndarray, ...]:
        y = _array(call())
        if direction == "forward":
            return (np.moveaxis(y, 1, -1),)
        gradients = (np.moveaxis(_array(x.grad), 1, -1), kernel_of(layer, _array(weight.grad)))
        return (np.moveaxis(y, 1, -1), *gradients)

    return Prepared(timing.Subject(peer, call, wait), outputs)


@cache
def device() -> torch.device:
    """Returns the device to run on, and gives torch all cores.

    Raises:
      Unavailable: if JAX is on an accelerator that torch does not see.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    if jax.default_backend() == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Unavailable("this torch does not see the accelerator that jax runs on")
    torch.backends.cudnn.benchmark = True  # tries algorithms, as XLA does
    return torch.device("cuda")


def wait(out: Any) -> None:
    """Returns when everything that was started has ended."""
    del out
    if device().type == "cuda":
        torch.cuda.synchronize()


def weight_of(layer: Layer, kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel `(*k, in / groups, out)` as torch's weight.

    `(out, in / groups, *k)`, and `(in, out / groups, *k)` with all taps reversed for a transposed convolution: torch
    paints its kernel as it is, lax flips it.
    """
    if layer.kind != "conv_transpose":
        return np.moveaxis(kernel, (-1, -2), (0, 1))
    g, k = layer.groups, layer.kernel
    split = np.flip(kernel, tuple(range(layer.rank))).reshape(*k, -1, g, layer.out_features // g)
    return np.moveaxis(split, (-2, -3, -1), (0, 1, 2)).reshape(layer.in_features, -1, *k)


def kernel_of(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """Undoes `weight_of`."""
    if layer.kind != "conv_transpose":
        return np.moveaxis(weight, (0, 1), (-1, -2))
    g, k = layer.groups, layer.kernel
    split = weight.reshape(g, layer.in_features // g, layer.out_features // g, *k)
    kernel = np.moveaxis(split, (0, 1, 2), (-2, -3, -1)).reshape(layer.kernel_shape)
    return np.flip(kernel, tuple(range(layer.rank)))


def _function(layer: Layer) -> Function:
    convolve: Any = getattr(functional, f"conv{layer.rank}d")
    if layer.kind == "conv_transpose":
        return partial(
            getattr(functional, f"conv_transpose{layer.rank}d"),
            stride=layer.scale,
            padding=layer.pads,
            output_padding=layer.output_padding,
            groups=layer.groups,
        )
    strides = layer.scale if layer.kind == "conv" else (1,) * layer.rank
    convolve = partial(convolve, stride=strides, padding=layer.pads, groups=layer.groups)
    if layer.kind == "conv":
        return convolve
    if layer.kind == "subpixel_conv":
        if len(set(layer.scale)) > 1:
            raise Unavailable("torch shuffles pixels by one factor for all axes")
        return lambda x, w: functional.pixel_shuffle(convolve(x, w), layer.scale[0])
    smooth = ("linear", "bilinear", "trilinear")[layer.rank - 1]
    mode = "nearest" if layer.method == "nearest" else smooth
    scale = tuple(map(float, layer.scale))
    return lambda x, w: convolve(functional.interpolate(x, scale_factor=scale, mode=mode), w)


def _array(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
