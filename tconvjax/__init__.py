"""Learned upsampling for JAX: exact, fast, free of checkerboards."""

from tconvjax import analysis as analysis
from tconvjax import initializers as initializers
from tconvjax import interop as interop
from tconvjax import metrics as metrics
from tconvjax.acceleration import accelerate as accelerate
from tconvjax.auditing import audit as audit
from tconvjax.geometry import conv_transpose_shape as conv_transpose_shape
from tconvjax.ops.adaptive import carafe as carafe
from tconvjax.ops.adaptive import dysample as dysample
from tconvjax.ops.convolution import conv as conv
from tconvjax.ops.convolution import conv_matrix as conv_matrix
from tconvjax.ops.convolution import conv_transpose as conv_transpose
from tconvjax.ops.filters import blur_pool as blur_pool
from tconvjax.ops.filters import hold as hold
from tconvjax.ops.filters import max_blur_pool as max_blur_pool
from tconvjax.ops.filters import upfirdn as upfirdn
from tconvjax.ops.pooling import max_pool as max_pool
from tconvjax.ops.pooling import max_unpool as max_unpool
from tconvjax.ops.resize import bilinear_additive as bilinear_additive
from tconvjax.ops.resize import resize as resize
from tconvjax.ops.resize import resize_conv as resize_conv
from tconvjax.ops.subpixel import pixel_conv_transpose as pixel_conv_transpose
from tconvjax.ops.subpixel import pixel_shuffle as pixel_shuffle
from tconvjax.ops.subpixel import pixel_unshuffle as pixel_unshuffle
from tconvjax.ops.subpixel import subpixel_conv as subpixel_conv
