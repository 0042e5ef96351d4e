"""Repairs of trained models."""

from typing import Any

from flax import nnx

from tconvjax import _layers as layers
from tconvjax import _repairs as repairs
from tconvjax._repair import Repaired
from tconvjax._repair import repair as repair_params
from tconvjax._repairs import Report
from tconvjax.nnx._convolution import ConvTranspose, ResizeConv


def balance(module: nnx.Module, *args: Any, **kwargs: Any) -> Report:
    """Repairs the transposed convolutions of a trained model in place: a constant stays constant again.

    Every kernel of a `ConvTranspose`, of this module or of Flax, becomes `analysis.balance(kernel)`, the nearest one
    without a checkerboard on constants.

    Args:
      module: any NNX module; only its kernels are changed.
      *args: of the module, to measure the change of its output on copies with the same state; without them, or with a
        `jax.ShapeDtypeStruct` among the arrays, nothing is measured.
      **kwargs: of the module, likewise.

    Returns:
      The change of each layer, the skipped layers with reasons (a kernel dilated, masked, or smaller than its strides),
      and the change of the output. Layers that `nnx.vmap` stacked along leading axes are one layer here.

    Raises:
      TypeError: if `module` is not an NNX module.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> layer = ConvTranspose(8, 3, (3, 3), 2, rngs=nnx.Rngs(0))
      >>> report = balance(layer, jnp.ones((1, 16, 16, 8)))
      >>> report.layers[""].before > 0.3, report.layers[""].after < 1e-9
      (True, True)

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658.
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"balance: module must be an nnx.Module; got {type(module).__name__}. For Linen: tconvjax.linen.balance."
        )
    call = module, args, kwargs
    measured = (args or kwargs) and not repairs.is_abstract((nnx.state(module), args, kwargs))

    def output() -> Any:
        # A clone: a call may change counters, statistics and random streams.
        model, args, kwargs = nnx.clone(call)
        return model(*args, **kwargs)

    before = output() if measured else None
    candidates: dict[tuple[Any, ...], repairs.Candidate] = {}
    for path, node in nnx.iter_modules(module):
        if isinstance(node, ConvTranspose | nnx.ConvTranspose):
            layer: Any = node
            candidates[path] = repairs.Candidate(
                layer, layer.kernel_shape, layer.kernel.get_value()
            )
    kernels, report = repairs.repaired(candidates)
    for path, kernel in kernels.items():
        candidates[path].module.kernel[...] = kernel
    change = repairs.relative_change(before, output()) if measured else None
    return report._replace(output_change=change)


def repair(module: nnx.Module, *args: Any, **options: Any) -> Repaired:
    """Repairs a trained model in place, on data: patterns that its upsampling leaves in the output fade.

    Args:
      module: any NNX module; only the kernels that make the pattern are changed.
      *args: of the module: data as varied as those to come.
      **options: `strength`, `iterations` and `layers` of `tconvjax.repair`.

    Returns:
      As `tconvjax.repair`; `params` is the state of the model's `nnx.Param`.

    Raises:
      TypeError: if `module` is not an NNX module.
      ValueError: as `tconvjax.repair`.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> layer = ConvTranspose(4, 1, (4, 4), 2, padding=1, rngs=nnx.Rngs(0))
      >>> x = jax.random.normal(jax.random.key(0), (16, 16, 16, 4)) + 1
      >>> found = repair(layer, x)
      >>> len(found.layers), found.after < found.before
      (1, True)

    References:
      See `tconvjax.repair`.
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"repair: module must be an nnx.Module; got {type(module).__name__}. For Linen: tconvjax.linen.repair."
        )
    definition, params, *rest = nnx.split(module, nnx.Param, ...)

    def fn(params: Any, *args: Any) -> Any:
        return nnx.merge(definition, params, *rest, copy=True)(*args)

    found = repair_params(fn, params, *args, **options)
    nnx.update(module, found.params)
    return found


def artifact_free(layer: ConvTranspose) -> ResizeConv:
    """Returns a resize-convolution to replace a transposed convolution.

    Output size, alignment and receptive field are equal: `k − s + 1` taps on the image enlarged by 'nearest'. Its
    kernel comes as near as possible to the trained layer, and it has the same bias.

    Args:
      layer: of kernel_size at least strides, undilated, unmasked and with padding_mode 'zeros'.

    Returns:
      A layer with new parameters of the same dtype.

    Raises:
      ValueError: for another layer.
      TypeError: if `layer` is not a `ConvTranspose` of this module.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> layer = ConvTranspose(8, 3, (4, 4), 2, padding=1, rngs=nnx.Rngs(0))
      >>> new = artifact_free(layer)
      >>> new.kernel_size, new.padding, new(jnp.zeros((1, 16, 16, 8))).shape
      ((3, 3), ((1, 1), (1, 1)), (1, 32, 32, 3))

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003.
    """
    if not isinstance(layer, ConvTranspose):
        raise TypeError(
            f"artifact_free: layer must be a tconvjax.nnx.ConvTranspose; got {type(layer).__name__}. Build it with "
            "interop.from_flax first. For Linen: tconvjax.linen.artifact_free."
        )
    options = {name: getattr(layer, name) for name in layers.CONV_TRANSPOSE.option_names}
    new_options = repairs.resize_conv_options(layer, layer.kernel_size, options)
    new = ResizeConv(layer.in_features, layer.out_features, **new_options, rngs=nnx.Rngs(0))
    kernel = layers.effective_kernel(layer, options, layer.kernel[...])
    new.kernel[...] = repairs.fitted(layer, options, kernel)
    if layer.bias is not None and new.bias is not None:
        new.bias[...] = layer.bias[...]
    return new
