"""Learned upsampling for JAX: exact, fast, free of checkerboards."""

import typing as _typing
from importlib import import_module as _import_module

from tconvjax import analysis as analysis
from tconvjax import initializers as initializers
from tconvjax import interop as interop
from tconvjax import metrics as metrics
from tconvjax._acceleration import accelerate as accelerate
from tconvjax._geometry import conv_transpose_shape as conv_transpose_shape
from tconvjax._measure import measure as measure
from tconvjax._ops.adaptive import carafe as carafe
from tconvjax._ops.adaptive import dysample as dysample
from tconvjax._ops.alias_free import filtered_activation as filtered_activation
from tconvjax._ops.alias_free import lowpass as lowpass
from tconvjax._ops.convolution import conv as conv
from tconvjax._ops.convolution import conv_matrix as conv_matrix
from tconvjax._ops.convolution import conv_transpose as conv_transpose
from tconvjax._ops.filters import blur_pool as blur_pool
from tconvjax._ops.filters import hold as hold
from tconvjax._ops.filters import max_blur_pool as max_blur_pool
from tconvjax._ops.filters import upfirdn as upfirdn
from tconvjax._ops.pooling import max_pool as max_pool
from tconvjax._ops.pooling import max_unpool as max_unpool
from tconvjax._ops.resize import bilinear_additive as bilinear_additive
from tconvjax._ops.resize import resize as resize
from tconvjax._ops.resize_conv import resize_conv as resize_conv
from tconvjax._ops.streaming import causal_conv as causal_conv
from tconvjax._ops.streaming import causal_conv_transpose as causal_conv_transpose
from tconvjax._ops.subpixel import pixel_conv_transpose as pixel_conv_transpose
from tconvjax._ops.subpixel import pixel_shuffle as pixel_shuffle
from tconvjax._ops.subpixel import pixel_unshuffle as pixel_unshuffle
from tconvjax._ops.subpixel import subpixel_conv as subpixel_conv
from tconvjax._program import audit as audit
from tconvjax._repair import repair as repair
from tconvjax._version import __version__ as __version__

# Imported on first use: `import tconvjax` imports no Flax.
_LAZY = ("cli", "linen", "nnx", "plot")

if _typing.TYPE_CHECKING:
    from tconvjax import cli as cli
    from tconvjax import linen as linen
    from tconvjax import nnx as nnx
    from tconvjax import plot as plot
else:  # a type checker that sees it takes every name for an attribute

    def __getattr__(name):
        if name in _LAZY:
            return _import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    public = (name for name in globals() if not name.startswith("_"))
    return sorted({*public, *_LAZY, "__version__"})
