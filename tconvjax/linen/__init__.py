"""Layers for Flax Linen, the twins of `tconvjax.nnx`: same names, options, defaults and numbers.

As in Linen, `features` are the channels of the output, the channels of the input come from the array, and parameters
live outside. Flax's fields come first, in Flax's order; ours follow. `tconvjax.nnx` lists the differences from Flax.
"""

from tconvjax.linen._composite import Carafe as Carafe
from tconvjax.linen._composite import DySample as DySample
from tconvjax.linen._composite import LargeContextConvTranspose as LargeContextConvTranspose
from tconvjax.linen._composite import PixelConvTranspose as PixelConvTranspose
from tconvjax.linen._convolution import Conv as Conv
from tconvjax.linen._convolution import ConvTranspose as ConvTranspose
from tconvjax.linen._convolution import ResizeConv as ResizeConv
from tconvjax.linen._convolution import SubpixelConv as SubpixelConv
from tconvjax.linen._convolution import Upsample as Upsample
from tconvjax.linen._convolution import stream as stream
from tconvjax.linen._fixed import BilinearAdditive as BilinearAdditive
from tconvjax.linen._fixed import BlurPool as BlurPool
from tconvjax.linen._fixed import FilteredActivation as FilteredActivation
from tconvjax.linen._fixed import Hold as Hold
from tconvjax.linen._fixed import MaxBlurPool as MaxBlurPool
from tconvjax.linen._fixed import MaxUnpool as MaxUnpool
from tconvjax.linen._repairing import artifact_free as artifact_free
from tconvjax.linen._repairing import balance as balance
from tconvjax.linen._repairing import repair as repair
