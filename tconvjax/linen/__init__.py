"""Layers for Flax Linen, the twins of `tconvjax.nnx`: same names, options, defaults and numbers.

As in Linen, `features` stands for the channels of the output, those of the input come from the array, and parameters
live outside. Flax's fields come first, in Flax's order; ours follow. `tconvjax.nnx` says what differs from Flax.
"""

from tconvjax.linen.composite import Carafe as Carafe
from tconvjax.linen.composite import DySample as DySample
from tconvjax.linen.composite import LargeContextConvTranspose as LargeContextConvTranspose
from tconvjax.linen.composite import PixelConvTranspose as PixelConvTranspose
from tconvjax.linen.convolution import Conv as Conv
from tconvjax.linen.convolution import ConvTranspose as ConvTranspose
from tconvjax.linen.convolution import ResizeConv as ResizeConv
from tconvjax.linen.convolution import SubpixelConv as SubpixelConv
from tconvjax.linen.convolution import Upsample as Upsample
from tconvjax.linen.fixed import BilinearAdditive as BilinearAdditive
from tconvjax.linen.fixed import BlurPool as BlurPool
from tconvjax.linen.fixed import Hold as Hold
from tconvjax.linen.fixed import MaxBlurPool as MaxBlurPool
from tconvjax.linen.repairing import balance as balance
