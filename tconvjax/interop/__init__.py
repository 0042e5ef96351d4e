"""Layers of PyTorch, Keras, Flax and ONNX as layers of this library, and back: arguments and weights together.

The peers describe the same layers. They differ in where the kernel keeps its channels, and in what their numbers say
about the pixels that are cropped from the full output of `s(n − 1) + d(k − 1) + 1` pixels:

    peer       kernel, transposed            kernel, plain                 crops (low, high) of a transposed convolution
    PyTorch    (in, out/g, *kernel_size)     (out, in/g, *kernel_size)     (p, p − output_padding)
    ONNX       (in, out/g, *kernel_size)     (out, in/g, *kernel_size)     pads per side, auto_pad or output_shape
    Keras      (*kernel_size, out, in)       (*kernel_size, in/g, out)     'valid' or 'same', and output_padding
    Flax       (*kernel_size, in, out)       (*kernel_size, in/g, out)     extent − 1 − pads of the dilated image
    ours       (*kernel_size, out/g, in)     (*kernel_size, in/g, out)     padding; a negative crop appends zeros

The kernels of the first three are painted as they are, here with `transpose_kernel=True`; only axes move. Flax's is
painted flipped, and stays as it is. Images are channels last here, whatever the peer does.

Nothing is taken on trust. A layer that can be called must be of the peer's own class, since a subclass, a hook or a
wrapper may compute anything. What is known of these (weight norm, spectral norm, pruning, masks, `balanced`) becomes
the kernel that the layer uses, and everything else is refused by name. Then both layers run on a small random image,
and a difference beyond rounding is refused, too. The layer that is converted stays as it is.

No peer is imported: weights are arrays, mappings of arrays or safetensors files, and an object that has the attributes
of a layer and cannot be called counts as one. Nothing is ever unpickled.
"""

from tconvjax.interop._converted import Converted as Converted
from tconvjax.interop._converted import Foreign as Foreign
from tconvjax.interop._flax import from_flax as from_flax
from tconvjax.interop._keras import from_keras as from_keras
from tconvjax.interop._onnx import from_onnx as from_onnx
from tconvjax.interop._onnx import to_onnx as to_onnx
from tconvjax.interop._torch import from_torch as from_torch
from tconvjax.interop._torch import to_torch as to_torch
