"""Layers for Flax Linen, the twins of `tconvjax.nnx`: same names, options, defaults and numbers.

As in Linen, `features` stands for the channels of the output, those of the input come from the array, and parameters
live outside. Flax's fields come first, in Flax's order; ours follow. `tconvjax.nnx` says what differs from Flax.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from tconvjax import layers, repairs
from tconvjax.geometry import Ints, Padding, PaddingConvention, PaddingMode
from tconvjax.ops.convolution import conv_transpose
from tconvjax.ops.filters import blur_pool
from tconvjax.ops.lowerings import Implementation
from tconvjax.ops.resize import Method, ResizeConvImplementation, resize_conv
from tconvjax.ops.subpixel import Order, subpixel_conv
from tconvjax.repairs import Report

default_bias_init = jax.nn.initializers.zeros


class ConvTranspose(nn.Module):
    """Transposed convolution, `tconvjax.conv_transpose` with parameters `kernel` and `bias`.

    Attributes: those of `tconvjax.nnx.ConvTranspose`, with `features` for `out_features`.

    Example:
      >>> layer = ConvTranspose(3, (4, 4), 2, padding=1)
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((1, 32, 32, 3), (4, 4, 8, 3))
    """

    features: int
    kernel_size: Ints
    strides: Ints | None = None
    padding: Padding = "SAME"
    kernel_dilation: Ints | None = None
    use_bias: bool = True
    mask: jax.Array | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer | None = None
    bias_init: Initializer = default_bias_init
    transpose_kernel: bool = False
    promote_dtype: Callable[..., Any] = promote_dtype
    preferred_element_type: DTypeLike | None = None
    padding_mode: PaddingMode = "zeros"
    output_padding: Ints | None = None
    feature_group_count: int = 1
    padding_convention: PaddingConvention = "forward"
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        _refuse(self, conv_transpose)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, output_shape: Sequence[int] | None = None) -> jax.Array:
        """Returns `conv_transpose(x, kernel) + bias`; see there for `output_shape`."""
        return _apply(self, conv_transpose, x, output_shape=output_shape)


class Conv(nn.Module):
    """Convolution, `tconvjax.conv` with parameters `kernel` and `bias`.

    Attributes: those of `tconvjax.nnx.Conv`, with `features` for `out_features`.

    Example:
      >>> layer = Conv(8, (3, 3), 2)
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[0].shape
      (1, 16, 16, 8)
    """

    features: int
    kernel_size: Ints
    strides: Ints | None = 1
    padding: Padding = "SAME"
    input_dilation: Ints | None = 1
    kernel_dilation: Ints | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: jax.Array | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer | None = None
    bias_init: Initializer = default_bias_init
    promote_dtype: Callable[..., Any] = promote_dtype
    preferred_element_type: DTypeLike | None = None
    padding_mode: PaddingMode = "zeros"
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        _refuse(self, layers.strided_conv)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `conv(x, kernel) + bias`."""
        return _apply(self, layers.strided_conv, x)


class ResizeConv(nn.Module):
    """Resize-convolution, `tconvjax.resize_conv` with parameters `kernel` and `bias`.

    Attributes: those of `tconvjax.nnx.ResizeConv`, with `features` for `out_features`.

    Example:
      >>> layer = ResizeConv(3, (3, 3), 2)
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))[0].shape
      (1, 32, 32, 3)
    """

    features: int
    kernel_size: Ints
    scale: Ints
    method: Method = "nearest"
    padding: Padding = "SAME"
    kernel_dilation: Ints | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: jax.Array | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer | None = None
    bias_init: Initializer = default_bias_init
    promote_dtype: Callable[..., Any] = promote_dtype
    preferred_element_type: DTypeLike | None = None
    padding_mode: PaddingMode = "zeros"
    implementation: ResizeConvImplementation = "auto"

    def __post_init__(self) -> None:
        _refuse(self, resize_conv)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `resize_conv(x, kernel) + bias`."""
        return _apply(self, resize_conv, x)


class SubpixelConv(nn.Module):
    """Sub-pixel convolution, `tconvjax.subpixel_conv` with parameters `kernel` and `bias`.

    Attributes: those of `tconvjax.nnx.SubpixelConv`, with `features` for `out_features`.

    Example:
      >>> layer = SubpixelConv(3, (3, 3), 2)
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))[0].shape
      (1, 32, 32, 3)
    """

    features: int
    kernel_size: Ints
    scale: Ints
    order: Order = "CRD"
    padding: Padding = "SAME"
    kernel_dilation: Ints | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: jax.Array | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer | None = None
    bias_init: Initializer = default_bias_init
    promote_dtype: Callable[..., Any] = promote_dtype
    preferred_element_type: DTypeLike | None = None
    padding_mode: PaddingMode = "zeros"
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        _refuse(self, subpixel_conv)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `subpixel_conv(x, kernel) + bias`."""
        return _apply(self, subpixel_conv, x)


class BlurPool(nn.Module):
    """Anti-aliased pooling, `tconvjax.blur_pool`; it has no parameters.

    Attributes: those of `tconvjax.nnx.BlurPool`.

    Example:
      >>> BlurPool((2, 2)).apply({}, jnp.zeros((1, 16, 16, 8))).shape
      (1, 8, 8, 8)
    """

    strides: Sequence[int]
    filter_size: int = 4
    padding_mode: PaddingMode = "reflect"

    def __post_init__(self) -> None:
        layers.blur_options("BlurPool", self.strides, self.filter_size, self.padding_mode)
        super().__post_init__()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `blur_pool(x)`."""
        return blur_pool(
            x, self.strides, filter_size=self.filter_size, padding_mode=self.padding_mode
        )


class Upsample(nn.Module):
    """Learned upsampling by whole factors with a switch between its kinds, for ablations.

    Attributes: those of `tconvjax.nnx.Upsample`, with `features` for `out_features`, and `options`, a mapping of other
    keywords of the layer inside. Its parameters are those of this one layer, under the name `layer`.

    Example:
      >>> layer = Upsample(3, (3, 3), 2, method="nearest", options={"use_bias": False})
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))
      >>> y.shape, list(variables["params"]["layer"])
      ((1, 32, 32, 3), ['kernel'])
    """

    features: int
    kernel_size: Ints
    scale: Ints
    method: layers.UpsampleMethod = "conv_transpose"
    order: Order | None = None
    padding_mode: PaddingMode = "zeros"
    options: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        self._layer(parent=None)
        self.options = FrozenDict(self.options)  # as hashable as any other layer
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the enlarged images."""
        return self._layer(name="layer")(x)

    def _layer(self, **place: Any) -> nn.Module:
        name, own = layers.upsampler(
            "Upsample", self.kernel_size, self.scale, self.method, self.order, self.options
        )
        return globals()[name](
            self.features,
            self.kernel_size,
            self.scale,
            padding_mode=self.padding_mode,
            **own,
            **self.options,
            **place,
        )


def balance(module: nn.Module, variables: Any, *args: Any, **kwargs: Any) -> tuple[Any, Report]:
    """Repairs the transposed convolutions of a trained model: a constant stays constant again.

    Every kernel of a `ConvTranspose`, of this module or of Flax, becomes `analysis.balance(kernel)`, the nearest one
    without a checkerboard on constants.

    Args:
      module: any Linen module, whose layers are found by following one call.
      variables: of the module; left as they are.
      *args: of the call; arrays also show what changes in the output, of `jax.ShapeDtypeStruct` the shapes are enough.
      **kwargs: of `module.apply`: `rngs`, `method`, `mutable` and the keywords of the call.

    Returns:
      The variables, in the same containers and boxes, with balanced kernels; and what was done to each layer, which
      were skipped and why (a dilated or masked kernel, one smaller than its strides), and the change of the output.
      Layers that `nn.vmap` or `nn.scan` stacked along leading axes are one layer here.

    Raises:
      TypeError: if `module` is not a Linen module.

    Example:
      >>> layer, x = ConvTranspose(3, (3, 3), 2), jnp.ones((1, 16, 16, 8))
      >>> variables, report = balance(layer, layer.init(jax.random.key(0), x), x)
      >>> report.layers[""].before > 0.3, report.layers[""].after < 1e-9
      (True, True)

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"balance: module must be a linen.Module; got {type(module).__name__}. For NNX: tconvjax.nnx.balance."
        )
    kwargs |= {"mutable": kwargs.get("mutable") or []}  # of which `apply` returns a pair
    given = variables, args, kwargs
    kernels, report = repairs.repaired(_met(module, *given))
    at = {("params", *path, "kernel"): kernel for path, kernel in kernels.items()}
    new = jax.tree.map_with_path(lambda path, leaf: at.get(_names(path), leaf), variables)
    if not repairs.is_abstract(given):
        before, after = (module.apply(v, *args, **kwargs)[0] for v in (variables, new))
        report = report._replace(output_change=repairs.relative_change(before, after))
    return new, report


def _met(
    module: nn.Module, variables: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[tuple[str, ...], repairs.Layer]:
    """Returns the transposed convolutions that one call meets, by their paths; only arrays are abstract in it."""
    leaves, tree = jax.tree.flatten((variables, args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}
    stored = {_names(path): leaf for path, leaf in jax.tree.leaves_with_path(variables)}
    met: dict[tuple[str, ...], repairs.Layer] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y, layer, method = call(*args, **kwargs), context.module, context.method_name
        if isinstance(layer, ConvTranspose | nn.ConvTranspose) and method == "__call__":
            one = nn.unbox(layer.get_variable("params", "kernel"))
            kernel = stored.get(("params", *layer.path, "kernel"))
            options = layer.clone(parent=None)  # without the tracers
            met[layer.path] = repairs.Layer(options, one.shape, kernel)
        return y

    def trace(arrays: Mapping[int, jax.Array]) -> None:
        mixed = [arrays.get(*leaf) for leaf in enumerate(leaves)]
        variables, args, kwargs = jax.tree.unflatten(tree, mixed)
        module.apply(variables, *args, **kwargs)

    # New metadata, since nn.jit does not call the layers again where it finds an old trace.
    with nn.intercept_methods(note), set_xla_metadata(balance=uuid4().hex):
        jax.eval_shape(trace, arrays)
    return met


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns the keys on the way to a leaf, without those inside of a box such as `nn.Partitioned`."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def _spec(module: Any, function: Callable[..., jax.Array], in_features: int | None) -> layers.Spec:
    who = type(module).__name__
    options = {name: getattr(module, name) for name in layers.option_names(function)}
    features = in_features, module.features
    resolved = layers.spec(
        who, function, *features, module.kernel_size, out_name="features", **options
    )
    mask = module.mask if in_features else None  # whose shape is not known without them
    layers.check_parameters(who, mask, resolved.kernel_shape, module.dtype, module.param_dtype)
    return resolved


def _refuse(module: Any, function: Callable[..., jax.Array]) -> None:
    """Raises at construction for what every call would refuse."""
    _spec(module, function, None)


def _apply(
    module: Any, function: Callable[..., jax.Array], x: jax.Array, **at_call: Any
) -> jax.Array:
    """Returns `function(x, masked kernel) + bias`, all in the dtype of the computation."""
    x = layers.image(type(module).__name__, x)
    spec = _spec(module, function, x.shape[-1])
    init = module.kernel_init or spec.kernel_init
    kernel = module.param("kernel", init, spec.kernel_shape, module.param_dtype)
    if module.mask is not None:
        kernel = kernel * module.mask
    bias = None
    if module.use_bias:
        bias = module.param("bias", module.bias_init, spec.bias_shape, module.param_dtype)
    x, kernel, bias = module.promote_dtype(x, kernel, bias, dtype=module.dtype)
    return layers.apply(function, spec.options | at_call, x, kernel, bias)
