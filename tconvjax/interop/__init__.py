"""Layers of PyTorch, Keras, Flax and ONNX as layers of this library, and back: arguments and weights together.

The peers describe the same layers. They differ in the order of the axes of a kernel, and in how their arguments give
the crops: the pixels that a layer cuts off both ends of its full output of `s(n − 1) + d(k − 1) + 1` pixels.

    peer       kernel, transposed            kernel, plain                 crops (low, high) of a transposed convolution
    PyTorch    (in, out/g, *kernel_size)     (out, in/g, *kernel_size)     (p, p − output_padding)
    ONNX       (in, out/g, *kernel_size)     (out, in/g, *kernel_size)     pads per side, auto_pad or output_shape
    Keras      (*kernel_size, out, in)       (*kernel_size, in/g, out)     'valid' or 'same', and output_padding
    Flax       (*kernel_size, in, out)       (*kernel_size, in/g, out)     extent − 1 − pads of the dilated image
    ours       (*kernel_size, out/g, in)     (*kernel_size, in/g, out)     padding; a negative crop appends zeros

PyTorch, ONNX and Keras paint their kernels as they are: our layer has `transpose_kernel=True`, and only axes move.
Flax paints its kernel flipped, as ours does by default, and no axis moves. Our images are channels last for all peers.

The converters trust nothing. A layer that can be called must be of the peer's own class, since a subclass, a hook or a
wrapper may compute anything. The converters compute the kernel in use from weight norm, spectral norm, pruning, masks
and `balanced`, and refuse everything else by its name. Then both layers run on a small random image, and a difference
beyond rounding is an error. The source stays as it is.

A converter imports no peer that its source has not imported. Weights are arrays, mappings of arrays or safetensors
files; an object that has the attributes of a layer and cannot be called counts as one. Nothing is ever unpickled.
"""

from tconvjax.interop._converted import Converted as Converted
from tconvjax.interop._converted import Foreign as Foreign
from tconvjax.interop._flax import from_flax as from_flax
from tconvjax.interop._keras import from_keras as from_keras
from tconvjax.interop._models import Loaded as Loaded
from tconvjax.interop._models import load_torch as load_torch
from tconvjax.interop._models import verify as verify
from tconvjax.interop._onnx import from_onnx as from_onnx
from tconvjax.interop._onnx import to_onnx as to_onnx
from tconvjax.interop._torch import from_torch as from_torch
from tconvjax.interop._torch import to_torch as to_torch
