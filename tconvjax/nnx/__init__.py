"""Layers for Flax NNX: parameters and one call of the function of the same name.

Arguments are Flax's, in Flax's order, with Flax's names and defaults; ours follow, keyword-only. Parameters have Flax's
names and shapes, so a Flax checkpoint loads unchanged. Differences: integers in the `padding` of `ConvTranspose` pad
the forward convolution (`padding_convention='dilated'` restores Flax's meaning); its default initializer keeps the
variance of the input for all strides. The
Linen twins are in `tconvjax.linen`; both resolve their arguments in `tconvjax._layers`.
"""

from tconvjax.nnx._composite import Carafe as Carafe
from tconvjax.nnx._composite import DySample as DySample
from tconvjax.nnx._composite import LargeContextConvTranspose as LargeContextConvTranspose
from tconvjax.nnx._composite import PixelConvTranspose as PixelConvTranspose
from tconvjax.nnx._convolution import Conv as Conv
from tconvjax.nnx._convolution import ConvTranspose as ConvTranspose
from tconvjax.nnx._convolution import ResizeConv as ResizeConv
from tconvjax.nnx._convolution import SubpixelConv as SubpixelConv
from tconvjax.nnx._convolution import Upsample as Upsample
from tconvjax.nnx._convolution import stream as stream
from tconvjax.nnx._fixed import BilinearAdditive as BilinearAdditive
from tconvjax.nnx._fixed import BlurPool as BlurPool
from tconvjax.nnx._fixed import FilteredActivation as FilteredActivation
from tconvjax.nnx._fixed import Hold as Hold
from tconvjax.nnx._fixed import MaxBlurPool as MaxBlurPool
from tconvjax.nnx._fixed import MaxUnpool as MaxUnpool
from tconvjax.nnx._repairing import artifact_free as artifact_free
from tconvjax.nnx._repairing import balance as balance
from tconvjax.nnx._repairing import repair as repair
